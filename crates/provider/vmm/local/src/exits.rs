//! Hints that a monitor has ended.

use flames_vmm::IncarnationName;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// How many exits a slow listener may be behind before it misses some.
const EXIT_HINTS: usize = 1024;

/// Tells whoever listens that an incarnation has ended.
#[derive(Debug, Clone)]
pub struct Exits(broadcast::Sender<IncarnationName>);

impl Default for Exits {
    fn default() -> Self {
        Self(broadcast::channel(EXIT_HINTS).0)
    }
}

impl Exits {
    /// Tells everybody who listens now; no error when nobody does.
    pub fn tell(&self, incarnation: IncarnationName) {
        let _ = self.0.send(incarnation);
    }

    /// What is told from now on. Who is further behind than 1024 misses the oldest.
    pub fn hints(&self) -> BoxStream<'static, IncarnationName> {
        BroadcastStream::new(self.0.subscribe()).filter_map(|hint| async { hint.ok() }).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_misses_the_oldest_hints_and_goes_on() {
        let exits = Exits::default();
        let name = |number: usize| IncarnationName::new(format!("inc_{number}")).unwrap();
        exits.tell(name(0));
        let mut hints = exits.hints();
        for number in 1..=EXIT_HINTS + 2 {
            exits.tell(name(number));
        }
        assert_eq!(hints.next().await, Some(name(3)), "what was told before is not heard, nor the first two");
        drop(exits);
        assert_eq!(hints.count().await, EXIT_HINTS - 1);
    }
}
