//! The network between a store and its server, as the suite orders it to break.

use std::net::SocketAddr;

use async_trait::async_trait;
use flames_state_conformance::Faults;
use flames_test_servers::CutProxy;

/// See [`CutProxy`].
#[derive(Debug)]
pub struct Network(CutProxy);

impl Network {
    pub async fn before(upstream: SocketAddr) -> Self {
        Self(CutProxy::before(upstream).await.unwrap())
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// As [`Faults::heal`], where nothing can be awaited.
    pub fn heal_now(&self) {
        self.0.heal_now();
    }
}

#[async_trait]
impl Faults for Network {
    async fn cut_connections(&self) {
        self.0.cut_connections().await;
    }
    async fn cut_after(&self, bytes: u64) {
        self.0.cut_after(bytes).await;
    }
    async fn stall(&self) {
        self.0.stall().await;
    }
    async fn stall_answers(&self) {
        self.0.stall_answers().await;
    }
    async fn heal(&self) {
        self.0.heal().await;
    }
}
