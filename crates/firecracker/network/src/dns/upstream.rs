//! Asking the configured resolvers, from the host's namespace.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{Random, RandomExt};
use flames_error::{Error, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use super::message::{Query, Response};
use super::reply::LARGEST_DATAGRAM;
use crate::kernel::namespace::Namespace;
use crate::kernel::{on_own_thread, refused};

/// The resolvers, and how they are reached.
#[derive(Debug)]
pub(crate) struct Upstream {
    resolvers: Vec<SocketAddr>,
    deadline: Duration,
    /// Where sockets are made; none: where this process is.
    namespace: Option<Arc<Namespace>>,
    random: Arc<dyn Random>,
}

impl Upstream {
    pub(crate) fn new(
        resolvers: Vec<SocketAddr>,
        deadline: Duration,
        namespace: Option<Arc<Namespace>>,
        random: Arc<dyn Random>,
    ) -> Self {
        Self { resolvers, deadline, namespace, random }
    }

    /// The answer of the first resolver that gives one in time. Each query goes out under an id of its own and from a port of
    /// its own, both random; an answer counts only from the address asked, under that id, to that question (RFC 5452).
    ///
    /// Cancel-safe. Errors: `Unavailable` when none answers.
    pub(crate) async fn ask(&self, query: &Query) -> Result<Response> {
        let mut last = None;
        for resolver in &self.resolvers {
            match timeout(self.deadline, self.ask_one(*resolver, query)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => last = Some(error),
                Err(_) => {}
            }
        }
        let error = Error::unavailable("network.dns", "no resolver answers");
        Err(match last {
            Some(cause) => error.with_source(cause),
            None => error,
        })
    }

    async fn ask_one(&self, resolver: SocketAddr, query: &Query) -> Result<Response> {
        let failed = |error: io::Error| refused("network.dns", "asking a resolver", error);
        let [high, low] = self.random.bytes::<2>();
        let id = u16::from_be_bytes([high, low]);
        let question = query.for_upstream(id, LARGEST_DATAGRAM);
        let socket = std::net::UdpSocket::from(self.socket(resolver, SocketType::DGRAM).await?);
        let socket = UdpSocket::from_std(socket).map_err(failed)?;
        socket.connect(resolver).await.map_err(failed)?;
        socket.send(&question).await.map_err(failed)?;
        let mut buffer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await.map_err(failed)?;
            // Another's guess at an answer is passed over, up to the deadline.
            match Response::read(buffer.get(..length).unwrap_or_default(), id, query) {
                Some(response) if response.truncated => break,
                Some(response) => return Ok(response),
                None => {}
            }
        }
        self.ask_over_tcp(resolver, id, &question, query).await
    }

    async fn ask_over_tcp(
        &self,
        to: SocketAddr,
        id: u16,
        question: &[u8],
        query: &Query,
    ) -> Result<Response> {
        let failed = |error: io::Error| refused("network.dns", "asking a resolver over TCP", error);
        let socket = std::net::TcpStream::from(self.socket(to, SocketType::STREAM).await?);
        let mut stream = TcpSocket::from_std_stream(socket).connect(to).await.map_err(failed)?;
        let mut message = u16::try_from(question.len()).unwrap_or_default().to_be_bytes().to_vec();
        message.extend(question);
        stream.write_all(&message).await.map_err(failed)?;
        let length = stream.read_u16().await.map_err(failed)?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.map_err(failed)?;
        Response::read(&answer, id, query)
            .filter(|response| !response.truncated)
            .ok_or_else(|| Error::unavailable("network.dns", "a resolver's answer cannot be read"))
    }

    /// A socket that is not connected, in the host's namespace.
    async fn socket(&self, to: SocketAddr, kind: SocketType) -> Result<OwnedFd> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let open = move || {
            socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
                .map_err(|error| refused("network.dns", "opening a socket", error.into()))
        };
        match &self.namespace {
            None => open(),
            Some(namespace) => {
                let namespace = Arc::clone(namespace);
                flames_host::blocking(move || {
                    on_own_thread(|| {
                        namespace.enter()?;
                        open()
                    })
                })
                .await
            }
        }
    }
}
