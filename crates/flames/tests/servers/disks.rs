//! Disks that are full or read-only. Mounting them needs root.

use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

use super::support::{self, finish};
use super::{one_line, tells};

/// A file system of its own, unmounted at the end.
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

    fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("ballast")).unwrap();
        let block = vec![7; 4_096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    fn make_read_only(&self) {
        mount_remount(self.path(), MountFlags::RDONLY, "").unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// Each provider with a place on the disk: what names it there, and what a refusal says.
fn places(disk: &SmallDisk) -> Vec<(&'static str, String, &'static str)> {
    let on = |name: &str| disk.path().join(name).display().to_string();
    vec![
        ("FLAMES_STATE_PATH", on("state.sqlite"), "state (sqlite), setting `state.path`"),
        ("FLAMES_QUEUE_PATH", on("queue.sqlite"), "queue (sqlite), setting `queue.path`"),
        ("FLAMES_BLOB_PATH", on("blobs"), "blob (fs), setting `blob.path`"),
        ("FLAMES_DATA", on("data"), "setting `data`"),
    ]
}

fn refused_on(disk: &SmallDisk, advice: &[&str]) {
    let before: Vec<_> =
        std::fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for (variable, place, said) in places(disk) {
        let elsewhere = tempfile::tempdir().unwrap();
        let data = elsewhere.path().join("data");
        for arguments in [
            &["up", "--listen", "0", "--driver", "simulated"][..],
            &["-q", "config", "check", "--listen", "0"],
        ] {
            let mut command = support::flames();
            command.args(arguments).env("FLAMES_DATA", &data).env(variable, &place);
            let line = one_line(finish(&mut command, b""));
            tells(&line, &[said, disk.path().to_str().unwrap()]);
            assert!(advice.iter().any(|advice| line.to_lowercase().contains(advice)), "{line}");
        }
    }
    let after: Vec<_> =
        std::fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(
        after.iter().filter(|name| !before.contains(name)).collect::<Vec<_>>(),
        [""; 0],
        "nothing was made"
    );
}

pub(crate) fn a_read_only_folder_is_refused_in_one_line_that_names_the_setting() {
    let disk = SmallDisk::new(1 << 20);
    disk.make_read_only();
    refused_on(&disk, &["read-only", "let this user", "can be written"]);
}

pub(crate) fn a_full_disk_is_refused_in_one_line_that_names_the_setting() {
    for (variable, _, _) in places(&SmallDisk::new(1 << 20)) {
        // Empty folders and files may be made where no byte can be written: each is tried on a disk of its own.
        let disk = SmallDisk::new(1 << 20);
        disk.fill();
        let (_, place, said) = places(&disk).into_iter().find(|(name, _, _)| *name == variable).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        for arguments in [
            &["-q", "config", "check", "--listen", "0"][..],
            &["up", "--listen", "0", "--driver", "simulated"],
        ] {
            if variable == "FLAMES_BLOB_PATH" && arguments[0] == "up" {
                // A folder takes no room of a tmpfs: it opens, and a put says that there is none.
                continue;
            }
            let mut command = support::flames();
            command.args(arguments).env("FLAMES_DATA", elsewhere.path().join("data")).env(variable, &place);
            let line = one_line(finish(&mut command, b""));
            tells(&line.to_lowercase(), &[&said.to_lowercase(), "room"]);
        }
    }
}
