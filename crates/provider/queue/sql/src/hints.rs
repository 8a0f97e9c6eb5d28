//! Hints that a topic may have a job ready, within one process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use flames_queue::{Topic, WakeupStream};
use futures::StreamExt;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Hands hints to whoever waits for a topic. Topics without a subscriber take no memory.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    topics: Mutex<HashMap<String, broadcast::Sender<()>>>,
}

impl Hints {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, broadcast::Sender<()>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hints, from now on, until [`Hints::end`]. One slot: a hint that is not read yet stands for those behind it.
    pub(crate) fn subscribe(self: &Arc<Self>, topic: &Topic) -> WakeupStream {
        let name = topic.as_str().to_owned();
        let receiver =
            self.lock().entry(name.clone()).or_insert_with(|| broadcast::Sender::new(1)).subscribe();
        let subscription = Subscription { hints: Arc::downgrade(self), name, receiver: Some(receiver) };
        futures::stream::unfold(subscription, |mut subscription| async move {
            match subscription.receiver.as_mut()?.recv().await {
                Ok(()) | Err(RecvError::Lagged(_)) => Some(((), subscription)),
                Err(RecvError::Closed) => None,
            }
        })
        .boxed()
    }

    /// Wakes whoever waits for `topic`.
    pub(crate) fn publish(&self, topic: &str) {
        if let Some(sender) = self.lock().get(topic) {
            // An error means that nobody waits.
            let _ = sender.send(());
        }
    }

    /// Wakes everybody: hints may have been missed.
    #[cfg(feature = "postgres")]
    pub(crate) fn publish_all(&self) {
        for sender in self.lock().values() {
            let _ = sender.send(());
        }
    }

    /// Ends every stream.
    pub(crate) fn end(&self) {
        self.lock().clear();
    }
}

struct Subscription {
    hints: Weak<Hints>,
    name: String,
    /// None only while dropping.
    receiver: Option<broadcast::Receiver<()>>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.receiver = None;
        if let Some(hints) = self.hints.upgrade() {
            let mut topics = hints.lock();
            if topics.get(&self.name).is_some_and(|sender| sender.receiver_count() == 0) {
                topics.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_topic_is_forgotten_with_its_last_subscriber_and_streams_end() {
        let hints = Arc::new(Hints::default());
        let topic = Topic::new("vms").unwrap();
        let (mut one, other) = (hints.subscribe(&topic), hints.subscribe(&topic));
        hints.publish("vms");
        hints.publish("other");
        assert_eq!(one.next().await, Some(()));
        drop(other);
        assert_eq!(hints.lock().len(), 1);
        hints.end();
        assert_eq!(one.next().await, None);
        drop(one);
        assert_eq!(hints.lock().len(), 0);
    }
}
