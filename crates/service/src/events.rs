//! Reading and following events.

use flames_error::Result;
use flames_model::ProjectName;
use flames_records::{EventEntry, Position, Records, Waited};
use futures::stream::{BoxStream, StreamExt};

use crate::{Caller, Service};

/// Events as they come, until dropped. An error ends the stream; resume behind the last position seen.
pub type EventStream = BoxStream<'static, Result<EventEntry>>;

impl Service {
    /// Events of the caller's project behind `after`, oldest first: at most `limit` (cut to 1,000).
    pub async fn events(&self, caller: &Caller, after: Position, limit: usize) -> Result<Vec<EventEntry>> {
        self.records().events(Some(&caller.project), after, limit).await
    }

    /// Events that concern no project (controllers), as [`Service::events`].
    pub async fn system_events(&self, after: Position, limit: usize) -> Result<Vec<EventEntry>> {
        self.records().events(None, after, limit).await
    }

    /// The place behind the newest event of the caller's project that the log holds now.
    pub async fn newest_event(&self, caller: &Caller) -> Result<Position> {
        self.newest(Some(&caller.project)).await
    }

    /// The place behind the newest event that concerns no project.
    pub async fn newest_system_event(&self) -> Result<Position> {
        self.newest(None).await
    }

    async fn newest(&self, project: Option<&ProjectName>) -> Result<Position> {
        // Positions are ordered, and a log can be asked for anything behind one of them: halving finds its end in a few dozen small
        // reads, however long it is. `after` always has been seen; nothing lies behind `beyond`.
        let mut after = Position::START;
        let mut beyond = u64::MAX;
        loop {
            let (major, _) = after.as_raw();
            let middle = major + (beyond - major) / 2;
            if middle == major {
                break;
            }
            let behind = Position::from_raw(middle, u64::MAX);
            match self.records().events(project, behind, 1).await?.first() {
                Some(entry) => after = entry.position,
                None => beyond = middle,
            }
        }
        // What is left lies within one commit.
        loop {
            let page = self.records().events(project, after, flames_records::MAX_PAGE).await?;
            match page.last() {
                Some(entry) => after = entry.position,
                None => return Ok(after),
            }
        }
    }

    /// Events behind `after`, and each further one as it comes, without a gap: a lost hint costs at most one poll.
    pub fn follow_events(&self, caller: &Caller, after: Position) -> EventStream {
        self.follow(Some(caller.project.clone()), after)
    }

    /// Events that concern no project (controllers), as [`Service::follow_events`].
    pub fn follow_system_events(&self, after: Position) -> EventStream {
        self.follow(None, after)
    }

    fn follow(&self, project: Option<ProjectName>, after: Position) -> EventStream {
        let state = (self.clone(), project, after, Vec::new().into_iter());
        futures::stream::unfold(state, |(service, project, after, mut ready)| async move {
            loop {
                if let Some(entry) = ready.next() {
                    let entry: EventEntry = entry;
                    let position = entry.position;
                    return Some((Ok(entry), (service, project, position, ready)));
                }
                match service.next_events(project.as_ref(), after).await {
                    Ok(entries) => ready = entries.into_iter(),
                    // After an error the stream ends at its next poll: `after` would not move, and the caller must decide.
                    Err(error) => {
                        return Some((Err(error), (service, project, after, Vec::new().into_iter())));
                    }
                }
            }
        })
        .scan(false, |failed, item| {
            let end = *failed;
            *failed = item.is_err();
            futures::future::ready((!end).then_some(item))
        })
        .boxed()
    }

    /// At least one event behind `after`, unless the longest wait passes first.
    async fn next_events(&self, project: Option<&ProjectName>, after: Position) -> Result<Vec<EventEntry>> {
        let log = Records::events_log(project)?;
        let deadline = self.clock().monotonic().saturating_add(self.config().longest_wait);
        let read = || async {
            let entries = self.records().events(project, after, 256).await?;
            Ok((!entries.is_empty()).then_some(entries))
        };
        let waited = self
            .records()
            .wait_until(self.clock().as_ref(), &log, self.config().poll, deadline, read)
            .await?;
        Ok(match waited {
            Waited::Ready(entries) => entries,
            Waited::TimedOut => Vec::new(),
        })
    }
}
