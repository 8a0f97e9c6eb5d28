//! Providers that wrap providers.
//!
//! [`Decorated`] is each of the six providers whenever what it wraps is, and hands every call to an [`Interceptor`]. Two of these are
//! here:
//!
//! * [`FaultInjection`] asks a [`FaultPlan`] what is to go wrong with each call. For tests and simulation.
//! * [`Instrumentation`] tells an [`Observer`] how each call ended and how long it took.
//!
//! ```
//! # use std::sync::Arc;
//! # use flames_clock::Clock;
//! # use flames_decorate::{Decorated, Fault, FaultInjection, Instrumentation, Observer};
//! # use flames_error::ErrorKind;
//! # use flames_state::StateStore;
//! fn wrap(store: Arc<dyn StateStore>, clock: Arc<dyn Clock>, observer: Arc<dyn Observer>) -> Arc<dyn StateStore> {
//!     let flaky = Decorated::new(store, FaultInjection::new(Arc::clone(&clock), |_, operation| match operation {
//!         "commit" => Fault::FailAfter(ErrorKind::OutcomeUnknown),
//!         _ => Fault::None,
//!     }));
//!     Arc::new(Decorated::new(Arc::new(flaky), Instrumentation::new(clock, observer)))
//! }
//! ```
//!
//! What is intercepted is the call. A stream that a call answers with (hints, a blob's bytes, a guest's connection) is handed through
//! untouched, and so are the calls that only tell what a provider is (`name`, and `capabilities` where it does not wait).

mod faults;
mod instrument;
mod providers;

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use flames_error::Result;

pub use faults::{Fault, FaultInjection, FaultPlan};
pub use instrument::{Instrumentation, Observed, Observer, Outcome};

/// Which call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    /// The interface: `state`, `blob`, `cache`, `queue`, `ingress` or `vmm`.
    pub provider: &'static str,
    /// The adapter's name, as it tells it itself.
    pub adapter: &'static str,
    /// The method's name.
    pub operation: &'static str,
    /// Interface and method, as errors name them: `state.commit`.
    pub full_name: &'static str,
}

/// What happens around each call of a decorated provider.
pub trait Interceptor: Send + Sync + 'static {
    /// Answers `call`, whose work is `work`: run it, or do not. When the caller gives up, this future is dropped, and `work` with it.
    fn intercept<T: Send>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T>> + Send,
    ) -> impl Future<Output = Result<T>> + Send;
}

/// A provider each of whose calls goes through an [`Interceptor`].
pub struct Decorated<P: ?Sized, I> {
    provider: Arc<P>,
    interceptor: I,
}

impl<P: ?Sized, I> Decorated<P, I> {
    /// Puts `interceptor` before `provider`.
    pub fn new(provider: Arc<P>, interceptor: I) -> Self {
        Self { provider, interceptor }
    }
}

impl<P: Debug + ?Sized, I> Debug for Decorated<P, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = std::any::type_name::<I>().rsplit("::").next().unwrap_or_default();
        f.debug_struct("Decorated").field("by", &by).field("provider", &&*self.provider).finish()
    }
}
