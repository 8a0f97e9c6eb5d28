//! What some cases do to a store beyond calling it: break its network, kill its server. The same shape as in the other suites.
//!
//! A harness says with [`Harness::hooks`](crate::Harness::hooks), when the cases are listed, which of these its fixtures can do; cases
//! that need another are skipped and say so. A case that needs one runs on a fixture made by
//! [`Harness::fresh_for`](crate::Harness::fresh_for), so that only those cases pay for a proxy or a server of their own.

use async_trait::async_trait;

/// One thing that a fixture can do to its store from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// [`Fixture::faults`](crate::Fixture::faults): the way between the store and its server can be broken.
    Faults,
    /// [`Fixture::restart_server`](crate::Fixture::restart_server): the server can be killed and started again with its data.
    Restart,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Hook; 2] = [Hook::Faults, Hook::Restart];

    /// The capability's name, as the table of cases has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Faults => "faults",
            Self::Restart => "restart",
        }
    }

    /// Why a case that needs the hook is skipped.
    pub(crate) fn missing(self) -> &'static str {
        match self {
            Self::Faults => "there is no network to break between the store and its contents",
            Self::Restart => "there is no server to restart",
        }
    }
}

/// The way between a store and its server, broken on demand: what a TCP proxy between the two can do.
///
/// No method fails: a proxy that cannot do as told panics, which fails the case. Each takes effect before it returns.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Cuts every open connection now. Connections made afterwards work.
    async fn cut_connections(&self);

    /// Until [`Faults::heal`]: each connection, open now or made later, is cut once `bytes` more bytes have passed over it (both
    /// directions counted together, or each for itself). The bytes before that arrive.
    async fn cut_after(&self, bytes: u64);

    /// Until [`Faults::heal`]: nothing passes in either direction, and nothing is closed.
    async fn stall(&self);

    /// Until [`Faults::heal`]: what the store sends arrives, and no answer comes back.
    async fn stall_answers(&self);

    /// Ends every fault. Connections that were stalled may go on or be cut; new ones work.
    async fn heal(&self);
}
