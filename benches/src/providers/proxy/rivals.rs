//! The three proxies, each in processes of its own, and what those use.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flames_test_servers::{Caddy, Nginx};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The host name that is asked for.
pub(crate) const HOST: &str = "8080-vm_0.bench.test";

/// A proxy in front of the upstream.
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// The process group that it runs in.
    group: u32,
    _process: Process,
}

/// What ends with the measurement.
enum Process {
    Ours { _child: Ours },
    Nginx { _server: Nginx },
    Caddy { _server: Caddy },
}

struct Ours(Child);

impl Drop for Ours {
    fn drop(&mut self) {
        // It ends at the end of its input; this is for one that does not. Either may come first.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Rival {
    /// This program as the embedded proxy alone, with so many routes to the upstream.
    pub(crate) fn ours(upstream: SocketAddr, routes: usize) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["proxy-server", "--upstream", &upstream.to_string(), "--routes", &routes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let output = child.stdout.take().context("its output")?;
        let group = child.id();
        let ours = Ours(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("the proxy told {line:?}"))?;
        Ok(Self { name: "flames", address, group, _process: Process::Ours { _child: ours } })
    }

    pub(crate) fn nginx(folder: &std::path::Path, upstream: SocketAddr) -> Result<Self> {
        let server = Nginx::proxying(folder, upstream)?;
        let group = server.pid().context("nginx's process")?;
        Ok(Self {
            name: "nginx",
            address: server.address(),
            group,
            _process: Process::Nginx { _server: server },
        })
    }

    pub(crate) async fn caddy(folder: &std::path::Path, upstream: SocketAddr) -> Result<Self> {
        let server = Caddy::start(folder)?;
        let address = server.http_address();
        let configuration = serde_json::json!({
            "admin": { "listen": server.address().to_string() },
            "apps": { "http": { "servers": { "bench": {
                "listen": [address.to_string()],
                "automatic_https": { "disable": true },
                "routes": [{ "handle": [{
                    "handler": "reverse_proxy",
                    "upstreams": [{ "dial": upstream.to_string() }],
                    "transport": { "protocol": "http", "keep_alive": { "max_idle_conns_per_host": 256 } },
                }] }],
            } } } },
        });
        load_configuration(server.address(), &serde_json::to_vec(&configuration)?).await?;
        let group = server.pid().context("Caddy's process")?;
        Ok(Self { name: "caddy", address, group, _process: Process::Caddy { _server: server } })
    }

    /// What its processes have used of processors so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        // Ticks of user and system time (proc(5), /proc/pid/stat, fields 14 and 15).
        let ticks: u64 = self.stats()?.iter().map(|stat| stat.ticks).sum();
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// The memory that its processes have, in KiB.
    pub(crate) fn memory_kib(&self) -> Result<u64> {
        let pages: u64 = self.stats()?.iter().map(|stat| stat.pages).sum();
        Ok(pages * rustix::param::page_size() as u64 / 1_024)
    }

    fn stats(&self) -> Result<Vec<Stat>> {
        let mut stats = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path().join("stat");
            // Not a process, or one that just ended.
            let Ok(text) = std::fs::read_to_string(path) else { continue };
            if let Some(stat) = Stat::read(&text).filter(|stat| stat.group == self.group) {
                stats.push(stat);
            }
        }
        ensure!(!stats.is_empty(), "{} is gone", self.name);
        Ok(stats)
    }
}

struct Stat {
    group: u32,
    ticks: u64,
    pages: u64,
}

impl Stat {
    /// Reads a line of proc(5)'s /proc/pid/stat; the program's name, in parentheses, may hold anything.
    fn read(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            group: u32::try_from(field(5)?).ok()?,
            ticks: field(14)? + field(15)?,
            pages: field(24)?,
        })
    }
}

async fn load_configuration(admin: SocketAddr, configuration: &[u8]) -> Result<()> {
    let mut connection = TcpStream::connect(admin).await?;
    let head = format!(
        "POST /load HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        configuration.len()
    );
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(configuration).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "Caddy does not take its configuration: {answer}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name_is() {
        let text =
            "42 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 11 31 0 0 20 0 1 0 100 9999 640 18446744073709551615";
        let stat = Stat::read(text).unwrap();
        assert_eq!((stat.group, stat.ticks, stat.pages), (7, 42, 640));
    }
}
