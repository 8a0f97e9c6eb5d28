//! What a run makes on the host is on record, so that nothing of a run that was killed stays for longer than until the next one.
//!
//! A record is a file that its run keeps locked (flock(2)) for as long as it lives. One that can be locked is of a run that is no more, and all
//! that bears that run's name (namespaces, control groups, jails), or is in its folder, is nobody's.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use flames_error::ErrorKind;
use flames_vmm::VmDriver;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::Kind;

/// How long a driver that was dropped may still hold what it worked with.
const HELD: Duration = Duration::from_secs(10);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(20);

/// What a run has made, and under which name.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    kind: Kind,
    name: String,
    folder: PathBuf,
}

/// A run that is on record.
#[derive(Debug)]
pub(super) struct Run {
    record: Record,
    path: PathBuf,
    _locked: File,
}

/// Where the records of runs are: in the workspace that the harness was built in, which whoever can write to may have it do anything anyway. A
/// folder that others may write to would let them name what root removes.
pub(super) fn records() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench-runs")
}

/// Opens the record, when no run that lives has it.
fn locked(path: &Path) -> Result<Option<File>> {
    let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Run {
    /// Puts a run on record, with a name and an empty folder of its own, before it makes anything.
    pub(super) fn begin(records: &Path, kind: Kind, above: &Path) -> Result<Self> {
        let cannot = || format!("{} cannot be written", records.display());
        std::fs::create_dir_all(records).with_context(cannot)?;
        let name = format!("bench{}", std::process::id());
        let path = records.join(&name);
        let mut file = locked(&path).with_context(cannot)?.with_context(|| format!("{name} runs already"))?;
        let above = std::path::absolute(above)?;
        let folder = above.join(format!("flames-bench-vmm-{}", std::process::id()));
        let record = Record { kind, name, folder };
        file.write_all(&serde_json::to_vec(&record)?).with_context(cannot)?;
        std::fs::create_dir(&record.folder)
            .with_context(|| format!("{} cannot be written", above.display()))?;
        Ok(Self { record, path, _locked: file })
    }

    pub(super) fn name(&self) -> &str {
        &self.record.name
    }

    pub(super) fn folder(&self) -> &Path {
        &self.record.folder
    }

    /// Ends and takes away all that the run has made, whatever became of it. Nothing works on it any more.
    pub(super) async fn end(self) -> Result<()> {
        clear(&self.record).await?;
        Ok(std::fs::remove_file(&self.path)?)
    }
}

/// Clears what runs that were killed have left. What cannot be cleared stays on record, and is told.
pub(super) async fn clear_earlier(records: &Path) {
    let Ok(entries) = std::fs::read_dir(records) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let cleared = async {
            let Some(mut file) = locked(&path)? else { return Ok(()) };
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            // One that was killed before it wrote has made nothing.
            if let Ok(record) = serde_json::from_str::<Record>(&text) {
                eprintln!("clearing away what `{}` has left, which was killed", record.name);
                clear(&record).await?;
            }
            anyhow::Ok(std::fs::remove_file(&path)?)
        };
        if let Err(error) = cleared.await {
            eprintln!("what {} tells of cannot be cleared away: {error:#}", path.display());
        }
    }
}

async fn clear(record: &Record) -> Result<()> {
    // Its machines are found without their records too; the driver needs a folder all the same.
    let (folder, lost) = match record.folder.is_dir() {
        true => (record.folder.clone(), None),
        false => {
            let folder = tempfile::tempdir()?;
            (folder.path().to_owned(), Some(folder))
        }
    };
    let until = Instant::now() + HELD;
    loop {
        let cleared = match record.kind {
            Kind::Firecracker => super::firecracker::clear(&record.name, &folder).await,
            Kind::Qemu => super::others::clear_qemu(&folder).await,
            Kind::Simulated => Ok(()),
        };
        let error = match cleared {
            Ok(()) => break,
            Err(error) => error,
        };
        let is_held = error
            .downcast_ref::<flames_error::Error>()
            .is_some_and(|error| matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable));
        if !is_held || Instant::now() > until {
            return Err(error);
        }
        tokio::time::sleep(AGAIN).await;
    }
    drop(lost);
    match std::fs::remove_dir_all(&record.folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Ends and takes away every machine that a driver finds, and what it keeps for others.
pub(super) async fn clear_machines(driver: &dyn VmDriver) -> Result<()> {
    for found in driver.adopt().await? {
        driver.destroy(&found.incarnation).await?;
    }
    driver.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_killed_run_has_left_is_cleared_away_and_what_lives_is_let_be() {
        let place = tempfile::tempdir().unwrap();
        let records = place.path().join("records");
        clear_earlier(&records).await;
        let living = Run::begin(&records, Kind::Qemu, place.path()).unwrap();
        let left = Record {
            kind: Kind::Qemu,
            name: "bench0".to_owned(),
            folder: place.path().join("flames-bench-vmm-0"),
        };
        std::fs::create_dir_all(left.folder.join("machines/.new-inc_1")).unwrap();
        std::fs::write(records.join("bench0"), serde_json::to_vec(&left).unwrap()).unwrap();
        std::fs::write(records.join("bench1"), "").unwrap();
        clear_earlier(&records).await;
        assert!(
            !left.folder.exists() && !records.join("bench0").exists() && !records.join("bench1").exists()
        );
        assert!(living.folder().is_dir() && records.join(living.name()).exists());
        let folder = living.folder().to_owned();
        living.end().await.unwrap();
        assert!(!folder.exists() && std::fs::read_dir(&records).unwrap().next().is_none());
    }
}
