//! The proxies, as the conformance suites order them to break; and what is not there, as the suites tell it.

use async_trait::async_trait;
use flames_conformance_runner::Faults;

use crate::{CutProxy, Direction, Fault, FaultProxy};

/// Both directions of a connection are counted together, from the order on: for a store whose connections live long.
#[async_trait]
impl Faults for CutProxy {
    async fn cut_connections(&self) {
        self.order(|orders| orders.cuts += 1).await;
    }
    async fn cut_after(&self, bytes: u64) {
        self.order(|orders| orders.budget = Some(bytes)).await;
    }
    async fn stall(&self) {
        self.order(|orders| orders.stalled = true).await;
    }
    /// What is swallowed is lost with its connection, which ends when healed.
    async fn stall_answers(&self) {
        self.order(|orders| orders.swallows_answers = true).await;
    }
    async fn heal(&self) {
        self.heal_now();
        self.order(|_| {}).await;
    }
}

/// A fault belongs to a connection from its first byte: those that are open make way for new ones. Requests are cut, and answers, in
/// turn.
#[async_trait]
impl Faults for FaultProxy {
    async fn cut_connections(&self) {
        self.cut_now();
    }
    async fn cut_after(&self, bytes: u64) {
        let direction = if self.is_turn_of_requests() { Direction::ToServer } else { Direction::ToClient };
        self.fail_next(Fault::CutAfter { bytes, direction });
        self.cut_now();
    }
    async fn stall(&self) {
        Self::stall(self, true);
    }
    async fn stall_answers(&self) {
        self.swallow(Direction::ToClient);
    }
    async fn heal(&self) {
        Self::heal(self);
        self.cut_now();
    }
}

impl From<crate::Unavailable> for flames_conformance_runner::Unavailable {
    fn from(missing: crate::Unavailable) -> Self {
        Self { service: missing.service.to_owned(), reason: missing.reason }
    }
}
