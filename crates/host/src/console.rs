//! The console's log: bounded on disk, in memory and in rate, whatever the guest writes and whoever is alive.
//!
//! While a driver lives it copies what the monitor gives of the guest's serial port into files named after the offset of their first
//! byte, no more of them than the log's limit, no faster than it was told; a faster guest waits for its own serial port. While no
//! driver lives, the monitor has nobody to write to and drops the output: nothing grows and no guest is held up. What is lost so is
//! marked in the log when a driver has come back.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_clock::Clock;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

const PREFIX: &str = "console.";
/// Stands in the log where output may be missing.
pub const GAP: &[u8] = b"\r\n[flames: what was written here while no driver ran is not kept]\r\n";
/// The least size of the log; below it there would be no use in two files.
pub const MIN_LIMIT: u64 = 8 * 1024;

/// Where a console's log is, and how large it may get.
#[derive(Debug, Clone)]
pub struct ConsoleLog {
    folder: PathBuf,
    limit: u64,
}

/// A part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where `data` begins; larger than asked when older output was dropped.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    start: u64,
    length: u64,
    path: PathBuf,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

impl ConsoleLog {
    /// The log in the folder, of at most `limit` bytes ([`MIN_LIMIT`] at least). Nothing is made before something is written.
    pub fn new(folder: &Path, limit: u64) -> Self {
        Self { folder: folder.to_owned(), limit: limit.max(MIN_LIMIT) }
    }

    /// Two files make the log: the older one is dropped when the newer one is full.
    fn segment_limit(&self) -> u64 {
        self.limit / 2
    }

    /// In order of their offsets. Files with other names are nobody's.
    fn segments(&self) -> io::Result<Vec<Segment>> {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let start =
                name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|text| text.parse().ok());
            let Some(start) = start else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                segments.push(Segment { start, length: metadata.len(), path: entry.path() });
            }
        }
        segments.sort_by_key(|segment| segment.start);
        Ok(segments)
    }

    /// What was written from `from` on, at most `most` bytes. Nothing from beyond the end.
    ///
    /// Errors: those of the file system.
    pub async fn read(&self, from: u64, most: usize) -> io::Result<Chunk> {
        // A segment may be dropped between the listing and the opening; the next listing does not have it.
        for _ in 0..3 {
            let segments = self.segments()?;
            let empty = Chunk { offset: from, data: Bytes::new() };
            let Some(segment) = segments.into_iter().find(|segment| segment.end() > from) else {
                return Ok(empty);
            };
            let offset = from.max(segment.start);
            let mut file = match File::open(&segment.path).await {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            file.seek(io::SeekFrom::Start(offset - segment.start)).await?;
            let mut data = Vec::new();
            file.take(most as u64).read_to_end(&mut data).await?;
            return Ok(Chunk { offset, data: data.into() });
        }
        Ok(Chunk { offset: from, data: Bytes::new() })
    }

    /// Goes on behind what stands in the log. Errors: those of the file system.
    pub fn writer(&self) -> io::Result<ConsoleWriter> {
        let (start, length) = self.segments()?.last().map_or((0, 0), |last| (last.start, last.length));
        Ok(ConsoleWriter { log: self.clone(), file: None, start, length })
    }
}

/// Appends to a console's log. There is one per VM.
#[derive(Debug)]
pub struct ConsoleWriter {
    log: ConsoleLog,
    /// `None` until something is written.
    file: Option<File>,
    start: u64,
    length: u64,
}

impl ConsoleWriter {
    /// Errors: those of the file system; a part of the bytes may stand in the log then.
    pub async fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.length >= self.log.segment_limit() {
                self.begin_segment().await?;
            } else if self.file.is_none() {
                self.open().await?;
            }
            let Some(file) = self.file.as_mut() else { return Err(io::ErrorKind::NotFound.into()) };
            let room = usize::try_from(self.log.segment_limit() - self.length).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            file.write_all(now).await?;
            file.flush().await?;
            self.length += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    async fn begin_segment(&mut self) -> io::Result<()> {
        self.start += self.length;
        self.length = 0;
        self.file = None;
        let segments = self.log.segments()?;
        // Room for the segment to come, which is counted in full.
        let mut kept: u64 = segments.iter().map(|segment| segment.length).sum();
        for segment in segments {
            if kept + self.log.segment_limit() <= self.log.limit {
                break;
            }
            kept -= segment.length;
            tokio::fs::remove_file(&segment.path).await?;
        }
        self.open().await
    }

    async fn open(&mut self) -> io::Result<()> {
        let path = self.log.folder.join(format!("{PREFIX}{}", self.start));
        let mut options = tokio::fs::OpenOptions::new();
        self.file = Some(options.create(true).append(true).mode(0o600).open(path).await?);
        Ok(())
    }
}

/// Copies the console into its log until the monitor ends, at most `bytes_per_second` on average.
pub async fn record(
    mut from: impl AsyncRead + Unpin,
    mut writer: ConsoleWriter,
    clock: Arc<dyn Clock>,
    bytes_per_second: u64,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut window_start = clock.monotonic();
    let mut taken: u64 = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        // A full disk loses output; the guest is not to suffer from it.
        let _ = writer.append(&buffer[..count]).await;
        taken += count as u64;
        let due = Duration::from_secs_f64(taken as f64 / bytes_per_second.max(1) as f64);
        let spent = clock.monotonic().saturating_since(window_start);
        // A burst of up to 100 ms' worth passes at once.
        if let Some(ahead) = due.checked_sub(spent)
            && ahead > Duration::from_millis(100)
        {
            clock.sleep(ahead).await;
        }
        if spent > Duration::from_secs(1) {
            window_start = clock.monotonic();
            taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 256 * 1024;

    fn on_disk(folder: &Path) -> u64 {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }

    #[tokio::test]
    async fn the_log_never_passes_its_limit_and_tells_what_it_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let log = ConsoleLog::new(folder.path(), MIN_LIMIT);
        let mut writer = log.writer().unwrap();
        let mut written = Vec::new();
        for index in 0..3_000 {
            let line = format!("line {index}\n");
            writer.append(line.as_bytes()).await.unwrap();
            written.extend_from_slice(line.as_bytes());
            assert!(on_disk(folder.path()) <= MIN_LIMIT);
        }
        let first = log.read(0, MOST).await.unwrap();
        assert!(first.offset > 0, "the oldest was dropped");
        let mut next = first.offset;
        let mut read = Vec::new();
        loop {
            let chunk = log.read(next, MOST).await.unwrap();
            assert_eq!(chunk.offset, next);
            if chunk.data.is_empty() {
                break;
            }
            next += chunk.data.len() as u64;
            read.extend_from_slice(&chunk.data);
        }
        assert_eq!(next, written.len() as u64);
        assert_eq!(read, written[usize::try_from(first.offset).unwrap()..]);
        assert!(read.len() as u64 > MIN_LIMIT / 2 - 16, "half the limit is always kept");
    }

    #[tokio::test]
    async fn a_new_writer_goes_on_where_the_last_one_ended_and_stays_in_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let log = ConsoleLog::new(folder.path(), MIN_LIMIT);
        for round in 0..40 {
            log.writer().unwrap().append(&[round; 700]).await.unwrap();
            assert!(on_disk(folder.path()) <= MIN_LIMIT);
        }
        let last = log.read(39 * 700, MOST).await.unwrap();
        assert_eq!((last.offset, &last.data[..]), (39 * 700, &[39; 700][..]));
        assert_eq!(log.read(40 * 700, MOST).await.unwrap().data.len(), 0);
        assert_eq!(log.read(u64::MAX, MOST).await.unwrap().offset, u64::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_floods_its_console_is_slowed_down() {
        let folder = tempfile::tempdir().unwrap();
        let log = ConsoleLog::new(folder.path(), 64 * 1024);
        let clock: Arc<dyn Clock> =
            Arc::new(flames_clock::SimulatedClock::new(flames_clock::Timestamp::UNIX_EPOCH));
        let before = clock.monotonic();
        let flood = io::Cursor::new(vec![b'x'; 1024 * 1024]);
        record(flood, log.writer().unwrap(), Arc::clone(&clock), 64 * 1024).await;
        let took = clock.monotonic().saturating_since(before);
        assert!(took > Duration::from_secs(14) && took < Duration::from_secs(20), "{took:?}");
        assert!(on_disk(folder.path()) <= 64 * 1024);
    }
}
