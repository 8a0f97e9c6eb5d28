//! Looking at files and folders of this host.

use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::Access;

use super::Found;
use crate::config::{Problem, Section, Settings};
use crate::data::DataFolder;

/// Free disk below which nothing works for long.
const LEAST: u64 = 64 << 20;

/// The nearest folder that is there.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

/// Whether files can be made there: what is wrong, as the end of a sentence, and what to do.
fn writable(folder: &Path) -> Result<(), String> {
    let shown = folder.display();
    if let Err(error) = rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK) {
        return Err(match error {
            rustix::io::Errno::ROFS => {
                format!("{shown} is on a read-only file system: mount it writable, or name another folder.")
            }
            _ => format!(
                "{shown} is read-only for this user: let this user write to it, or name another folder."
            ),
        });
    }
    match rustix::fs::statvfs(folder) {
        Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) < LEAST => Err(format!(
            "the disk of {shown} is full (less than 64 MiB are free): make room there, or name another folder."
        )),
        _ => Ok(()),
    }
}

fn wrong(section: Section, backend: &str, setting: &str, sentence: impl Into<String>) -> Problem {
    let problem = Problem::new(section, setting, sentence);
    if section == Section::Host { problem } else { problem.of_backend(backend) }
}

/// The data folder.
pub(super) fn data(folder: Option<&DataFolder>, is_up: bool) -> Result<Found, Problem> {
    let refuse = |sentence: String| wrong(Section::Host, "", "data", sentence);
    let Some(folder) = folder else {
        return Err(refuse(
            "neither HOME nor XDG_DATA_HOME says where data is kept: name a folder.".to_owned(),
        ));
    };
    let path = folder.path();
    if let Err(error) = std::fs::metadata(path)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(refuse(format!("{} cannot be used ({error}): name another folder.", path.display())));
    }
    if path.exists() && !path.is_dir() {
        return Err(refuse(format!("{} is no folder: name another.", path.display())));
    }
    folder.check_version_only().map_err(|failure| refuse(failure.message.into()))?;
    writable(nearest(path)).map_err(refuse)?;
    Ok(match (path.is_dir(), is_up) {
        (_, true) => Found::ok("a `flames up` works here"),
        (true, false) => Found::ok("is there, with the schema of this version or none yet"),
        (false, false) => Found::note("the first start makes it"),
    })
}

/// A file of SQLite's that the adapter makes: nothing when it is there and has contents, for the adapter to judge.
#[cfg(feature = "sqlite")]
pub(super) fn database(settings: &Settings, section: Section, path: &Path) -> Result<Option<Found>, Problem> {
    use std::io::Read;

    let setting = format!("{}.path", section.name());
    let refuse = |sentence: String| wrong(section, "sqlite", &setting, sentence);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The data folder is made at the start; another one is not.
    let is_made = settings.path("data").is_some_and(|data| folder == data);
    if !folder.is_dir() && !is_made {
        return Err(refuse(format!(
            "the folder {} is not there: make it, or name another file.",
            folder.display()
        )));
    }
    writable(nearest(folder)).map_err(refuse)?;
    let mut first = [0; 1];
    match std::fs::File::open(path).and_then(|mut file| file.read(&mut first)) {
        Ok(0) => Ok(Some(Found::note("the first start makes its tables"))),
        Ok(_) => match rustix::fs::access(path, Access::WRITE_OK) {
            Ok(()) => Ok(None),
            Err(_) => Err(refuse(format!(
                "{} is read-only for this user: let this user write to it, or name another file.",
                path.display()
            ))),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(Some(Found::note("the first start makes it")))
        }
        Err(error) => Err(refuse(format!(
            "{} cannot be read ({error}): let this user read it, or name another file.",
            path.display()
        ))),
    }
}

/// The folder of blobs. It is not opened: that clears away what was left half-way.
pub(super) fn blobs(settings: &Settings, path: &Path, is_up: bool) -> Result<Found, Problem> {
    let _ = settings;
    let refuse = |sentence: String| wrong(Section::Blob, "fs", "blob.path", sentence);
    if path.exists() && !path.is_dir() {
        return Err(refuse(format!("{} is no folder: name another.", path.display())));
    }
    writable(nearest(path)).map_err(refuse)?;
    for inner in ["blobs", "temporary"] {
        let inner = path.join(inner);
        if inner.is_dir() {
            writable(&inner).map_err(refuse)?;
        }
    }
    Ok(match (path.is_dir(), is_up) {
        (_, true) => Found::ok("in use by the `flames up` of this data folder"),
        (true, false) => Found::ok("can be written"),
        (false, false) => Found::note("the first start makes it"),
    })
}
