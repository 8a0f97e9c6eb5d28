//! Disks that are full and folders that are read-only, on small file systems of their own. Mounting them needs root.

// What fails here fails the case.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use flames_clock::SystemClock;
use flames_conformance_runner::{Row, Suite, Unavailable, run, table};
use flames_error::{Error, ErrorKind};
use flames_state::{Commit, Key, StateStore};
use flames_state_sqlite::{SqliteConfig, SqliteStore};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

/// A file system of so many bytes in memory, unmounted at the end.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes},mode=0700")).unwrap();
        mount("tmpfs", folder.path(), "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, options.as_c_str())
            .unwrap();
        Self(folder)
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn make_read_only(&self) {
        mount_remount(self.path(), MountFlags::RDONLY, "").unwrap();
    }
    fn fill(&self) -> std::path::PathBuf {
        let ballast = self.path().join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        let block = vec![7; 4_096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).unwrap();
    }
}

async fn open(path: &Path) -> Result<SqliteStore, Error> {
    SqliteStore::open(SqliteConfig::at(path), Arc::new(SystemClock::new())).await
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// One line that names the provider, the file and what to do.
fn is_clear(error: &Error, path: &Path, advice: &str) {
    let line = error.user_message().unwrap_or_else(|| panic!("no line for the user: {error:?}"));
    for part in ["sqlite", path.to_str().unwrap(), advice] {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert!(!line.contains('\n'), "{line:?}");
}

mod folders {
    use super::*;

    pub(crate) async fn a_commit_on_a_full_disk_is_refused_and_the_store_goes_on_once_there_is_room(
        disk: &SmallDisk,
    ) {
        let path = disk.path().join("state.db");
        let store = open(&path).await.unwrap();
        let put = async |name: String| {
            store
                .commit(Commit::new().put(key(&name), vec![7; 50_000]).append(key("log"), name.clone()))
                .await
        };
        put("k/0".to_owned()).await.unwrap();
        let ballast = disk.fill();
        let mut kept = 1;
        let refused = loop {
            match put(format!("k/{kept}")).await {
                Ok(_) => kept += 1,
                Err(error) => break error,
            }
            assert!(kept < 100, "the disk is full");
        };
        assert_eq!(refused.kind(), ErrorKind::Exhausted, "{refused:?}");
        is_clear(&refused, &path, "Make room");
        let refused = format!("k/{kept}");
        assert_eq!(store.get(&key(&refused)).await.unwrap(), None, "what was refused is not there");
        std::fs::remove_file(ballast).unwrap();
        put("after".to_owned()).await.unwrap();
        store.close().await.unwrap();
        let store = open(&path).await.unwrap();
        assert_eq!(store.get(&key(&refused)).await.unwrap(), None, "nor after it was opened anew");
        for name in (0..kept).map(|n| format!("k/{n}")).chain(["after".to_owned()]) {
            assert!(store.get(&key(&name)).await.unwrap().is_some(), "{name} was confirmed");
        }
        let log = store.read_log(&key("log"), flames_state::Position::START, 1_000).await.unwrap();
        assert_eq!(log.len(), kept + 1);
    }

    pub(crate) async fn a_file_on_a_full_disk_is_refused_with_what_to_do(disk: &SmallDisk) {
        disk.fill();
        let path = disk.path().join("state.db");
        let error = open(&path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
        is_clear(&error, &path, "Make room");
    }

    pub(crate) async fn a_read_only_folder_is_refused_with_what_to_do(disk: &SmallDisk) {
        let path = disk.path().join("state.db");
        disk.make_read_only();
        let error = open(&path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        is_clear(&error, &path, "read-only");
        assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
    }

    pub(crate) async fn a_store_in_a_folder_that_became_read_only_is_refused_and_left_as_it_is(
        disk: &SmallDisk,
    ) {
        let path = disk.path().join("state.db");
        let store = open(&path).await.unwrap();
        store.commit(Commit::new().put(key("a"), "1")).await.unwrap();
        store.close().await.unwrap();
        let before = std::fs::read(&path).unwrap();
        disk.make_read_only();
        let error = open(&path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        is_clear(&error, &path, "Let this user write");
        assert!(std::fs::read(&path).unwrap() == before);
    }
}

fn rows() -> Vec<Row<Box<SmallDisk>>> {
    table![
        folders:
            a_commit_on_a_full_disk_is_refused_and_the_store_goes_on_once_there_is_room,
            a_file_on_a_full_disk_is_refused_with_what_to_do,
            a_read_only_folder_is_refused_with_what_to_do,
            a_store_in_a_folder_that_became_read_only_is_refused_and_left_as_it_is,
    ]
}

fn main() -> ExitCode {
    let is_root = rustix::process::geteuid().is_root();
    let unavailable = (!is_root).then(|| Unavailable {
        service: "root".to_owned(),
        reason: "mounting a small disk needs root".to_owned(),
    });
    let fresh = || async { Box::new(SmallDisk::new(2 * 1024 * 1024)) };
    run(Suite::own_tests("folders", "sqlite", unavailable, rows(), fresh))
}
