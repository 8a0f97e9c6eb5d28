//! A server to be proxied and a client to ask with, both as small as HTTP/1.1 over TCP allows, so that the machine's time goes to what
//! stands between them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The body of a short answer.
const BODY: usize = 1_024;
/// The longest head that is read.
const MAX_HEAD: usize = 16 * 1_024;
/// No answer takes longer than this.
const DEADLINE: Duration = Duration::from_secs(120);

/// What stands behind the proxies: a KiB for `/`, so many bytes for `/bytes/N`, and an open connection for an upgrade. Ends when dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Upstream {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            // Its connections end with the proxies that made them.
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // A connection that breaks is the proxy's to tell.
                    let _ = answer(connection).await;
                });
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut connection: TcpStream) -> Result<()> {
    connection.set_nodelay(true)?;
    let short = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n{}", "x".repeat(BODY));
    let mut buffer = Vec::with_capacity(4_096);
    while let Some(head) = read_head(&mut connection, &mut buffer).await? {
        let path = head.split(' ').nth(1).unwrap_or_default();
        if has(&head, "upgrade: websocket") {
            let agreed =
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n";
            connection.write_all(agreed.as_bytes()).await?;
            let mut chunk = [0; 64];
            while connection.read(&mut chunk).await? > 0 {}
            return Ok(());
        }
        match path.strip_prefix("/bytes/").and_then(|size| size.parse::<u64>().ok()) {
            Some(size) => {
                connection
                    .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n").as_bytes())
                    .await?;
                let chunk = vec![0x5a; 256 * 1_024];
                let mut left = size;
                while left > 0 {
                    let part = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
                    connection.write_all(chunk.get(..part).unwrap_or_default()).await?;
                    left -= part as u64;
                }
            }
            None => connection.write_all(short.as_bytes()).await?,
        }
    }
    Ok(())
}

fn has(head: &str, header: &str) -> bool {
    head.to_ascii_lowercase().contains(header)
}

/// A head up to its empty line, taken out of the buffer. None when the other side ended before one.
async fn read_head(connection: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<String>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = buffer.drain(..end + 4).collect();
            return Ok(Some(String::from_utf8(head)?));
        }
        ensure!(buffer.len() < MAX_HEAD, "a head without end");
        if connection.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// A connection to a proxy that is kept.
pub(crate) struct Client {
    connection: TcpStream,
    buffer: Vec<u8>,
    host: String,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, host: &str) -> Result<Self> {
        let connection = TcpStream::connect(address).await?;
        connection.set_nodelay(true)?;
        Ok(Self { connection, buffer: Vec::with_capacity(8_192), host: host.to_owned() })
    }

    /// Asks, and reads the whole answer; tells its status and size.
    pub(crate) async fn get(&mut self, path: &str) -> Result<(u16, u64)> {
        tokio::time::timeout(DEADLINE, self.get_in_time(path)).await.context("no answer in time")?
    }

    async fn get_in_time(&mut self, path: &str) -> Result<(u16, u64)> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        self.connection.write_all(request.as_bytes()).await?;
        let head =
            read_head(&mut self.connection, &mut self.buffer).await?.context("the connection ended")?;
        let status = status(&head)?;
        let size = head
            .lines()
            .find_map(|line| {
                line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            })
            .and_then(|(_, value)| value.trim().parse::<u64>().ok())
            .context("an answer without a length")?;
        let mut left = size;
        let mut chunk = vec![0; if size > 65_536 { 256 * 1_024 } else { 2_048 }];
        let kept = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
        self.buffer.drain(..kept);
        left -= kept as u64;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            let read = self.connection.read(chunk.get_mut(..most).unwrap_or_default()).await?;
            ensure!(read > 0, "the answer broke off");
            left -= read as u64;
        }
        Ok((status, size))
    }

    /// Makes the connection a WebSocket, to be held.
    pub(crate) async fn upgrade(mut self) -> Result<Self> {
        let request = format!(
            "GET /socket HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.host
        );
        self.connection.write_all(request.as_bytes()).await?;
        let head = read_head(&mut self.connection, &mut self.buffer);
        let head = tokio::time::timeout(DEADLINE, head).await??.context("the connection ended")?;
        match status(&head)? {
            101 => Ok(self),
            other => bail!("no upgrade: {other}"),
        }
    }
}

fn status(head: &str) -> Result<u16> {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("an answer without a status")
}
