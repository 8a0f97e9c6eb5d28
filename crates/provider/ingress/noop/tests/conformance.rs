//! The suite, on the no-op.

use std::process::ExitCode;
use std::sync::Arc;

use flames_ingress::{IngressCapabilities, IngressProvider};
use flames_ingress_conformance::{Fixture, Harness, Time, async_trait};
use flames_ingress_noop::NoopIngress;

struct Noop;

struct Fresh(Arc<NoopIngress>);

#[async_trait]
impl Harness<dyn Fixture> for Noop {
    fn name(&self) -> &'static str {
        "noop"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Fresh(Arc::new(NoopIngress::new())))
    }
}

impl Fixture for Fresh {
    fn ingress(&self) -> Arc<dyn IngressProvider> {
        self.0.clone()
    }
}

fn main() -> ExitCode {
    flames_ingress_conformance::run(Noop, IngressCapabilities { forwards: false, guest_targets: true })
}
