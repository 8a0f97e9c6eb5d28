//! Postgres.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::server::{Kind, Launch, Server, User, common_methods, no_litter, run_to_end};
use crate::{Unavailable, http, locate};

const SERVICE: &str = "postgres";
const USER: &str = "flames";
const PASSWORD: &str = "flames-test";

/// A Postgres of its own: one superuser, one database `postgres`, UTF-8, `fsync` on, no unix socket.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
}

common_methods!(Postgres);

impl Postgres {
    /// Makes a cluster below `folder` and starts it.
    ///
    /// Postgres refuses to run as root. As root it is run as the user `postgres`, else `nobody`; when that user cannot
    /// enter `folder`, the cluster is made below `/tmp`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(folder: impl AsRef<Path>) -> Result<Self, Unavailable> {
        Self::start_with(folder, &[])
    }

    /// Like [`Self::start`], with settings (`max_connections=10`).
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(folder: impl AsRef<Path>, settings: &[&str]) -> Result<Self, Unavailable> {
        let programs = programs()?;
        let user = unprivileged_user().map_err(|reason| Unavailable::broken(SERVICE, reason))?;
        let folder = match user {
            Some(_) if !everybody_may_enter(folder.as_ref()) => Path::new("/tmp"),
            _ => folder.as_ref(),
        };
        // KILL would leave a segment of shared memory of the system behind; QUIT is its immediate shutdown, which does not.
        let kind = Kind { service: SERVICE, ports: 1, end_by: Signal::QUIT, litter: no_litter };
        let server = Server::start(kind, folder, |folder, ports| {
            let data = folder.join("data");
            make_cluster(&programs, folder, &data, user)?;
            let port = ports.first().copied().unwrap_or_default();
            let mut arguments =
                vec!["-D".into(), data.into_os_string(), "-p".into(), port.to_string().into()];
            let own = [
                "listen_addresses=127.0.0.1",
                "unix_socket_directories=",
                "max_connections=200",
                // In the data folder, and not in /dev/shm where a kill would leave them.
                "dynamic_shared_memory_type=mmap",
            ];
            for setting in own.iter().chain(settings) {
                arguments.extend(["-c".into(), (*setting).into()]);
            }
            Ok(Launch {
                program: programs.join("postgres"),
                arguments,
                user,
                is_ready: Box::new(move || accepts_logins(port)),
            })
        })?;
        Ok(Self { server })
    }

    /// Where its programs are (the folder), when it is installed; starts nothing.
    ///
    /// # Errors
    /// When it is not.
    pub fn find() -> Result<PathBuf, Unavailable> {
        programs()
    }

    /// The version of the program installed (`15.14`).
    ///
    /// # Errors
    /// When it is not installed.
    pub fn version() -> Result<String, Unavailable> {
        locate::version(SERVICE, &programs()?.join("postgres"), "--version")
    }

    /// `postgres://user:password@127.0.0.1:port/postgres`, a superuser.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_through(self.address())
    }

    /// The same through another address, that of a proxy.
    #[must_use]
    pub fn url_through(&self, address: SocketAddr) -> String {
        format!("postgres://{USER}:{PASSWORD}@{address}/postgres")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.server.stop();
        // Killed and not started again, its segment of shared memory is still there. The file that it could not remove either tells
        // the number, as the second word of line 7 (Postgres' source: pidfile.h, LOCK_FILE_LINE_SHMEM_KEY).
        let file = std::fs::read_to_string(self.server.folder().join("data/postmaster.pid"));
        let file = file.unwrap_or_default();
        let segment = file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1));
        if let Some(segment) = segment.filter(|segment| segment.parse::<u64>().is_ok()) {
            let silent = || Stdio::null();
            let mut command = Command::new("ipcrm");
            let _ = command.args(["-m", segment]).stdin(silent()).stdout(silent()).stderr(silent()).status();
        }
    }
}

/// The folder with Postgres' programs, the newest version where there are several.
fn programs() -> Result<PathBuf, Unavailable> {
    const VARIABLE: &str = "FLAMES_TEST_POSTGRES_BIN";
    let is_whole = |folder: &Path| folder.join("postgres").is_file() && folder.join("initdb").is_file();
    if let Some(folder) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from) {
        let reason = || format!("{VARIABLE} names {}, which has no postgres and initdb", folder.display());
        return if is_whole(&folder) { Ok(folder) } else { Err(Unavailable::broken(SERVICE, reason())) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).find(|folder| is_whole(folder));
    let debian = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let folders = versions.filter_map(|version| {
            let version = version.ok()?;
            let number: u32 = version.file_name().to_str()?.parse().ok()?;
            Some((number, version.path().join("bin"))).filter(|(_, folder)| is_whole(folder))
        });
        folders.max().map(|(_, folder)| folder)
    };
    on_path.or_else(debian).ok_or_else(|| {
        let reason = format!("no program `postgres` here ({VARIABLE} would say in which folder it is)");
        Unavailable::absent(SERVICE, reason)
    })
}

fn make_cluster(programs: &Path, folder: &Path, data: &Path, user: Option<User>) -> Result<(), String> {
    let written = |error: std::io::Error| format!("cannot prepare {}: {error}", folder.display());
    let password_file = folder.join("password");
    std::fs::write(&password_file, PASSWORD).map_err(written)?;
    if let Some(User { uid, gid }) = user {
        for path in [folder, &password_file] {
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(written)?;
        }
    }
    let mut initdb = Command::new(programs.join("initdb"));
    initdb.arg("-D").arg(data).arg("--pwfile").arg(&password_file).args([
        "-U",
        USER,
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--no-instructions",
        // The cluster begins empty: there is nothing to lose yet.
        "--no-sync",
    ]);
    run_to_end(&mut initdb, folder, user)
}

/// Whom to run as: `None` for "as this process".
fn unprivileged_user() -> Result<Option<User>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
    let user = ["postgres", "nobody"].iter().find_map(|name| user_named(&users, name));
    user.map(Some)
        .ok_or_else(|| "root may not run it, and there is no user `postgres` or `nobody`".to_owned())
}

/// passwd(5): `name:password:uid:gid:…`.
fn user_named(users: &str, name: &str) -> Option<User> {
    users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (*fields.first()? == name)
            .then(|| Some(User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? }))?
    })
}

fn everybody_may_enter(folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else { return false };
    folder.ancestors().all(|folder| {
        std::fs::metadata(folder).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
    })
}

/// Asks for a session and looks whether the answer is the question for the password (`R`), or an error because it still
/// starts (`E`). Postgres' manual, chapter "Message Flow", protocol 3.0.
fn accepts_logins(port: u16) -> Result<(), String> {
    let ask = || -> std::io::Result<u8> {
        let parameters = format!("user\0{USER}\0database\0postgres\0\0");
        let length = u32::try_from(parameters.len() + 8).unwrap_or_default();
        let mut message = length.to_be_bytes().to_vec();
        message.extend(196_608_u32.to_be_bytes());
        message.extend(parameters.as_bytes());
        let mut stream = http::connect(port)?;
        stream.write_all(&message)?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        Ok(answer[0])
    };
    match ask() {
        Ok(b'R') => Ok(()),
        Ok(other) => Err(format!("it answers a login with `{}`", char::from(other))),
        Err(error) => Err(format!("it does not answer a login: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\npostgresql:x:7:7::/:/bin/sh\npostgres:x:101:104:,,,:/var:/bin/sh\n";
        let user = user_named(users, "postgres").unwrap();
        assert_eq!((user.uid, user.gid), (101, 104));
        assert!(user_named(users, "nobody").is_none());
    }

    #[test]
    fn a_private_folder_is_not_for_everybody_nor_is_what_is_in_it() {
        let private = tempfile::tempdir().unwrap();
        std::fs::set_permissions(private.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let inner = private.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!everybody_may_enter(&inner));
        assert!(everybody_may_enter(Path::new("/usr")));
    }
}
