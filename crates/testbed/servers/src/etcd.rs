//! etcd.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::server::{Kind, Launch, Server, common_methods, no_litter};
use crate::{Unavailable, http, locate};

const SERVICE: &str = "etcd";

/// An etcd of its own: one member, no TLS, no authentication.
#[derive(Debug)]
pub struct Etcd {
    server: Server,
}

common_methods!(Etcd, SERVICE, program, "--version", "http");

impl Etcd {
    /// Starts it with its data below `folder`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(folder: impl AsRef<Path>) -> Result<Self, Unavailable> {
        Self::start_with(folder, &[])
    }

    /// Like [`Self::start`], with arguments (`--quota-backend-bytes=16777216`).
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(folder: impl AsRef<Path>, arguments: &[&str]) -> Result<Self, Unavailable> {
        let program = program()?;
        let kind = Kind { service: SERVICE, ports: 2, end_by: Signal::KILL, litter: no_litter };
        let server = Server::start(kind, folder.as_ref(), |folder, ports| {
            let client = ports.first().copied().unwrap_or_default();
            let peer = ports.get(1).copied().unwrap_or_default();
            let own = [
                "--name=flames".to_owned(),
                format!("--listen-client-urls=http://127.0.0.1:{client}"),
                format!("--advertise-client-urls=http://127.0.0.1:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-cluster=flames=http://127.0.0.1:{peer}"),
                "--logger=zap".to_owned(),
            ];
            let mut all: Vec<OsString> = vec!["--data-dir".into(), folder.join("data").into_os_string()];
            all.extend(own.into_iter().map(OsString::from));
            all.extend(arguments.iter().map(OsString::from));
            Ok(Launch {
                program: program.clone(),
                arguments: all,
                user: None,
                is_ready: Box::new(move || is_healthy(client)),
            })
        })?;
        Ok(Self { server })
    }
}

fn program() -> Result<PathBuf, Unavailable> {
    locate::program(SERVICE, &["FLAMES_TEST_ETCD_PROGRAM"], "etcd")
}

fn is_healthy(port: u16) -> Result<(), String> {
    let health = http::request(port, "GET", "/health", "")?;
    // 3.4 writes the value as a text, later ones too.
    if health.contains("\"true\"") { Ok(()) } else { Err(format!("/health says {health}")) }
}
