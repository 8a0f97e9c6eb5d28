use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use flames_guest_protocol::frame::{FrameKind, read_frame};
use flames_guest_protocol::message::{FileStatus, WriteFileRequest};
use flames_guest_protocol::{Error, ErrorKind, MuxStream, Result};
use rustix::fs::{CWD, RenameFlags};

use super::files::{about, absolute, blocking, status};
use super::{done, respond};

// Written to the disk at once.
const GATHER_BYTES: usize = 128 * 1024;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Takes a file's content and puts it in its place when it is whole.
pub(super) async fn write(stream: &mut MuxStream, request: WriteFileRequest) -> Result<()> {
    let mut partial = blocking(move || Partial::create(&request)).await?;
    done(stream).await?;
    let mut gathered = Vec::new();
    loop {
        let Some(frame) = read_frame(stream).await? else {
            return Err(Error::new(ErrorKind::Unavailable, "the content was cut off"));
        };
        let ended = match frame.kind {
            FrameKind::Data => false,
            FrameKind::End => true,
            _ => return Err(frame.unexpected()),
        };
        gathered.extend_from_slice(&frame.payload);
        if gathered.len() >= GATHER_BYTES || ended {
            let bytes = std::mem::take(&mut gathered);
            partial = blocking(move || partial.append(&bytes)).await?;
        }
        if ended {
            let status = blocking(move || partial.finish()).await?;
            return respond(stream, &status).await;
        }
    }
}

/// A file that is not whole yet. Dropping it removes it.
#[derive(Debug)]
struct Partial {
    file: File,
    name: PathBuf,
    target: PathBuf,
    overwrite: bool,
    finished: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.name);
        }
    }
}

impl Partial {
    fn create(request: &WriteFileRequest) -> Result<Self> {
        let path = absolute(&request.path)?;
        // A link stays a link: what it leads to is replaced.
        let target = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => path.canonicalize().map_err(about("write", path))?,
            _ => path.to_owned(),
        };
        let failed = about("write", &target);
        let existing = target.metadata().ok();
        if let Some(existing) = &existing {
            if !existing.is_file() {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("{:?} is no regular file", request.path),
                ));
            }
            if !request.overwrite {
                return Err(failed(std::io::ErrorKind::AlreadyExists.into()));
            }
        }
        let (Some(directory), Some(_)) = (target.parent(), target.file_name()) else {
            return Err(Error::new(ErrorKind::InvalidInput, "the path names no file"));
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = directory.join(format!(".flames-{}-{number}.partial", std::process::id()));
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name).map_err(&failed)?;
        let partial =
            Self { file, name, target: target.clone(), overwrite: request.overwrite, finished: false };
        let owner = request.owner.or_else(|| existing.as_ref().map(|file| (file.uid(), file.gid())));
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::fchown(&partial.file, Some(uid), Some(gid)).map_err(&failed)?;
        }
        let mode = request.mode.or_else(|| existing.as_ref().map(Metadata::mode)).unwrap_or(0o644) & 0o7777;
        partial.file.set_permissions(Permissions::from_mode(mode)).map_err(&failed)?;
        Ok(partial)
    }

    fn append(mut self, bytes: &[u8]) -> Result<Self> {
        self.file.write_all(bytes).map_err(about("write", &self.target))?;
        Ok(self)
    }

    fn finish(mut self) -> Result<FileStatus> {
        let failed = about("write", &self.target);
        // Whole on the disk before it has its name, so that a crash leaves the old file or the new one.
        self.file.sync_all().map_err(&failed)?;
        self.place().map_err(&failed)?;
        self.finished = true;
        Ok(status(&self.file.metadata().map_err(&failed)?, None))
    }

    fn place(&self) -> std::io::Result<()> {
        if self.overwrite {
            return std::fs::rename(&self.name, &self.target);
        }
        rename_to_new(&self.name, &self.target)
    }
}

fn rename_to_new(from: &Path, to: &Path) -> std::io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}
