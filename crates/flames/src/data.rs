//! The data folder of `flames up`, `flames server` and `flames controller run`.
//!
//! ```text
//! <data folder>/            0700
//! ├─ lock                   held by the one `flames up` or `flames server` that works here
//! ├─ host.lock              held by the one `flames up` or `flames controller run` that works here
//! ├─ version                the schema of this folder
//! ├─ token                  the bearer token, 0600
//! ├─ api.json               where the API is, while it is served, 0600
//! ├─ api.sock               the API's unix socket, 0600
//! ├─ state.sqlite           records
//! ├─ queue.sqlite           what is to be looked at
//! ├─ blobs/                 images, compressed
//! ├─ images/                images, as machines use them
//! ├─ boot/                  initramfs and kernels that were made or fetched
//! ├─ staging/               uploads and conversions under way; emptied at each start
//! ├─ controller.secret      what `flames controller run` proves itself with, 0600
//! ├─ controller/            what the controller keeps: records, disks, logs
//! ├─ machines/              what the driver keeps
//! └─ ephemeral/             all of these for `--ephemeral`; removed at each start and end
//! ```

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;

/// The schema of the folder that this version writes.
const SCHEMA: u32 = 1;
/// The longest path of a unix socket, in bytes (unix(7): `sun_path` is 108 bytes with its NUL).
const LONGEST_SOCKET_PATH: usize = 107;
/// The most that is read of `api.json`, `version` and `token`.
const LONGEST_FILE: u64 = 64 * 1024;

/// Where the API is, as `api.json` says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApiFile {
    /// The schema of this file.
    pub(crate) schema: u32,
    /// The address of the HTTP API.
    pub(crate) address: SocketAddr,
    /// The unix socket's file name in the data folder.
    pub(crate) socket: String,
    /// The process that serves it.
    pub(crate) pid: u32,
    /// That process's version.
    pub(crate) version: String,
}

impl ApiFile {
    /// This process serves, at this address.
    pub(crate) fn of_this_process(address: SocketAddr) -> Self {
        Self {
            schema: 1,
            address,
            socket: "api.sock".to_owned(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What of a data folder a process takes for itself. A server and a host may share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Works {
    /// `flames up`.
    Everything,
    /// `flames server`.
    Server,
    /// `flames controller run`.
    Host,
}

impl Works {
    /// The files that are locked, each with who else may hold it.
    fn locks(self) -> &'static [(&'static str, &'static str)] {
        const SERVER: (&str, &str) = ("lock", "Another `flames up` or `flames server`");
        const HOST: (&str, &str) = ("host.lock", "Another `flames up` or `flames controller run`");
        match self {
            Self::Everything => &[SERVER, HOST],
            Self::Server => &[SERVER],
            Self::Host => &[HOST],
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Version {
    schema: u32,
}

/// The data folder that is used when none is named: `FLAMES_DATA` (read by the argument parser), else by the XDG base directory
/// specification.
pub(crate) fn default_path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|share| share.join("flames"))
}

/// A data folder by its path; nothing is held.
#[derive(Debug, Clone)]
pub(crate) struct DataFolder {
    path: PathBuf,
}

/// A data folder, or a part of it, that this process alone works in.
#[derive(Debug)]
pub(crate) struct LockedFolder {
    folder: DataFolder,
    works: Works,
    _locks: Vec<File>,
}

impl DataFolder {
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn token_path(&self) -> PathBuf {
        self.join("token")
    }

    pub(crate) fn socket_path(&self) -> PathBuf {
        self.join("api.sock")
    }

    /// Whether a Flames has worked here: these folders are made after all providers were open.
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code, reason = "only a file can be emptied"))]
    pub(crate) fn was_used(&self) -> bool {
        self.join("controller").is_dir() || self.join("staging").is_dir()
    }

    /// The line that tells a shell of this folder, unless it is the default one.
    pub(crate) fn named_for_a_shell(&self) -> Option<String> {
        let default = default_path().and_then(|default| fs::canonicalize(default).ok());
        (default.as_deref() != Some(self.path()))
            .then(|| format!("  export FLAMES_DATA={}", self.path().display()))
    }

    /// Where the API is; none when nothing is served from here.
    pub(crate) fn api(&self) -> io::Result<Option<ApiFile>> {
        match read_small(&self.join("api.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bearer token.
    pub(crate) fn token(&self) -> io::Result<String> {
        read_secret(&self.token_path())
    }

    /// Makes the folder (0700) where it is not there, and takes it for this process alone.
    ///
    /// Fails when another process works here, when a newer version of Flames made it, or when others may write to it.
    pub(crate) fn lock(self, works: Works) -> Result<LockedFolder, Failure> {
        let shown = self.path.display().to_string();
        let cannot = |error: io::Error| unusable(&shown, &error);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(cannot)?;
        let path = fs::canonicalize(&self.path).map_err(cannot)?;
        let folder = Self { path };
        folder.check_owner()?;
        let mut locks = Vec::new();
        for (name, another) in works.locks() {
            let lock = lock_file(&folder.join(name)).map_err(cannot)?;
            let Some(lock) = lock else {
                let serving =
                    folder.api().ok().flatten().map(|api| format!(" (process {}, {})", api.pid, api.address));
                return Err(Failure::new(
                    crate::exit::CONFLICT,
                    format!("{another} works in {shown}{}.", serving.unwrap_or_default()),
                )
                .advise("Stop it first, or give this one another folder with --data."));
            };
            locks.push(lock);
        }
        folder.check_version()?;
        if works != Works::Host {
            // What the process before left says where it was, not where this one is.
            remove_file(&folder.join("api.json")).map_err(cannot)?;
        }
        Ok(LockedFolder { folder, works, _locks: locks })
    }

    fn check_owner(&self) -> Result<(), Failure> {
        let metadata = fs::metadata(&self.path)
            .map_err(|error| Failure::io("The data folder cannot be read", &error))?;
        let own = rustix::process::geteuid().as_raw();
        if metadata.uid() != own {
            return Err(Failure::usage(format!(
                "setting `data`: the folder {} belongs to another user. Give one of your own with --data or FLAMES_DATA.",
                self.path.display()
            )));
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700))
                .map_err(|error| Failure::io("The data folder cannot be closed to other users", &error))?;
        }
        Ok(())
    }

    /// Says which schema the folder has, where it does not say so yet; refuses a newer one.
    fn check_version(&self) -> Result<(), Failure> {
        if self.check_version_only()? {
            return Ok(());
        }
        let written = serde_json::to_vec(&Version { schema: SCHEMA })
            .map_err(io::Error::from)
            .and_then(|bytes| write_private(&self.join("version"), &bytes));
        written.map_err(|error| unusable(&self.path.display().to_string(), &error))
    }

    /// Whether the folder says which schema it has, without changing it. Fails when that is newer than this version's.
    pub(crate) fn check_version_only(&self) -> Result<bool, Failure> {
        let (shown, path) = (self.path.display().to_string(), self.join("version"));
        let found: Version = match read_small(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|_| damaged(&path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(unusable(&shown, &error)),
        };
        if found.schema <= SCHEMA {
            return Ok(true);
        }
        Err(Failure::usage(format!(
            "setting `data`: the folder {shown} was made by a newer version of Flames (schema {}; this version knows up to {SCHEMA}). Nothing \
             was changed. Use that version, or give another folder with --data or FLAMES_DATA.",
            found.schema
        )))
    }
}

fn damaged(version: &Path) -> Failure {
    Failure::failed(format!(
        "The file {} is damaged: it does not say which version of Flames made the folder.",
        version.display()
    ))
    .advise(format!("If that was this version, write {{\"schema\":{SCHEMA}}} into it."))
}

/// The failure of a data folder that cannot be used: one line with what to do.
fn unusable(shown: &str, error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "Make room there",
        io::ErrorKind::ReadOnlyFilesystem => "Mount it writable",
        io::ErrorKind::PermissionDenied => "Let this user write to it",
        _ => "Correct what is there",
    };
    Failure::usage(format!(
        "setting `data`: the folder {shown} cannot be used: {error}. {advice}, or give another folder with --data or FLAMES_DATA."
    ))
}

impl LockedFolder {
    pub(crate) fn folder(&self) -> &DataFolder {
        &self.folder
    }

    /// Removes a folder that this process has just made, so that a start that was refused leaves nothing; but not once a host has begun
    /// to work in it.
    pub(crate) fn remove_unused(self) {
        let others: &[&str] = match self.works {
            Works::Everything => &[],
            Works::Server => &["host.lock"],
            Works::Host => &["lock"],
        };
        let used = ["boot", "controller", "machines"].iter().chain(others);
        if used.into_iter().any(|name| self.folder.join(name).exists()) {
            return;
        }
        if let Err(error) = fs::remove_dir_all(self.folder.path()) {
            tracing::warn!(path = %self.folder.path().display(), %error, "a folder of no use could not be removed");
        }
    }

    /// A folder in it, made (0700) where it is not there.
    pub(crate) fn make(&self, name: impl AsRef<Path>) -> Result<PathBuf, Failure> {
        let path = self.folder.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|error| Failure::io(format!("The folder {} cannot be made", path.display()), &error))?;
        Ok(path)
    }

    /// The bearer token of this folder, made when it is not there or cannot be one.
    pub(crate) fn ensure_token(&self) -> Result<String, Failure> {
        self.ensure_secret(&self.folder.token_path(), 32, "The token cannot be kept")
    }

    /// What the controller of this folder proves itself with, made when it is not there.
    pub(crate) fn ensure_controller_secret(&self) -> Result<String, Failure> {
        let path = self.folder.join("controller.secret");
        self.ensure_secret(&path, 64, "The controller's secret cannot be kept")
    }

    fn ensure_secret(&self, path: &Path, least: usize, failed: &str) -> Result<String, Failure> {
        let cannot = |error: io::Error| Failure::io(failed.to_owned(), &error);
        match read_secret(path) {
            Ok(token) if token.len() >= least && token.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(cannot)?;
                return Ok(token);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(cannot(error)),
        }
        let token = hex::encode(random_bytes()?);
        write_private(path, format!("{token}\n").as_bytes()).map_err(cannot)?;
        Ok(token)
    }

    /// Says where the API is, whole or not at all.
    pub(crate) fn announce(&self, api: &ApiFile) -> Result<(), Failure> {
        let bytes = serde_json::to_vec_pretty(api)
            .map_err(|error| Failure::failed(format!("api.json cannot be written: {error}")))?;
        write_private(&self.folder.join("api.json"), &bytes)
            .map_err(|error| Failure::io("api.json cannot be written", &error))
    }

    /// Takes back what [`LockedFolder::announce`] said.
    pub(crate) fn withdraw(&self) {
        for path in [self.folder.join("api.json"), self.folder.socket_path()] {
            if let Err(error) = remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a file could not be removed");
            }
        }
    }
}

/// 32 bytes of the system's randomness.
pub(crate) fn random_bytes() -> Result<[u8; 32], Failure> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Failure::io("The system gives no randomness", &error))?;
    Ok(bytes)
}

/// A path of a unix socket that fits into its address. A longer one is reached through its folder, which stays open as long as the second.
pub(crate) fn socket_address(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= LONGEST_SOCKET_PATH {
        return Ok((path.to_owned(), None));
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    let folder = File::open(parent)?;
    let name = path.file_name().unwrap_or(OsStr::from_bytes(b"api.sock"));
    Ok((PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name), Some(folder)))
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_secret(path: &Path) -> io::Result<String> {
    let text =
        String::from_utf8(read_small(path)?).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(text.trim().to_owned())
}

/// Takes a file for this process, made (0600) where it is not there; none when another has it.
pub(crate) fn lock_file(path: &Path) -> io::Result<Option<File>> {
    let file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes a file that only its owner reads, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    // A temporary file of this crate has mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_data_folder_is_private_and_belongs_to_one_process() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("data");
        let locked = DataFolder::at(&path).lock(Works::Everything).unwrap();
        assert_eq!(mode(&path), 0o700);
        let refused = DataFolder::at(&path).lock(Works::Everything).unwrap_err();
        assert_eq!(refused.exit, crate::exit::CONFLICT);
        assert!(refused.message.contains("Another `flames up`"), "{}", refused.message);
        drop(locked);
        DataFolder::at(&path).lock(Works::Everything).unwrap();
    }

    #[test]
    fn a_server_and_a_host_share_a_data_folder_and_no_two_of_either_do() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("data");
        let server = DataFolder::at(&path).lock(Works::Server).unwrap();
        let host = DataFolder::at(&path).lock(Works::Host).unwrap();
        let refused = |works| DataFolder::at(&path).lock(works).unwrap_err().message;
        assert!(refused(Works::Server).contains("flames server"));
        assert!(refused(Works::Host).contains("flames controller run"));
        drop(server);
        assert!(refused(Works::Everything).contains("flames controller run"));
        drop(host);
        DataFolder::at(&path).lock(Works::Everything).unwrap();
    }

    #[test]
    fn the_token_is_random_private_and_kept() {
        let temporary = tempfile::tempdir().unwrap();
        let locked = DataFolder::at(temporary.path().join("data")).lock(Works::Everything).unwrap();
        let token = locked.ensure_token().unwrap();
        assert_eq!(token.len(), 64);
        assert_eq!(mode(&locked.folder().token_path()), 0o600);
        assert_eq!(locked.ensure_token().unwrap(), token);
        fs::write(locked.folder().token_path(), "short").unwrap();
        assert_ne!(locked.ensure_token().unwrap(), "short");
    }

    #[test]
    fn the_folder_of_a_newer_version_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("data");
        drop(DataFolder::at(&path).lock(Works::Everything).unwrap());
        fs::write(path.join("version"), r#"{"schema":2}"#).unwrap();
        let refused = DataFolder::at(&path).lock(Works::Everything).unwrap_err();
        assert!(refused.message.contains("newer version"), "{}", refused.message);
        fs::write(path.join("version"), "{{{").unwrap();
        let refused = DataFolder::at(&path).lock(Works::Everything).unwrap_err();
        assert!(refused.message.contains("/version is damaged"), "{}", refused.message);
    }

    #[test]
    fn where_the_api_is_is_said_privately_and_taken_back() {
        let temporary = tempfile::tempdir().unwrap();
        let locked = DataFolder::at(temporary.path().join("data")).lock(Works::Everything).unwrap();
        let api = ApiFile {
            schema: 1,
            address: "127.0.0.1:1".parse().unwrap(),
            socket: "api.sock".into(),
            pid: 1,
            version: "0".into(),
        };
        locked.announce(&api).unwrap();
        assert_eq!(mode(&locked.folder().join("api.json")), 0o600);
        assert_eq!(locked.folder().api().unwrap(), Some(api));
        locked.withdraw();
        assert_eq!(locked.folder().api().unwrap(), None);
    }

    #[test]
    fn a_socket_in_a_deep_folder_can_still_be_reached() {
        let temporary = tempfile::tempdir().unwrap();
        let deep = temporary.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let (address, _held) = socket_address(&deep.join("api.sock")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&address).unwrap();
        let (address, _held) = socket_address(&deep.join("api.sock")).unwrap();
        std::os::unix::net::UnixStream::connect(address).unwrap();
    }
}
