//! A real Caddy, in a folder of its own: its admin API and its server listen on unix sockets there, so no port is taken.

#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use flames_conformance_runner::Unavailable;
use flames_ingress_caddy::{AdminAddress, CaddyConfig, CaddyIngress};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::process::{Child, Command};

const VARIABLE: &str = "FLAMES_TEST_CADDY";

/// Why these tests cannot run here.
pub fn unavailable() -> Option<Unavailable> {
    std::env::var_os(VARIABLE).is_none().then(|| Unavailable {
        service: "caddy".to_owned(),
        reason: format!("{VARIABLE} (the path of a Caddy binary) is not set"),
    })
}

pub struct Caddy {
    pub folder: TempDir,
    process: Child,
}

impl Caddy {
    /// Starts one whose configuration has `apps`.
    pub async fn start(apps: Value) -> Self {
        let folder = tempfile::Builder::new().prefix("flames-caddy").tempdir().unwrap();
        let process = Self::spawn(folder.path(), apps).await;
        Self { folder, process }
    }

    async fn spawn(folder: &Path, apps: Value) -> Child {
        let config = json!({
            "admin": { "listen": format!("unix/{}", folder.join("admin").display()), "config": { "persist": false } },
            "storage": { "module": "file_system", "root": folder.join("storage") },
            "logging": { "logs": { "default": { "level": "ERROR" } } },
            "apps": apps,
        });
        let file = folder.join("caddy.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let process = Command::new(std::env::var_os(VARIABLE).unwrap())
            .args(["run", "--config"])
            .arg(&file)
            .env_clear()
            .env("HOME", folder)
            .env("XDG_CONFIG_HOME", folder)
            .env("XDG_DATA_HOME", folder)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let started = Instant::now();
        while UnixStream::connect(folder.join("admin")).await.is_err() {
            let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(started.elapsed() < Duration::from_secs(30), "Caddy does not start: {log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        process
    }

    /// Kills it, and starts it again with nothing but `apps`.
    pub async fn restart(&mut self, apps: Value) {
        self.process.kill().await.unwrap();
        let _ = std::fs::remove_file(self.folder.path().join("admin"));
        let _ = std::fs::remove_file(self.folder.path().join("server"));
        self.process = Self::spawn(self.folder.path(), apps).await;
    }

    pub async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    pub fn admin(&self) -> PathBuf {
        self.folder.path().join("admin")
    }

    pub fn listen(&self) -> String {
        format!("unix/{}", self.folder.path().join("server").display())
    }

    pub fn config(&self) -> CaddyConfig {
        CaddyConfig::new(AdminAddress::Unix(self.admin()), "vms.example", self.listen())
    }

    pub fn ingress(&self) -> CaddyIngress {
        CaddyIngress::new(self.config()).unwrap()
    }

    /// A request of the admin API: status and body.
    pub async fn ask_admin(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        // A change makes Caddy serve its admin API anew: who asks in that moment may be hung up on. A question can be asked again.
        let asked = Instant::now();
        loop {
            if let Some((status, body)) = exchange(&self.admin(), &request).await {
                return (status, serde_json::from_str(&body).unwrap_or(Value::Null));
            }
            assert!(
                method == "GET" && asked.elapsed() < Duration::from_secs(20),
                "no answer to {method} {path}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// GET `/` of a host through Caddy: status and body.
    pub async fn get(&self, host: &str) -> (u16, String) {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        exchange(&self.folder.path().join("server"), &request).await.expect("no answer")
    }
}

/// None: the connection was closed without an answer.
async fn exchange(socket: &Path, request: &str) -> Option<(u16, String)> {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    read.expect("no answer").ok()?;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head[9..12].parse().unwrap(), body.to_owned()))
}

/// A target that answers with its name. Ends with the test's process.
pub async fn target(name: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}
