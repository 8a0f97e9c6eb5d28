//! Backends, clients and a proxy between them, all on loopback.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flames_ingress::{IngressProvider, Registration, Route, RouteKey, RouteOwner, Target};
use flames_ingress_proxy::{AccessLog, AccessRecord, Hooks, Proxy, ProxyConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub const DOMAIN: &str = "vms.example";

/// Long enough for anything that is to happen on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Runs `future`, which must end soon.
pub async fn soon<F: Future>(future: F) -> F::Output {
    timeout(SOON, future).await.expect("it takes too long")
}

/// Tries until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Keeps all records.
#[derive(Debug, Default, Clone)]
pub struct Records(Arc<Mutex<Vec<AccessRecord>>>);

impl AccessLog for Records {
    fn record(&self, record: AccessRecord) {
        self.0.lock().unwrap().push(record);
    }
}

impl Records {
    pub fn all(&self) -> Vec<AccessRecord> {
        self.0.lock().unwrap().clone()
    }
}

/// One worker, so that connections to targets can be counted: each worker has its own.
pub fn config() -> ProxyConfig {
    ProxyConfig { workers: 1, ..ProxyConfig::new(([127, 0, 0, 1], 0).into(), DOMAIN) }
}

/// A proxy with `change` made to its configuration.
pub async fn proxy_with(change: impl FnOnce(&mut ProxyConfig), hooks: Hooks) -> Proxy {
    let mut config = config();
    change(&mut config);
    Proxy::start(config, hooks).await.unwrap()
}

/// A proxy where `a.example` leads to `target`, as port 80 of `vm_a`.
pub async fn proxy_to(target: SocketAddr, change: impl FnOnce(&mut ProxyConfig)) -> Proxy {
    let proxy = proxy_with(change, Hooks::default()).await;
    route(&proxy, "vm_a", 80, &["a.example"], target).await;
    proxy
}

pub fn key(vm: &str, port: u16) -> RouteKey {
    RouteKey { vm: RouteOwner::new(vm).unwrap(), port }
}

pub async fn route(proxy: &Proxy, vm: &str, port: u16, hosts: &[&str], target: SocketAddr) -> Registration {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    proxy.register(Route { key: key(vm, port), hosts }, Target::Address(target)).await.unwrap()
}

/// A server that ends with the test.
pub struct Backend {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server whose connections are handled by `handle`, which is told their number, from 0.
pub async fn backend<F, Handled>(handle: F) -> Backend
where
    F: Fn(TcpStream, usize) -> Handled + Send + 'static,
    Handled: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            connections.spawn(handle(stream, number));
        }
    });
    Backend { address, task }
}

/// A request as a backend reads it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub head: String,
    pub body: Vec<u8>,
    /// Which connection of the backend it came by, from 0.
    pub connection: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }
}

/// A plain HTTP/1.1 server: `answer` gives the raw bytes of each response.
pub async fn http_backend(answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> Backend {
    let answer = Arc::new(answer);
    backend(move |mut stream, connection| {
        let answer = Arc::clone(&answer);
        async move {
            let mut buffer = Vec::new();
            while let Some((head, body)) = read_message(&mut stream, &mut buffer, false).await {
                let bytes = answer(&Asked { head, body, connection });
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// 200 with `body`.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A backend that answers with its name, and the number of the connection.
pub async fn named(name: &'static str) -> Backend {
    http_backend(move |asked| ok(&format!("{name} {}", asked.connection))).await
}

pub fn header(head: &str, name: &str) -> Option<String> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// Reads one HTTP/1 message: head, and body by its framing (raw when chunked). None when there is no whole one.
pub async fn read_message<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut Vec<u8>,
    is_bodiless: bool,
) -> Option<(String, Vec<u8>)> {
    let find = |buffer: &[u8], what: &[u8]| buffer.windows(what.len()).position(|window| window == what);
    let mut more = async |buffer: &mut Vec<u8>| stream.read_buf(buffer).await.is_ok_and(|read| read > 0);
    let end = loop {
        if let Some(end) = find(buffer, b"\r\n\r\n") {
            break end + 4;
        }
        if !more(buffer).await {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
    let is_answer = head.starts_with("HTTP/");
    let has_none = is_bodiless
        || (is_answer && [" 204", " 304", " 100", " 101"].iter().any(|s| head[8..].starts_with(s)));
    if has_none {
        return Some((head, Vec::new()));
    }
    if header(&head, "transfer-encoding").is_some() {
        let end = loop {
            // The last chunk, then trailers up to an empty line.
            let last = if buffer.starts_with(b"0\r\n") {
                Some(0)
            } else {
                find(buffer, b"\r\n0\r\n").map(|at| at + 2)
            };
            if let Some(end) = last.and_then(|at| find(&buffer[at..], b"\r\n\r\n").map(|end| at + end + 4)) {
                break end;
            }
            if !more(buffer).await {
                return None;
            }
        };
        return Some((head, buffer.drain(..end).collect()));
    }
    match header(&head, "content-length") {
        Some(length) => {
            let length: usize = length.parse().unwrap();
            while buffer.len() < length {
                if !more(buffer).await {
                    return None;
                }
            }
            Some((head, buffer.drain(..length).collect()))
        }
        None if is_answer => {
            while more(buffer).await {}
            Some((head, std::mem::take(buffer)))
        }
        None => Some((head, Vec::new())),
    }
}

/// What an HTTP/1 client got.
#[derive(Debug, Clone)]
pub struct Got {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Got {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }
    pub fn problem(&self) -> Option<String> {
        self.header("flames-problem")
    }
}

/// A client that writes what it likes.
pub struct Client<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(proxy: &Proxy) -> Self {
        let stream = TcpStream::connect(proxy.addresses()[0]).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next response, or none when the connection ends before it is whole.
    pub async fn try_read(&mut self, is_bodiless: bool) -> Option<Got> {
        let (head, body) = soon(read_message(&mut self.stream, &mut self.buffer, is_bodiless)).await?;
        let status = head[9..12].parse().unwrap();
        Some(Got { status, head, body })
    }

    pub async fn read(&mut self) -> Got {
        self.try_read(false).await.expect("the connection ended without a response")
    }

    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Got {
        self.send(request).await;
        self.read().await
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Got {
        self.ask(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await
    }

    /// Whether the proxy ends the connection soon, with nothing more to read.
    pub async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        let read = timeout(SOON, self.stream.read_to_end(&mut rest)).await;
        match read {
            Ok(outcome) => outcome.is_err() || (rest.is_empty() && self.buffer.is_empty()),
            Err(_) => false,
        }
    }
}

/// One GET on a connection of its own.
pub async fn get(proxy: &Proxy, host: &str) -> Got {
    Client::connect(proxy).await.get(host, "/").await
}

/// An HTTP/2 client by prior knowledge.
pub async fn http2_client<S>(
    stream: S,
) -> hyper::client::conn::http2::SendRequest<
    http_body_util::combinators::BoxBody<bytes::Bytes, std::convert::Infallible>,
>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub fn empty() -> http_body_util::combinators::BoxBody<bytes::Bytes, std::convert::Infallible> {
    http_body_util::combinators::BoxBody::new(http_body_util::Empty::new())
}
