//! The suite, on a real Caddy.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::ExitCode;
use std::sync::Arc;

use flames_ingress::{IngressCapabilities, IngressProvider};
use flames_ingress_caddy::CaddyIngress;
use flames_ingress_conformance::{Fixture, Harness, Unavailable, async_trait};
use serde_json::json;
use support::Caddy;

struct Real;

struct Running {
    ingress: Arc<CaddyIngress>,
    _caddy: Caddy,
}

#[async_trait]
impl Harness<dyn Fixture> for Real {
    fn name(&self) -> &'static str {
        "caddy"
    }
    fn unavailable(&self) -> Option<Unavailable> {
        support::unavailable()
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        let caddy = Caddy::start(json!({})).await;
        Box::new(Running { ingress: Arc::new(caddy.ingress()), _caddy: caddy })
    }
}

impl Fixture for Running {
    fn ingress(&self) -> Arc<dyn IngressProvider> {
        self.ingress.clone()
    }
}

fn main() -> ExitCode {
    flames_ingress_conformance::run(Real, IngressCapabilities { forwards: true, guest_targets: false })
}
