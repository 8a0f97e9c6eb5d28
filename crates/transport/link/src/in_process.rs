//! Links to controllers in the same process.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use flames_clock::{Clock, ClockExt};
use flames_error::{Error, Result};
use flames_model::{ControllerId, IncarnationId};
use flames_service::{HostLinks, LinkChannel, LinkStream, LinkTarget};
use flames_wire::stream::StreamRequest;

use crate::request::stream_request;

/// How long a controller may take to accept a stream.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// The controller's side of links.
#[async_trait]
pub trait LinkHandler: Debug + Send + Sync + 'static {
    /// Takes a stream to one of this controller's incarnations and returns once it is accepted. What follows on `channel` is the
    /// controller's business: frames of `flames_wire::stream`.
    ///
    /// Errors: `NotFound` when this controller does not own the incarnation; `Unavailable`.
    async fn open(
        &self,
        incarnation: IncarnationId,
        request: StreamRequest,
        channel: LinkChannel,
    ) -> Result<()>;
}

#[derive(Debug, Default)]
struct Handlers {
    by_controller: BTreeMap<ControllerId, (u64, Arc<dyn LinkHandler>)>,
    registrations: u64,
}

/// Links to controllers in the same process. Clones share their registrations.
#[derive(Debug, Clone)]
pub struct InProcessLinks {
    handlers: Arc<Mutex<Handlers>>,
    clock: Arc<dyn Clock>,
}

/// Keeps a controller registered; dropping it ends that.
#[derive(Debug)]
pub struct Registration {
    handlers: Weak<Mutex<Handlers>>,
    controller: ControllerId,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(handlers) = self.handlers.upgrade() {
            let mut handlers = handlers.lock().unwrap_or_else(PoisonError::into_inner);
            // A newer registration of the same controller stays.
            if handlers.by_controller.get(&self.controller).is_some_and(|(number, _)| *number == self.number)
            {
                handlers.by_controller.remove(&self.controller);
            }
        }
    }
}

impl InProcessLinks {
    /// Links without any controller yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { handlers: Arc::default(), clock }
    }

    /// Registers a controller, in place of an older registration of the same one.
    #[must_use = "dropping the registration ends it"]
    pub fn register(&self, controller: ControllerId, handler: Arc<dyn LinkHandler>) -> Registration {
        let mut handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        handlers.registrations += 1;
        let number = handlers.registrations;
        handlers.by_controller.insert(controller, (number, handler));
        Registration { handlers: Arc::downgrade(&self.handlers), controller, number }
    }

    fn handler(&self, controller: ControllerId) -> Option<Arc<dyn LinkHandler>> {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        handlers.by_controller.get(&controller).map(|(_, handler)| handler.clone())
    }
}

#[async_trait]
impl HostLinks for InProcessLinks {
    async fn open(&self, target: LinkTarget, stream: LinkStream) -> Result<LinkChannel> {
        let handler = self.handler(target.controller).ok_or_else(|| {
            Error::unavailable("links.open", "the controller has no link")
                .with_resource("controller", target.controller.to_string())
        })?;
        let (ours, theirs) = LinkChannel::pair();
        let opening = handler.open(target.incarnation, stream_request(stream), theirs);
        self.clock.timeout(OPEN_WITHIN, opening).await.map_err(|_| {
            Error::unavailable("links.open", "the controller did not accept the stream in time")
        })??;
        Ok(ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use flames_clock::SimulatedClock;
    use flames_error::ErrorKind;
    use flames_model::VmId;

    #[derive(Debug)]
    struct Echo(IncarnationId);

    #[async_trait]
    impl LinkHandler for Echo {
        async fn open(
            &self,
            incarnation: IncarnationId,
            _: StreamRequest,
            mut channel: LinkChannel,
        ) -> Result<()> {
            if incarnation != self.0 {
                return Err(Error::not_found("echo.open", "incarnation", incarnation.to_string()));
            }
            tokio::spawn(async move {
                while let Some(frame) = channel.receiver.recv().await {
                    if channel.sender.send(frame).await.is_err() {
                        return;
                    }
                }
            });
            Ok(())
        }
    }

    #[derive(Debug)]
    struct Silent;

    #[async_trait]
    impl LinkHandler for Silent {
        async fn open(&self, _: IncarnationId, _: StreamRequest, _: LinkChannel) -> Result<()> {
            std::future::pending().await
        }
    }

    fn target() -> LinkTarget {
        LinkTarget {
            incarnation: IncarnationId::from_uuid(uuid::Uuid::from_u128(1)),
            vm: VmId::from_uuid(uuid::Uuid::from_u128(2)),
            controller: ControllerId::from_uuid(uuid::Uuid::from_u128(3)),
        }
    }

    fn links() -> InProcessLinks {
        InProcessLinks::new(Arc::new(SimulatedClock::at_fixed_start()))
    }

    #[tokio::test(start_paused = true)]
    async fn frames_go_both_ways_and_closing_one_half_is_seen() {
        let links = links();
        let _registration = links.register(target().controller, Arc::new(Echo(target().incarnation)));
        let mut channel = links.open(target(), LinkStream::Files).await.unwrap();
        channel.sender.send(Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(channel.receiver.recv().await.unwrap(), "hello");
        drop(channel.sender);
        assert!(channel.receiver.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_is_reached_only_while_it_is_registered() {
        let links = links();
        let open = || links.open(target(), LinkStream::Files);
        assert_eq!(open().await.unwrap_err().kind(), ErrorKind::Unavailable);
        let old = links.register(target().controller, Arc::new(Silent));
        let new = links.register(target().controller, Arc::new(Echo(target().incarnation)));
        drop(old);
        open().await.unwrap();
        drop(new);
        assert_eq!(open().await.unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn an_incarnation_of_another_controller_is_refused() {
        let links = links();
        let _registration = links.register(target().controller, Arc::new(Echo(target().incarnation)));
        let other =
            LinkTarget { incarnation: IncarnationId::from_uuid(uuid::Uuid::from_u128(9)), ..target() };
        assert_eq!(links.open(other, LinkStream::Files).await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_does_not_answer_costs_a_bounded_time() {
        let links = links();
        let _registration = links.register(target().controller, Arc::new(Silent));
        let error = links.open(target(), LinkStream::Files).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
