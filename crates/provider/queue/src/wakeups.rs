//! Wake-ups within one process, for adapters that keep their topics in its memory.

use std::sync::{Arc, Weak};
use std::time::Duration;

use flames_clock::Clock;
use futures::{StreamExt, stream};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::{Topic, WakeupStream};

/// The topics of a queue, as far as its wake-ups ask of them.
pub trait WakingTopics: Send + Sync + 'static {
    /// Hints that a job of the topic may have become ready, from now on.
    fn subscribe(&self, topic: &Topic) -> broadcast::Receiver<()>;

    /// After how long the topic's next job becomes ready by time alone; none: none does.
    fn next_due(&self, topic: &Topic) -> Option<Duration>;

    /// A subscriber is gone: forgets a topic that nothing else keeps.
    fn unsubscribed(&self, topic: &Topic);
}

struct Subscription<T: WakingTopics> {
    /// Weak, so that a forgotten stream does not keep the queue.
    topics: Weak<T>,
    clock: Arc<dyn Clock>,
    topic: Topic,
    /// None only while dropping.
    hints: Option<broadcast::Receiver<()>>,
}

/// What [`WorkQueue::wakeups`](crate::WorkQueue::wakeups) answers over `topics`: a wake-up for each hint, and when time makes a job ready. It ends
/// with the queue.
pub fn wakeups<T: WakingTopics>(topics: &Arc<T>, clock: Arc<dyn Clock>, topic: &Topic) -> WakeupStream {
    let subscription = Subscription {
        topics: Arc::downgrade(topics),
        clock,
        topic: topic.clone(),
        hints: Some(topics.subscribe(topic)),
    };
    stream::unfold(subscription, |mut subscription| async move {
        subscription.next().await.map(|()| ((), subscription))
    })
    .boxed()
}

impl<T: WakingTopics> Subscription<T> {
    async fn next(&mut self) -> Option<()> {
        let due = self.topics.upgrade()?.next_due(&self.topic);
        let its_time = async {
            match due {
                Some(after) => self.clock.sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            hint = self.hints.as_mut()?.recv() => match hint {
                Ok(()) | Err(RecvError::Lagged(_)) => Some(()),
                Err(RecvError::Closed) => None,
            },
            () = its_time => Some(()),
        }
    }
}

impl<T: WakingTopics> Drop for Subscription<T> {
    fn drop(&mut self) {
        self.hints = None;
        if let Some(topics) = self.topics.upgrade() {
            topics.unsubscribed(&self.topic);
        }
    }
}
