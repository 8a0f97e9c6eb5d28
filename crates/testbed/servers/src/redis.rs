//! Redis.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::server::{Kind, Launch, Server, common_methods, no_litter};
use crate::{Unavailable, http, locate};

const SERVICE: &str = "redis";

/// A Redis of its own: one node, no password; what it holds is written to a file once a second, so that most of it is there
/// after a restart.
#[derive(Debug)]
pub struct Redis {
    server: Server,
}

common_methods!(Redis, SERVICE, program, "--version", "redis");

impl Redis {
    /// Starts it with its data below `folder`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(folder: impl AsRef<Path>) -> Result<Self, Unavailable> {
        Self::start_with(folder, &[])
    }

    /// Like [`Self::start`], with settings as in `redis.conf` (`maxmemory 1mb`).
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(folder: impl AsRef<Path>, settings: &[&str]) -> Result<Self, Unavailable> {
        let program = program()?;
        let kind = Kind { service: SERVICE, ports: 1, end_by: Signal::KILL, litter: no_litter };
        let server = Server::start(kind, folder.as_ref(), |folder, ports| {
            let port = ports.first().copied().unwrap_or_default();
            let own = format!(
                "bind 127.0.0.1\nport {port}\ndir {}\ndaemonize no\nsave \"\"\nappendonly yes\nappendfsync everysec\n",
                folder.display()
            );
            let file = folder.join("redis.conf");
            std::fs::write(&file, own + &settings.join("\n"))
                .map_err(|error| format!("{}: {error}", file.display()))?;
            Ok(Launch {
                program: program.clone(),
                arguments: vec![file.into_os_string()],
                user: None,
                is_ready: Box::new(move || answers_ping(port)),
            })
        })?;
        Ok(Self { server })
    }
}

fn program() -> Result<PathBuf, Unavailable> {
    locate::program(SERVICE, &["FLAMES_TEST_REDIS_PROGRAM"], "redis-server")
}

/// `+PONG`, or an error: `-LOADING` while it reads its file, `-NOAUTH` when a setting asks for a password, which proves that
/// it serves too.
fn answers_ping(port: u16) -> Result<(), String> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = http::connect(port)?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = vec![0; 7];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    match ask() {
        Ok(answer) if answer.starts_with(b"+PONG") || answer.starts_with(b"-NOAUTH") => Ok(()),
        Ok(answer) => Err(format!("it answers PING with {:?}", String::from_utf8_lossy(&answer))),
        Err(error) => Err(format!("it does not answer PING: {error}")),
    }
}
