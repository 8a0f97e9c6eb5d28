//! Calls that go wrong as planned.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::Clock;
use flames_error::{Error, ErrorKind, Result};

use crate::{Call, Interceptor};

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing.
    None,
    /// The call is answered with an error of this kind and not applied.
    FailBefore(ErrorKind),
    /// The call is applied and its answer, whatever it was, replaced by an error of this kind. Honest for `OutcomeUnknown` only: the
    /// other kinds promise that nothing was changed.
    FailAfter(ErrorKind),
    /// Nothing happens for so long; then `Unavailable` is answered and the call not applied.
    Hang(Duration),
    /// The call is applied after so long.
    Delay(Duration),
}

/// Says what goes wrong. A closure `|provider, operation| Fault` is one.
pub trait FaultPlan: Send + Sync + 'static {
    /// What is to go wrong with the next call of `operation` (the method's name) of `provider` (`state`, `blob`, `cache`, `queue`,
    /// `ingress` or `vmm`). Asked once for each call, when it is first polled.
    fn decide(&self, provider: &'static str, operation: &'static str) -> Fault;
}

impl<F: Fn(&'static str, &'static str) -> Fault + Send + Sync + 'static> FaultPlan for F {
    fn decide(&self, provider: &'static str, operation: &'static str) -> Fault {
        self(provider, operation)
    }
}

/// Makes calls fail, hang and take their time as a [`FaultPlan`] says.
///
/// An injected error has the context pair `injected` (`before`, `after` or `hang`), and `after` also `applied`: what the answer that was
/// lost had been (`ok` or the error's kind).
#[derive(Clone)]
pub struct FaultInjection {
    clock: Arc<dyn Clock>,
    plan: Arc<dyn FaultPlan>,
}

impl FaultInjection {
    /// Faults by `plan`; hanging and delays are measured by `clock`.
    pub fn new(clock: Arc<dyn Clock>, plan: impl FaultPlan) -> Self {
        Self::shared(clock, Arc::new(plan))
    }

    /// As [`FaultInjection::new`], with a plan that other providers are wrapped with, too.
    pub fn shared(clock: Arc<dyn Clock>, plan: Arc<dyn FaultPlan>) -> Self {
        Self { clock, plan }
    }
}

fn injected(kind: ErrorKind, call: Call, when: &'static str) -> Error {
    Error::new(kind, call.full_name, "an injected fault").with_context("injected", when)
}

impl Interceptor for FaultInjection {
    async fn intercept<T: Send>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.plan.decide(call.provider, call.operation) {
            Fault::None => work.await,
            Fault::FailBefore(kind) => Err(injected(kind, call, "before")),
            Fault::FailAfter(kind) => {
                let applied = work.await.map_or_else(|error| error.kind().as_str(), |_| "ok");
                Err(injected(kind, call, "after").with_context("applied", applied))
            }
            Fault::Hang(duration) => {
                self.clock.sleep(duration).await;
                Err(injected(ErrorKind::Unavailable, call, "hang"))
            }
            Fault::Delay(duration) => {
                self.clock.sleep(duration).await;
                work.await
            }
        }
    }
}
