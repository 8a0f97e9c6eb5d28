//! What Flames is compared with: a handler that decodes and encodes the same JSON and does nothing else, on the same server.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use flames_transport_http::{ServeConfig, serve_tcp};
use flames_wire::{CreateVm, Vm};
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The running handler.
pub(crate) struct Bare {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Bare {
    /// Answers each request to create a VM with `like`, under the labels that came.
    pub(crate) async fn start(like: Vm) -> anyhow::Result<Self> {
        let router = Router::new().route("/v1/vms", post(answer)).with_state(Arc::new(like));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve_tcp(listener, router, ServeConfig::default(), stop.clone()));
        Ok(Self { address, stop, serving })
    }

    pub(crate) async fn shutdown(self) -> anyhow::Result<()> {
        self.stop.cancel();
        Ok(self.serving.await?)
    }
}

async fn answer(State(like): State<Arc<Vm>>, Json(create): Json<CreateVm>) -> (StatusCode, Json<Vm>) {
    let mut vm = Vm::clone(&like);
    vm.labels = create.labels;
    (StatusCode::ACCEPTED, Json(vm))
}
