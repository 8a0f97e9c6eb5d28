//! What is kept of a guest's console, and how it is read.

use std::sync::Arc;

use flames_clock::Clock;
use flames_error::{Error, Result};
use flames_host::console::{ConsoleLog, GAP, MIN_LIMIT, record};
use flames_host::files::failed;
use flames_vmm::{ConsoleChunk, MAX_CONSOLE_CHUNK};
use tokio::io::AsyncRead;
use tokio::task::JoinHandle;

use crate::folder::Folder;
use crate::incarnation::Incarnation;
use crate::monitor::Monitor;

/// How much of one guest's console a driver keeps, and takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsoleLimits {
    /// The most bytes that are kept on disk. At least 8 KiB.
    pub on_disk: u64,
    /// How many bytes a second are taken. At least 1 KiB.
    pub bytes_per_second: u64,
}

impl ConsoleLimits {
    /// `InvalidInput`, with the field of the driver's settings, when they are out of range.
    pub fn check(self) -> Result<()> {
        let refuse = |field: &'static str, sentence: &str| Err(Error::invalid("vmm.new", field, sentence));
        if self.on_disk < MIN_LIMIT {
            return refuse("console_log_limit", "A console's log has at least 8 KiB.");
        }
        if self.bytes_per_second < 1024 {
            return refuse("console_bytes_per_second", "A console has at least 1 KiB a second.");
        }
        Ok(())
    }

    /// Copies what the monitor gives of its guest's console into the folder's log, until it ends. `mark_gap`: output may have been lost
    /// before. Within a runtime; the task is the caller's to end.
    ///
    /// Errors: `Internal` when the log cannot be opened.
    pub fn record(
        self,
        folder: &Folder,
        console: impl AsyncRead + Unpin + Send + 'static,
        clock: Arc<dyn Clock>,
        mark_gap: bool,
    ) -> Result<JoinHandle<()>> {
        let writer = ConsoleLog::new(folder.path(), self.on_disk).writer();
        let mut writer = writer.map_err(|error| failed("the console's log cannot be opened", error))?;
        Ok(tokio::spawn(async move {
            if mark_gap {
                let _ = writer.append(GAP).await;
            }
            record(console, writer, clock, self.bytes_per_second).await;
        }))
    }
}

impl<M: Monitor> Incarnation<M> {
    /// The console's log from an offset on, as [`flames_vmm::VmDriver::console`] answers.
    ///
    /// Errors: `NotFound` when there is no such incarnation; `Internal` when the log cannot be read.
    pub async fn console(&self, limits: ConsoleLimits, from: u64) -> Result<ConsoleChunk> {
        let log = ConsoleLog::new(self.folder.path(), limits.on_disk);
        match log.read(from, MAX_CONSOLE_CHUNK).await {
            Ok(chunk) => Ok(ConsoleChunk { offset: chunk.offset, data: chunk.data }),
            Err(_) if !self.folder.exists() => Err(self.not_found("vmm.console")),
            Err(error) => Err(failed("the console's log cannot be read", error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_out_of_range_are_refused_with_their_field() {
        let good = ConsoleLimits { on_disk: 8 * 1024, bytes_per_second: 1024 };
        good.check().unwrap();
        for (field, wrong) in [
            ("console_log_limit", ConsoleLimits { on_disk: 100, ..good }),
            ("console_bytes_per_second", ConsoleLimits { bytes_per_second: 1, ..good }),
        ] {
            assert_eq!(wrong.check().unwrap_err().field(), Some(field));
        }
    }
}
