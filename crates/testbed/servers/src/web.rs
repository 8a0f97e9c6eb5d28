//! Caddy and nginx, which stand in front of others.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::server::{Kind, Launch, Server, common_methods, no_litter};
use crate::{Unavailable, http, locate};

/// A Caddy of its own with its administration API on, and nothing to serve yet. Its data, and the configuration that it
/// was given last, stay in its folder.
#[derive(Debug)]
pub struct Caddy {
    server: Server,
    http_port: u16,
}

common_methods!(Caddy, CADDY, caddy_program, "version", "http");

const CADDY: &str = "caddy";

impl Caddy {
    /// Starts it below `folder`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(folder: impl AsRef<Path>) -> Result<Self, Unavailable> {
        let program = caddy_program()?;
        let http_port = crate::free_ports(1)
            .map_err(|error| Unavailable::broken(CADDY, format!("no free port: {error}")))?
            .first()
            .copied()
            .unwrap_or_default();
        let kind = Kind { service: CADDY, ports: 1, end_by: Signal::KILL, litter: no_litter };
        let server = Server::start(kind, folder.as_ref(), |folder, ports| {
            let port = ports.first().copied().unwrap_or_default();
            let file = folder.join("caddy.json");
            let configuration = format!(r#"{{"admin":{{"listen":"127.0.0.1:{port}"}}}}"#);
            std::fs::write(&file, configuration).map_err(|error| format!("{}: {error}", file.display()))?;
            Ok(Launch {
                program: program.clone(),
                // As Debian's caddy-api.service does: what was set by the API is there again after a restart.
                arguments: vec!["run".into(), "--resume".into(), "--config".into(), file.into_os_string()],
                user: None,
                is_ready: Box::new(move || http::request(port, "GET", "/config/", "").map(drop)),
            })
        })?;
        Ok(Self { server, http_port })
    }

    /// Starts it again with all that was set by its API forgotten.
    ///
    /// # Errors
    /// When it does not serve within a minute, with the end of its log.
    pub fn restart_forgetful(&self) -> Result<(), Unavailable> {
        self.kill();
        // Where Caddy keeps it: $HOME/.config/caddy, by its manual's "Conventions".
        let saved = self.folder().join(".config/caddy/autosave.json");
        match std::fs::remove_file(&saved) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Unavailable::broken(CADDY, format!("{}: {error}", saved.display())))
            }
            _ => self.restart(),
        }
    }

    /// An address for it to serve on, free until a test tells it to.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.http_port))
    }
}

fn caddy_program() -> Result<PathBuf, Unavailable> {
    locate::program(CADDY, &["FLAMES_TEST_CADDY_PROGRAM", "FLAMES_TEST_CADDY"], "caddy")
}

/// An nginx of its own, for benches to compare with.
#[derive(Debug)]
pub struct Nginx {
    server: Server,
}

common_methods!(Nginx, NGINX, nginx_program, "-v", "http");

const NGINX: &str = "nginx";

impl Nginx {
    /// Starts it as a reverse proxy in front of `upstream`, tuned as a fair rival: one worker for each core, connections
    /// to the upstream kept, no access log, WebSocket upgrades passed on.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn proxying(folder: impl AsRef<Path>, upstream: SocketAddr) -> Result<Self, Unavailable> {
        Self::start(folder, |port| {
            format!(
                "map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
                upstream guests {{ server {upstream}; keepalive 256; }}
                server {{
                    listen 127.0.0.1:{port} reuseport backlog=4096;
                    keepalive_requests 1000000;
                    client_max_body_size 0;
                    location / {{
                        proxy_pass http://guests;
                        proxy_http_version 1.1;
                        proxy_set_header Host $host;
                        proxy_set_header Upgrade $http_upgrade;
                        proxy_set_header Connection $connection_upgrade;
                        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                        proxy_request_buffering off;
                        proxy_max_temp_file_size 0;
                        proxy_read_timeout 3600s;
                    }}
                }}"
            )
        })
    }

    /// Starts it with what `http_block` says, for the port that it is to listen on, inside of nginx's `http { … }`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(folder: impl AsRef<Path>, http_block: impl Fn(u16) -> String) -> Result<Self, Unavailable> {
        let program = nginx_program()?;
        let kind = Kind { service: NGINX, ports: 1, end_by: Signal::KILL, litter: no_litter };
        let server = Server::start(kind, folder.as_ref(), |folder, ports| {
            let port = ports.first().copied().unwrap_or_default();
            let temporary = |what: &str| format!("{what}_temp_path {}/{what};", folder.display());
            let configuration = format!(
                "daemon off;\nworker_processes auto;\nworker_rlimit_nofile 65536;\nerror_log stderr warn;\npid {}/nginx.pid;\n\
                 {}events {{ worker_connections 16384; }}\nhttp {{\naccess_log off;\n{}\n{}\n}}\n",
                folder.display(),
                // As root its workers become `nobody`, who could not enter its folder.
                if rustix::process::geteuid().is_root() { "user root;\n" } else { "" },
                ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(temporary).join("\n"),
                http_block(port),
            );
            let file = folder.join("nginx.conf");
            std::fs::write(&file, configuration).map_err(|error| format!("{}: {error}", file.display()))?;
            Ok(Launch {
                program: program.clone(),
                arguments: vec![
                    "-p".into(),
                    folder.as_os_str().to_owned(),
                    "-e".into(),
                    "stderr".into(),
                    "-c".into(),
                    file.into_os_string(),
                ],
                user: None,
                // Its upstream need not be there yet.
                is_ready: Box::new(move || http::connect(port).map(drop).map_err(|error| error.to_string())),
            })
        })?;
        Ok(Self { server })
    }
}

fn nginx_program() -> Result<PathBuf, Unavailable> {
    locate::program(NGINX, &["FLAMES_TEST_NGINX_PROGRAM"], "nginx")
}
