//! Putting a router on a socket.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use flames_error::{Error, ErrorKind, Result};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::access::Peer;

/// How connections are served.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// The most connections at once. Further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// How long a client may take to send a request's headers, also between two requests.
    pub header_timeout: Duration,
    /// The most bytes of a request's headers.
    pub max_header_bytes: usize,
    /// How long connections have to finish what they began when the server stops.
    pub drain: Duration,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            max_connections: 4_096,
            header_timeout: Duration::from_secs(30),
            max_header_bytes: 64 * 1024,
            drain: Duration::from_secs(10),
        }
    }
}

/// How long accepting pauses after it failed, mostly because no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves a router over TCP until `stop`, and returns once every connection is gone. Use a router made with
/// [`Access::Token`](crate::Access::Token).
pub async fn serve_tcp(listener: TcpListener, router: Router, config: ServeConfig, stop: CancellationToken) {
    serve(Listener::Tcp(listener), router, config, stop).await;
}

/// Serves a router over TLS until `stop`, and returns once every connection is gone. The acceptor shows the server's certificate.
pub async fn serve_tls(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
    config: ServeConfig,
    stop: CancellationToken,
) {
    serve(Listener::Tls(listener, acceptor), router, config, stop).await;
}

/// Serves a router over a unix socket until `stop`, and returns once every connection is gone. Each request carries the [`Peer`] that the
/// kernel names; use a router made with [`Access::Peer`](crate::Access::Peer).
pub async fn serve_unix(
    listener: UnixListener,
    router: Router,
    config: ServeConfig,
    stop: CancellationToken,
) {
    serve(Listener::Unix(listener), router, config, stop).await;
}

enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    Unix(UnixListener),
}

enum Socket {
    Tcp(TcpStream),
    /// Not shaken hands on yet.
    Tls(TcpStream, TlsAcceptor),
    Unix(UnixStream, Peer),
}

impl Listener {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are small and awaited: waiting to fill a packet only costs time.
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Tls(listener, acceptor) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tls(stream, acceptor.clone()))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred()?.uid();
                Ok(Socket::Unix(stream, Peer { uid }))
            }
        }
    }
}

async fn serve(listener: Listener, router: Router, config: ServeConfig, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(config.max_connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = async {
                let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|socket| (socket, place))
            } => accepted,
        };
        match accepted {
            Ok((socket, place)) => {
                let (router, config, stop) = (router.clone(), config.clone(), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    match socket {
                        Socket::Tcp(stream) => connection(stream, None, router, &config, stop).await,
                        Socket::Tls(stream, acceptor) => {
                            // As long as a client may take for its headers.
                            match tokio::time::timeout(config.header_timeout, acceptor.accept(stream)).await {
                                Ok(Ok(stream)) => connection(stream, None, router, &config, stop).await,
                                Ok(Err(error)) => tracing::debug!(%error, "a client did not speak TLS"),
                                Err(_) => {}
                            }
                        }
                        Socket::Unix(stream, peer) => {
                            connection(stream, Some(peer), router, &config, stop).await;
                        }
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Who calls from now on is told at once that nobody listens, and may call another server.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection<S>(
    stream: S,
    peer: Option<Peer>,
    router: Router,
    config: &ServeConfig,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = tower::service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let mut router = router.clone();
        async move {
            let response: std::result::Result<Response<Body>, Infallible> = router.call(request).await;
            response
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(config.max_header_bytes.max(8 * 1024))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        biased;
        served = &mut connection => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(config.drain, connection).await {
                Ok(served) => served,
                // It had its time; dropping it closes it.
                Err(_) => return,
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// Binds a unix socket that only its owner may open (mode 0600). What a server that was killed left at the path is removed; a socket on
/// which somebody answers is not.
///
/// Errors: `AlreadyExists` when somebody answers or something else is there; `Unavailable`.
pub async fn bind_unix(path: &Path) -> Result<UnixListener> {
    const OPERATION: &str = "http.bind_unix";
    let failed = |message: &'static str| {
        move |error: io::Error| Error::unavailable(OPERATION, message).with_source(error)
    };
    let taken = |message: &'static str| {
        Error::new(ErrorKind::AlreadyExists, OPERATION, message)
            .with_context("path", path.display())
            .with_user_message(format!("{}: {message}.", path.display()))
    };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(taken("there is something that is no socket"));
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(taken("another server answers there"));
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed("the old socket cannot be removed"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("the socket's place cannot be looked at")(error)),
    }
    // Between binding and chmod the mode is the umask's; the check of the peer's user holds in that moment too.
    let listener = UnixListener::bind(path).map_err(failed("the socket cannot be bound"))?;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).map_err(failed("the socket's mode cannot be set"))?;
    Ok(listener)
}
