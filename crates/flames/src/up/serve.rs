//! The listeners of the API.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use flames_transport_http::{Access, HttpApi, ServeConfig, bind_unix, serve_tcp, serve_unix};
use tokio::net::TcpListener;

use crate::data::{self, LockedFolder};
use crate::exit::{CONFLICT, Failure};

/// Accepts on a listener until it is told to stop.
pub(crate) type Serving = Pin<Box<dyn Future<Output = ()>>>;

/// The listeners. They accept while [`Served::broke`] or [`Served::shutdown`] is polled; connections have tasks of their own.
pub(crate) struct Served {
    /// Where the HTTP API is.
    pub(crate) address: SocketAddr,
    serving: Serving,
}

impl Served {
    /// Serves the API with a listener of [`bind`]'s and on the data folder's socket, and what `beside` serves.
    pub(crate) async fn start(
        api: &HttpApi,
        folder: &LockedFolder,
        token: &str,
        (listener, address): (TcpListener, SocketAddr),
        beside: Option<Serving>,
    ) -> Result<Self, Failure> {
        // The folder of a long path stays open until the socket is bound.
        let (path, _held) = data::socket_address(&folder.folder().socket_path())
            .map_err(|error| Failure::io("The API's socket cannot be made", &error))?;
        let socket = bind_unix(&path).await?;
        let access = Access::Token { token: token.to_owned(), hosts: Vec::new() };
        let stop = api.stop_token();
        let (tcp, unix) = (api.router(access), api.router(Access::Peer));
        let serving = async move {
            tokio::join!(
                serve_tcp(listener, tcp, ServeConfig::default(), stop.clone()),
                serve_unix(socket, unix, ServeConfig::default(), stop.clone()),
                async {
                    if let Some(beside) = beside {
                        beside.await;
                    }
                },
            );
        };
        Ok(Self { address, serving: Box::pin(serving) })
    }

    /// Serves. Returns only when the listeners broke down, with a sentence. Not to be polled again then.
    pub(crate) async fn broke(&mut self) -> String {
        self.serving.as_mut().await;
        "The listeners of the API broke down.".to_owned()
    }

    /// Takes no more requests, ends streams, and returns once what was under way is finished.
    pub(crate) async fn shutdown(self, api: &HttpApi) {
        api.stop_token().cancel();
        self.serving.await;
    }
}

/// Listens at an address, which `flag` chose.
pub(crate) async fn bind(listen: SocketAddr, flag: &str) -> Result<(TcpListener, SocketAddr), Failure> {
    let cannot = |error: std::io::Error| {
        let failure = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                Failure::new(CONFLICT, format!("{listen} is taken by another program."))
            }
            _ => Failure::io(format!("{listen} cannot be listened on"), &error),
        };
        failure.advise(format!("Choose another with {flag}; port 0 is any free one."))
    };
    let listener = TcpListener::bind(listen).await.map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    Ok((listener, address))
}
