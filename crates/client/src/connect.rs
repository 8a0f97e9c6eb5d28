//! Where the API is: a TCP address, with or without TLS, or a unix socket.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;
use tower::Service;

use crate::tls::{TlsAddress, Trust};

/// An address to dial.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    /// `host:port`.
    Tcp(Arc<str>),
    /// TLS over TCP.
    Tls(Arc<TlsAddress>),
    /// A unix socket.
    Unix(Arc<PathBuf>),
}

impl Address {
    /// `host:port`, at which a certificate for `name` is expected. None when that can be no certificate's name.
    pub(crate) fn tls(address: &str, name: &str, trust: &Trust) -> Option<Self> {
        TlsAddress::new(address, name, trust).map(Arc::new).map(Self::Tls)
    }

    pub(crate) fn dial(&self) -> BoxFuture<'static, std::io::Result<Socket>> {
        let address = self.clone();
        Box::pin(async move {
            match address {
                Self::Tcp(address) => {
                    let stream = TcpStream::connect(&*address).await?;
                    stream.set_nodelay(true)?;
                    Ok(Socket::Tcp(TokioIo::new(stream)))
                }
                Self::Tls(tls) => Ok(Socket::Tls(TokioIo::new(Box::new(tls.dial().await?)))),
                Self::Unix(path) => Ok(Socket::Unix(TokioIo::new(UnixStream::connect(&*path).await?))),
            }
        })
    }

    /// The authority that stands in requests.
    pub(crate) fn authority(&self) -> &str {
        match self {
            Self::Tcp(address) => address,
            Self::Tls(tls) => &tls.address,
            Self::Unix(_) => "localhost",
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TokioIo<TcpStream>),
    Tls(TokioIo<Box<TlsStream<TcpStream>>>),
    Unix(TokioIo<UnixStream>),
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl Write for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// Dials the one address, whatever the request's URI says.
#[derive(Debug, Clone)]
pub(crate) struct Connector(pub(crate) Address);

impl Service<http::Uri> for Connector {
    type Response = Socket;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<Socket>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: http::Uri) -> Self::Future {
        self.0.dial()
    }
}
