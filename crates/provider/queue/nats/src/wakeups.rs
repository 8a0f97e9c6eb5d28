//! Hints that a topic may have a job ready.

use std::sync::{Arc, Weak};

use flames_clock::Clock;
use flames_queue::Topic;
use futures::Stream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::view::View;

struct Subscription {
    /// Weak, so that a forgotten stream does not keep the queue.
    view: Weak<View>,
    clock: Arc<dyn Clock>,
    topic: Topic,
    /// None only while dropping.
    hints: Option<broadcast::Receiver<()>>,
}

pub(crate) fn subscribe(view: &Arc<View>, topic: &Topic) -> impl Stream<Item = ()> + Send + use<> {
    let subscription = Subscription {
        view: Arc::downgrade(view),
        clock: Arc::clone(&view.clock),
        topic: topic.clone(),
        hints: Some(view.with_topic(topic.as_str(), |jobs, _| jobs.subscribe())),
    };
    futures::stream::unfold(subscription, |mut subscription| async move {
        subscription.next().await.map(|()| ((), subscription))
    })
}

impl Subscription {
    async fn next(&mut self) -> Option<()> {
        let view = self.view.upgrade()?;
        let due = view.with_topic(self.topic.as_str(), |jobs, now| jobs.next_due(now));
        drop(view);
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
        if let Some(view) = self.view.upgrade() {
            // Forgets the topic when this was the last that kept it.
            view.with_topic(self.topic.as_str(), |_, _| ());
        }
    }
}
