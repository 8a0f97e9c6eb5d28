//! What the host keeps of a guest: its workload's output, its console.

use bytes::Bytes;
use flames_client::wire::stream::{MAX_CONTENT, StreamFrame};
use flames_clock::Timestamp;
use flames_error::{ErrorKind, Result};
use flames_vmm::ConsoleChunk;

use super::process::send_entry;
use super::{AcceptedStream, Broken, CONSOLE_LOOK, LOOK, ToClient};
use crate::folder::OutputEntry;

/// Bytes of a log that are read at once.
const PAGE: usize = 256 * 1024;

type Served = std::result::Result<(), Broken>;

impl AcceptedStream {
    pub(super) async fn logs(
        &self,
        follow: bool,
        since: Option<Timestamp>,
        tail: Option<u64>,
        to: &ToClient,
    ) -> Served {
        let since_ms = since.map_or(0, |since| u64::try_from(since.as_millisecond()).unwrap_or(0));
        let mut skip = match tail {
            Some(tail) => self.lines(since_ms).await?.saturating_sub(tail),
            None => 0,
        };
        let (mut position, mut told) = (0, None);
        loop {
            let changes = self.changes();
            // Asked before the log is read: what was written before the end is then there to be read.
            let is_over = self.live().is_none_or(|live| live.exit.is_some());
            let page = self.shared.folder.read_output(self.id, position, PAGE).await?;
            let is_empty = page.entries.is_empty();
            position = page.next;
            for entry in page.entries.into_iter().filter(|entry| entry.at_ms >= since_ms) {
                let Some(entry) = skip_lines(entry, &mut skip) else { continue };
                // What was left out on purpose is not lost: only a gap behind what was told is.
                let from = told.unwrap_or(if since.is_some() || tail.is_some() { entry.offset } else { 0 });
                told = Some(send_entry(entry, from, to).await?);
            }
            if is_empty {
                if !follow || is_over {
                    return to.send(StreamFrame::End).await;
                }
                self.changed(changes, LOOK).await;
            }
        }
    }

    /// How many lines are kept, one that has no end yet among them.
    async fn lines(&self, since_ms: u64) -> Result<u64> {
        let (mut position, mut lines, mut open) = (0, 0, false);
        loop {
            let page = self.shared.folder.read_output(self.id, position, PAGE).await?;
            if page.entries.is_empty() {
                return Ok(lines + u64::from(open));
            }
            position = page.next;
            for entry in page.entries.iter().filter(|entry| entry.at_ms >= since_ms) {
                lines += entry.data.iter().filter(|byte| **byte == b'\n').count() as u64;
                open = entry.data.last().map_or(open, |last| *last != b'\n');
            }
        }
    }

    pub(super) async fn console(&self, follow: bool, to: &ToClient) -> Served {
        let mut from = 0;
        loop {
            let changes = self.changes();
            let live = self.live();
            let is_over = live.as_ref().is_none_or(|live| live.exit.is_some());
            let chunk = match &live {
                Some(live) => self.console_chunk(&live.name, from).await?,
                None => None,
            };
            let Some(ConsoleChunk { offset, data }) = chunk else {
                // Its machine is gone, or not made yet.
                if from == 0
                    && let Some(kept) = self.shared.folder.console(self.id).await?
                {
                    send_data(kept, to).await?;
                    return to.send(StreamFrame::End).await;
                }
                if !follow || is_over {
                    return to.send(StreamFrame::End).await;
                }
                self.changed(changes, CONSOLE_LOOK).await;
                continue;
            };
            if data.is_empty() {
                if !follow || is_over {
                    return to.send(StreamFrame::End).await;
                }
                self.changed(changes, CONSOLE_LOOK).await;
                continue;
            }
            from = offset.saturating_add(data.len() as u64);
            send_data(data, to).await?;
        }
    }

    /// None: there is no machine.
    async fn console_chunk(
        &self,
        name: &flames_vmm::IncarnationName,
        from: u64,
    ) -> Result<Option<ConsoleChunk>> {
        let reading = self.shared.driver.console(name, from);
        match self.shared.drive("controller.console", Default::default(), reading).await {
            Ok(chunk) => Ok(Some(chunk)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

async fn send_data(mut data: Bytes, to: &ToClient) -> Served {
    while !data.is_empty() {
        to.send(StreamFrame::Data(data.split_to(data.len().min(MAX_CONTENT)))).await?;
    }
    Ok(())
}

/// The entry without the lines that are still to be skipped; none when nothing of it is left.
fn skip_lines(mut entry: OutputEntry, skip: &mut u64) -> Option<OutputEntry> {
    while *skip > 0 {
        let end = entry.data.iter().position(|byte| *byte == b'\n')?;
        *skip -= 1;
        let _ = entry.data.split_to(end + 1);
        entry.offset = entry.offset.saturating_add(end as u64 + 1);
    }
    (!entry.data.is_empty()).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_are_skipped_across_entries() {
        let entry = |text: &'static str| OutputEntry {
            stream: 1,
            offset: 10,
            at_ms: 0,
            data: Bytes::from_static(text.as_bytes()),
        };
        let mut skip = 2;
        assert_eq!(skip_lines(entry("a"), &mut skip), None);
        assert_eq!(skip, 2);
        let rest = skip_lines(entry("b\nc\nd"), &mut skip).unwrap();
        assert_eq!((rest.offset, &rest.data[..], skip), (14, &b"d"[..], 0));
    }
}
