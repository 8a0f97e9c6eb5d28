//! The suite, on the proxy.

use std::process::ExitCode;
use std::sync::Arc;

use flames_ingress::{Dial, Duplex, IngressCapabilities, IngressProvider};
use flames_ingress_conformance::{Fixture, Harness, async_trait};
use flames_ingress_proxy::{Hooks, Proxy, ProxyConfig};
use futures::future::BoxFuture;

/// The suite is about the table: no case dials.
#[derive(Debug)]
struct NoGuests;

impl Dial for NoGuests {
    fn dial(&self, incarnation: &str, _: u16) -> BoxFuture<'_, flames_error::Result<Box<dyn Duplex>>> {
        let error = flames_error::Error::not_found("test.dial", "incarnation", incarnation);
        Box::pin(async { Err(error) })
    }
}

struct WithGuests;

struct Running(Arc<Proxy>);

#[async_trait]
impl Harness<dyn Fixture> for WithGuests {
    fn name(&self) -> &'static str {
        "proxy"
    }
    #[allow(clippy::expect_used)]
    async fn fresh(&self) -> Box<dyn Fixture> {
        let config = ProxyConfig::new(([127, 0, 0, 1], 0).into(), "vms.example");
        let hooks = Hooks { dial: Some(Arc::new(NoGuests)), ..Hooks::default() };
        Box::new(Running(Arc::new(Proxy::start(config, hooks).await.expect("a free port"))))
    }
}

impl Fixture for Running {
    fn ingress(&self) -> Arc<dyn IngressProvider> {
        self.0.clone()
    }
}

fn main() -> ExitCode {
    flames_ingress_conformance::run(WithGuests, IngressCapabilities { forwards: true, guest_targets: true })
}
