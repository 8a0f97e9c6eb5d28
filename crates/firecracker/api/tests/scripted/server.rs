//! A server on a unix socket that does as it is scripted.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flames_clock::SystemClock;
use flames_firecracker_api::{Client, Deadlines, Options};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// Success, as Firecracker says it.
pub(crate) const NO_CONTENT: &str =
    "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";

/// An answer with a body, as Firecracker says it.
pub(crate) fn answer(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) path: PathBuf,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Each connection is handed to the script with its number, from 0.
    pub(crate) fn start<F, Fut>(script: F) -> Self
    where
        F: Fn(Connection, usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("firecracker.socket");
        Self::listen(folder, path, script)
    }

    pub(crate) fn listen<F, Fut>(folder: TempDir, path: PathBuf, script: F) -> Self
    where
        F: Fn(Connection, usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = bind(&path);
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(script(Connection { stream }, number));
            }
        });
        Self { folder, path, accepted, task }
    }

    /// A server that answers the same to every request.
    pub(crate) fn always(reply: impl Into<String>) -> Self {
        let reply: Arc<str> = reply.into().into();
        Self::start(move |mut connection, _| {
            let reply = Arc::clone(&reply);
            async move { while connection.request().await.is_some() && connection.say(&reply).await {} }
        })
    }

    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(Options::default())
    }

    pub(crate) fn client_with(&self, options: Options) -> Client {
        Client::new(&self.path, Arc::new(SystemClock::new()), options)
    }

    /// A client that waits a moment only.
    pub(crate) fn impatient_client(&self) -> Client {
        let moment = Duration::from_millis(60);
        let deadlines = Deadlines { quick: moment, machine: moment, snapshot: 4 * moment };
        self.client_with(Options { deadlines, ..Options::default() })
    }
}

/// Binds whatever the path's length.
fn bind(path: &std::path::Path) -> UnixListener {
    use std::os::fd::AsRawFd;
    let folder = std::fs::File::open(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    UnixListener::bind(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())).unwrap()
}

pub(crate) struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// The next request, head and body; none when the client hung up.
    pub(crate) async fn request(&mut self) -> Option<String> {
        let mut read = Vec::new();
        loop {
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8(read[..end].to_vec()).unwrap();
                let length: usize = head
                    .lines()
                    .filter_map(|line| line.split_once(':'))
                    .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                    .map_or(0, |(_, value)| value.trim().parse().unwrap());
                if read.len() >= end + 4 + length {
                    assert_eq!(read.len(), end + 4 + length, "a request before the answer to the last");
                    return Some(String::from_utf8(read).unwrap());
                }
            }
            if self.stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Whether it could be said.
    pub(crate) async fn say(&mut self, text: &str) -> bool {
        self.stream.write_all(text.as_bytes()).await.is_ok()
    }

    /// Returns once the client has hung up.
    pub(crate) async fn hung_up(&mut self) {
        let mut rest = [0; 256];
        while self.stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    }
}
