//! NATS with JetStream.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::server::{Kind, Launch, Server, common_methods, no_litter};
use crate::{Unavailable, http, locate};

const SERVICE: &str = "nats";

/// A NATS server of its own: one node, JetStream on, every write on disk before it is acknowledged (`sync_interval: always`;
/// the server's own default is every two minutes).
#[derive(Debug)]
pub struct Nats {
    server: Server,
}

common_methods!(Nats, SERVICE, program, "--version", "nats");

impl Nats {
    /// Starts it with its streams below `folder`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(folder: impl AsRef<Path>) -> Result<Self, Unavailable> {
        Self::start_with(folder, &[])
    }

    /// Like [`Self::start`], with lines for its configuration file (`max_payload: 65536`).
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(folder: impl AsRef<Path>, settings: &[&str]) -> Result<Self, Unavailable> {
        let program = program()?;
        let kind = Kind { service: SERVICE, ports: 1, end_by: Signal::KILL, litter: no_litter };
        let server = Server::start(kind, folder.as_ref(), |folder, ports| {
            let port = ports.first().copied().unwrap_or_default();
            let own = format!(
                "listen: \"127.0.0.1:{port}\"\nserver_name: \"flames-{port}\"\n\
                 jetstream {{ store_dir: \"{}\", sync_interval: always }}\n",
                folder.join("jetstream").display()
            );
            let file = folder.join("nats.conf");
            std::fs::write(&file, own + &settings.join("\n"))
                .map_err(|error| format!("{}: {error}", file.display()))?;
            Ok(Launch {
                program: program.clone(),
                arguments: vec!["--config".into(), file.into_os_string()],
                user: None,
                is_ready: Box::new(move || greets_with_jetstream(port)),
            })
        })?;
        Ok(Self { server })
    }
}

fn program() -> Result<PathBuf, Unavailable> {
    locate::program(SERVICE, &["FLAMES_TEST_NATS_PROGRAM"], "nats-server")
}

/// The server speaks first: `INFO {…,"jetstream":true,…}`.
fn greets_with_jetstream(port: u16) -> Result<(), String> {
    let mut line = String::new();
    let greeted = http::connect(port).and_then(|stream| BufReader::new(stream).read_line(&mut line));
    match greeted {
        Ok(_) if line.starts_with("INFO") && line.contains("\"jetstream\":true") => Ok(()),
        Ok(_) => Err(format!("it greets with {line:?}")),
        Err(error) => Err(format!("it does not greet: {error}")),
    }
}
