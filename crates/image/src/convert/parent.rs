//! The parent's side.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::{Assignment, Bounds, CONVERT_COMMAND, LONGEST_LINE, Line};
use crate::error::{ImageError, ImageErrorKind, Result};
use crate::rootfs::{ConversionRequest, ConversionResult, Progress};

/// The prefix of staging folders, and the file in each whose lock says that its conversion is alive.
const STAGING_PREFIX: &str = "conversion-";
const LOCK: &str = ".alive";
/// The file whose lock orders making and removing of staging folders.
const DOOR: &str = ".door";
/// How long a killed child is waited for before its folder is taken away. A SIGKILL takes effect in milliseconds, unless a disk hangs.
const KILL_WAIT: Duration = Duration::from_millis(500);

/// Starts conversions in child processes.
#[derive(Debug, Clone)]
pub struct Converter {
    program: PathBuf,
    arguments: Vec<OsString>,
    staging: PathBuf,
    bounds: Bounds,
}

/// A finished conversion and the folder that holds its file, which goes with it.
#[derive(Debug)]
pub struct Conversion {
    /// What was made.
    pub result: ConversionResult,
    staging: Staging,
}

impl Conversion {
    /// Where the compressed file system lies, until this is dropped.
    pub fn path(&self) -> PathBuf {
        self.staging.folder.path().join(&self.result.file)
    }
}

impl Converter {
    /// Conversions by this very program ([`CONVERT_COMMAND`] must lead to [`super::child_main`]), each in a folder of its own below `staging`.
    pub fn new(staging: impl Into<PathBuf>, bounds: Bounds) -> Result<Self> {
        Ok(Self::with_program(std::env::current_exe()?, [CONVERT_COMMAND.into()], staging, bounds))
    }

    /// Conversions by another program that calls [`super::child_main`].
    pub fn with_program(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = OsString>,
        staging: impl Into<PathBuf>,
        bounds: Bounds,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().collect(),
            staging: staging.into(),
            bounds,
        }
    }

    /// Converts an image. `progress` is called as it goes on.
    ///
    /// Dropping the future kills the child; in every case, a crash of this process too (then at the next conversion), the staging folder
    /// is removed.
    ///
    /// Errors: those of [`crate::rootfs::convert`]; `TooLarge` when the child passed a bound, `TimedOut` when it ran too long; `Internal`
    /// when it died otherwise.
    pub async fn convert(
        &self,
        request: &ConversionRequest,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Conversion> {
        fs::create_dir_all(&self.staging)?;
        let staging = Staging::create(&self.staging)?;
        let assignment = Assignment {
            request: ConversionRequest { source: std::path::absolute(&request.source)?, ..request.clone() },
            bounds: self.bounds,
            staging: std::path::absolute(staging.folder.path())?,
        };
        let mut line =
            serde_json::to_vec(&assignment).map_err(|error| ImageError::internal(error.to_string()))?;
        line.push(b'\n');
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| ImageError::from(error).at_path(&self.program))?;
        let mut running = Running { child: Some(child), staging: Some(staging) };
        let limit = Duration::from_secs(self.bounds.seconds);
        match tokio::time::timeout(limit, running.follow(&line, progress)).await {
            Ok(result) => {
                let result = result?;
                let staging =
                    running.staging.take().ok_or_else(|| ImageError::internal("no staging folder"))?;
                Ok(Conversion { result, staging })
            }
            Err(_) => Err(ImageError::new(
                ImageErrorKind::TimedOut,
                format!("the conversion did not end within {} s", self.bounds.seconds),
            )),
        }
    }
}

/// A folder that only this conversion uses; removed when dropped.
#[derive(Debug)]
struct Staging {
    folder: TempDir,
    _lock: File,
}

impl Staging {
    /// Removes what was abandoned, and makes a new one.
    fn create(root: &Path) -> Result<Self> {
        // Held for milliseconds: without it, a folder that has no lock yet could be taken for an abandoned one.
        let door = File::options().create(true).write(true).truncate(false).open(root.join(DOOR))?;
        flock(&door, FlockOperation::LockExclusive)?;
        remove_abandoned(root)?;
        let folder = tempfile::Builder::new().prefix(STAGING_PREFIX).tempdir_in(root)?;
        let lock = File::create_new(folder.path().join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { folder, _lock: lock })
    }
}

/// Removes the folders of conversions whose parent died: nobody holds their lock any more.
fn remove_abandoned(root: &Path) -> Result<()> {
    for item in fs::read_dir(root)? {
        let item = item?;
        if !item.file_name().as_encoded_bytes().starts_with(STAGING_PREFIX.as_bytes())
            || !item.file_type()?.is_dir()
        {
            continue;
        }
        if let Ok(lock) = File::open(item.path().join(LOCK))
            && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            tracing::info!(folder = %item.path().display(), "removing what an interrupted conversion left");
            fs::remove_dir_all(item.path())?;
        }
    }
    Ok(())
}

/// A child at work. Dropped early, it is killed before its folder goes.
struct Running {
    child: Option<Child>,
    staging: Option<Staging>,
}

impl Running {
    async fn follow(
        &mut self,
        assignment: &[u8],
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<ConversionResult> {
        let child = self.child.as_mut().ok_or_else(|| ImageError::internal("no child"))?;
        let lost = || ImageError::internal("the child has no pipes");
        // Held until the child has ended: its end is the sign that we are gone.
        let mut input = child.stdin.take().ok_or_else(lost)?;
        let mut output = BufReader::new(child.stdout.take().ok_or_else(lost)?);
        // A child that is gone already is told by its status below.
        let _ = input.write_all(assignment).await;
        let _ = input.flush().await;
        let mut outcome = None;
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = (&mut output).take(LONGEST_LINE as u64).read_until(b'\n', &mut line).await?;
            if count == 0 {
                break;
            }
            match serde_json::from_slice(&line) {
                Ok(Line::Progress { progress: told }) => progress(told),
                Ok(Line::Done { result }) => outcome = Some(Ok(*result)),
                Ok(Line::Failed { error }) => outcome = Some(Err(error)),
                Err(error) => {
                    return Err(ImageError::internal(format!("the converter's answer is none: {error}")));
                }
            }
        }
        let status = child.wait().await?;
        drop(input);
        match outcome {
            Some(Ok(result)) if status.success() => Ok(result),
            Some(Err(error)) => Err(error),
            _ => Err(death(status)),
        }
    }
}

/// What a child died of that could not say so itself.
fn death(status: ExitStatus) -> ImageError {
    use rustix::process::Signal;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    let is = |wanted: Signal| signal == Some(wanted.as_raw());
    if is(Signal::XCPU) || is(Signal::KILL) {
        ImageError::too_large("the conversion took more CPU time than it may, or was killed")
    } else if is(Signal::XFSZ) {
        ImageError::too_large("the conversion made a larger file than it may")
    } else if is(Signal::ABORT) {
        // Rust aborts when memory is refused.
        ImageError::too_large("the conversion took more memory than it may")
    } else {
        ImageError::internal(format!("the converter died without a word ({status})"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (Some(mut child), Some(staging)) = (self.child.take(), self.staging.take()) else { return };
        // While the child lives it could make files in the folder that is being removed.
        let _ = child.start_kill();
        let pause = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while matches!(child.try_wait(), Ok(None)) && waited < KILL_WAIT {
            std::thread::sleep(pause);
            waited += pause;
        }
        drop(staging);
    }
}
