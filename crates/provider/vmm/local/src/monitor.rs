//! A monitor that a driver is connected to, until its end.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use flames_error::Result;
use flames_host::process::Process;
use flames_vmm::{Exit, Phase};
use tokio::task::{AbortHandle, JoinHandle};

/// How long is waited, after a monitor's end, for what it has said to be read.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The most bytes of a monitor's message that are kept.
const LONGEST_MESSAGE: usize = 1024;

/// A monitor's process with the driver's connections to it. It runs on when this is dropped.
pub trait Monitor: Debug + Send + Sync + 'static {
    /// What there is of an incarnation of which nothing has run: the driver's own.
    type Before: Send;

    /// Its process.
    fn process(&self) -> &Process;

    /// The driver's tasks that go with it.
    fn ties(&self) -> &Ties;

    /// What is left of it once it has ended and nothing of its guest has run; none when its guest may have run. Then the incarnation has
    /// exited, and is never started again.
    fn left_before(&self) -> Option<Self::Before> {
        None
    }

    /// Lets it be; it runs on.
    fn detach(&self) {
        self.ties().cut();
    }

    /// Where the guest is, as the monitor says; [`Phase::Unknown`] when it does not say. None once it has ended.
    fn look(&self) -> impl Future<Output = Option<Phase>> + Send;

    /// What is to be told of its end; settled once, and on disk when this returns. Called only after the end.
    ///
    /// Errors: `Internal`, `Exhausted` when it cannot be written down; the next call tries again.
    fn exit(&self) -> impl Future<Output = Result<Exit>> + Send;
}

/// A driver's tasks that go with one monitor. They end with this.
#[derive(Debug, Default)]
pub struct Ties {
    readers: Mutex<Vec<JoinHandle<()>>>,
    followers: Mutex<Vec<AbortHandle>>,
}

impl Drop for Ties {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Ties {
    /// The task reads what the monitor, or its guest, says, and ends with it.
    pub fn read_by(&self, task: JoinHandle<()>) {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// The task watches the monitor.
    pub fn followed_by(&self, task: AbortHandle) {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// Ends all tasks.
    pub fn cut(&self) {
        for task in self.readers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        for task in self.followers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }

    /// Waits until everything is read that an ended monitor has said, each reader for two seconds at most.
    pub async fn read_out(&self, clock: &dyn Clock) {
        let readers = std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner));
        for mut reader in readers {
            if clock.timeout(LAST_WORDS, &mut reader).await.is_err() {
                reader.abort();
            }
        }
    }
}

/// The end of what a monitor has said, as an exit tells it: at most 1 KiB. None when it has said nothing.
pub fn end_of(words: &str) -> Option<String> {
    cut(words, LONGEST_MESSAGE)
}

/// The end of the text, at most so many bytes.
fn cut(text: &str, most: usize) -> Option<String> {
    let text = text.trim();
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    (!text.is_empty()).then(|| text[from..].to_owned())
}

#[cfg(test)]
mod tests {
    use flames_clock::SystemClock;

    use super::*;

    #[test]
    fn the_end_of_a_text_is_cut_between_characters() {
        assert_eq!(cut("äö", 3).as_deref(), Some("ö"));
        assert_eq!(cut(" \n", 3), None);
        assert_eq!(end_of(&format!("{}the end\n", "x".repeat(5000))).map(|words| words.len()), Some(1024));
    }

    #[tokio::test]
    async fn tasks_end_with_their_monitor() {
        let ties = Ties::default();
        let (reader, follower) = (tokio::spawn(async {}), tokio::spawn(std::future::pending::<()>()));
        ties.read_by(reader);
        ties.followed_by(follower.abort_handle());
        ties.read_out(&SystemClock::new()).await;
        assert!(!follower.is_finished(), "who watches goes on");
        drop(ties);
        assert!(follower.await.unwrap_err().is_cancelled());
    }
}
