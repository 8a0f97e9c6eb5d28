//! Hints that a topic may have a job ready.

use std::sync::{Arc, Weak};

use flames_clock::Clock;
use flames_queue::Topic;
use futures::Stream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::Shared;

struct Subscription {
    /// Weak, so that a forgotten stream does not keep the queue.
    queue: Weak<Shared>,
    clock: Arc<dyn Clock>,
    topic: Topic,
    /// None only while dropping.
    hints: Option<broadcast::Receiver<()>>,
}

pub(crate) fn subscribe(shared: &Arc<Shared>, topic: &Topic) -> impl Stream<Item = ()> + Send + use<> {
    let hints = shared.lock().topics.entry(topic.as_str().to_owned()).or_default().subscribe();
    let subscription = Subscription {
        queue: Arc::downgrade(shared),
        clock: Arc::clone(&shared.clock),
        topic: topic.clone(),
        hints: Some(hints),
    };
    futures::stream::unfold(subscription, |mut subscription| async move {
        subscription.next().await.map(|()| ((), subscription))
    })
}

impl Subscription {
    async fn next(&mut self) -> Option<()> {
        let queue = self.queue.upgrade()?;
        let due = queue.with_topic(self.topic.as_str(), |topic, now| topic.next_due(now)).flatten();
        drop(queue);
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

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hints = None;
        if let Some(queue) = self.queue.upgrade() {
            // Forgets the topic when this was the last that kept it.
            queue.with_topic(self.topic.as_str(), |_, _| ());
        }
    }
}
