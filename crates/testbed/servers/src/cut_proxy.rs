//! A network that breaks at a given byte of a connection that is open already.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Orders {
    /// Each rise ends the connections that are open.
    pub(crate) cuts: u64,
    /// Rises with every order, so that budgets are counted anew.
    number: u64,
    /// How many bytes each connection still passes.
    pub(crate) budget: Option<u64>,
    pub(crate) stalled: bool,
    pub(crate) swallows_answers: bool,
}

/// A TCP proxy that does as it was told last, also to connections that are open: what an adapter's suite needs to cut in the middle of an
/// operation. ([`FaultProxy`](crate::FaultProxy) decides by connection, and counts each direction from its first byte.) Dropped, it ends
/// with all its connections.
#[derive(Debug)]
pub struct CutProxy {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    acceptor: JoinHandle<()>,
}

impl CutProxy {
    /// On a free port of the loopback address, before `upstream`.
    ///
    /// Errors: those of the listener.
    pub async fn before(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let orders = watch::Sender::new(Orders::default());
        let seen = orders.subscribe();
        let acceptor = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                while connections.try_join_next().is_some() {}
                connections.spawn(pass(client, upstream, seen.clone()));
            }
        });
        Ok(Self { address, orders, acceptor })
    }

    /// As [`CutProxy::before`], for the server that a URL names. Answers the URL by way of the proxy as well.
    ///
    /// Errors: those of the listener, and of a URL whose server is not known.
    pub async fn before_url(url: &str) -> io::Result<(Self, String)> {
        let proxy = Self::before(crate::url::server_of(url).await?).await?;
        let through = crate::url::through(url, proxy.address);
        Ok((proxy, through))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn order_now(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_modify(|orders| {
            orders.number += 1;
            change(orders);
        });
    }

    /// As [`Faults::heal`](flames_conformance_runner::Faults::heal), where nothing can be awaited: connections hear of it a moment later.
    pub fn heal_now(&self) {
        self.order_now(|orders| {
            *orders = Orders { cuts: orders.cuts, number: orders.number, ..Orders::default() };
        });
    }

    pub(crate) async fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.order_now(change);
        // The connections' tasks see it before the case goes on.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Drop for CutProxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn pass(mut client: TcpStream, upstream: SocketAddr, mut orders: watch::Receiver<Orders>) {
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut now = *orders.borrow_and_update();
    let mut left = now.budget;
    let mut lost_answers = false;
    let (mut from_client, mut from_server) = (vec![0; 4096], vec![0; 4096]);
    loop {
        if left == Some(0) {
            return;
        }
        let (length, to_server) = tokio::select! {
            biased;
            changed = orders.changed() => {
                if changed.is_err() {
                    return;
                }
                let then = *orders.borrow_and_update();
                // What lost an answer cannot go on.
                if then.cuts != now.cuts || (lost_answers && !then.swallows_answers) {
                    return;
                }
                if then.number != now.number {
                    left = then.budget;
                }
                now = then;
                continue;
            }
            read = client.read(&mut from_client), if !now.stalled => (read.unwrap_or(0), true),
            read = server.read(&mut from_server), if !now.stalled => (read.unwrap_or(0), false),
        };
        if length == 0 {
            return;
        }
        if !to_server && now.swallows_answers {
            lost_answers = true;
            continue;
        }
        let passed = left.map_or(length, |left| length.min(usize::try_from(left).unwrap_or(usize::MAX)));
        left = left.map(|left| left.saturating_sub(passed as u64));
        let written = if to_server {
            server.write_all(&from_client[..passed]).await
        } else {
            client.write_all(&from_server[..passed]).await
        };
        if written.is_err() || passed < length {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use flames_conformance_runner::Faults;

    use super::*;

    /// A proxy before a server that echoes, with one connection through it.
    async fn echoing() -> (CutProxy, TcpStream) {
        let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = CutProxy::before(server.local_addr().unwrap()).await.unwrap();
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = server.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut read, mut write) = connection.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, client)
    }

    async fn heard(client: &mut TcpStream, said: &[u8]) -> Vec<u8> {
        let _ = client.write_all(said).await;
        let mut heard = vec![0; said.len()];
        let mut length = 0;
        while length < heard.len() {
            let reading = tokio::time::timeout(Duration::from_millis(300), client.read(&mut heard[length..]));
            match reading.await {
                Ok(Ok(read)) if read > 0 => length += read,
                _ => break,
            }
        }
        heard.truncate(length);
        heard
    }

    #[tokio::test]
    async fn an_open_connection_is_cut_after_so_many_more_bytes_and_new_ones_pass_once_healed() {
        let (proxy, mut client) = echoing().await;
        assert_eq!(heard(&mut client, b"before").await, b"before");
        proxy.cut_after(9).await;
        assert_eq!(heard(&mut client, b"behind").await, b"beh");
        proxy.heal().await;
        let mut next = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(heard(&mut next, b"again").await, b"again");
    }

    #[tokio::test]
    async fn what_is_stalled_goes_on_when_healed_and_what_lost_an_answer_ends() {
        let (proxy, mut client) = echoing().await;
        assert_eq!(heard(&mut client, b"a").await, b"a");
        proxy.stall().await;
        assert_eq!(heard(&mut client, b"b").await, b"");
        proxy.heal().await;
        assert_eq!(heard(&mut client, b"").await, b"");
        assert_eq!(client.read_u8().await.unwrap(), b'b');
        proxy.stall_answers().await;
        assert_eq!(heard(&mut client, b"c").await, b"");
        proxy.heal().await;
        assert!(client.read_u8().await.is_err());
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_open_and_nothing_else() {
        let (proxy, mut client) = echoing().await;
        assert_eq!(heard(&mut client, b"a").await, b"a");
        proxy.cut_connections().await;
        assert!(client.read_u8().await.is_err());
        let mut next = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(heard(&mut next, b"b").await, b"b");
    }
}
