//! A guest's console: a bounded log.

use std::collections::VecDeque;

use bytes::Bytes;
use flames_vmm::{ConsoleChunk, MAX_CONSOLE_CHUNK};

/// The last bytes that a guest wrote, with the offset where they begin.
#[derive(Debug)]
pub(crate) struct ConsoleLog {
    begin: u64,
    bytes: VecDeque<u8>,
    limit: usize,
}

impl ConsoleLog {
    pub(crate) fn new(limit: usize) -> Self {
        Self { begin: 0, bytes: VecDeque::new(), limit }
    }

    pub(crate) fn write(&mut self, data: &[u8]) {
        let kept = &data[data.len().saturating_sub(self.limit)..];
        let surplus = (self.bytes.len() + kept.len()).saturating_sub(self.limit);
        self.bytes.drain(..surplus);
        self.bytes.extend(kept);
        self.begin += (surplus + data.len() - kept.len()) as u64;
    }

    pub(crate) fn read(&self, from: u64) -> ConsoleChunk {
        let offset = from.max(self.begin);
        let skipped = usize::try_from(offset - self.begin).unwrap_or(usize::MAX).min(self.bytes.len());
        let end = self.bytes.len().min(skipped.saturating_add(MAX_CONSOLE_CHUNK));
        let data: Bytes = self.bytes.range(skipped..end).copied().collect();
        ConsoleChunk { offset, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_the_newest_bytes_and_tells_where_they_begin() {
        let mut log = ConsoleLog::new(8);
        log.write(b"abcdef");
        assert_eq!(log.read(2), ConsoleChunk { offset: 2, data: Bytes::from_static(b"cdef") });
        log.write(b"ghij");
        assert_eq!(log.read(0), ConsoleChunk { offset: 2, data: Bytes::from_static(b"cdefghij") });
        log.write(b"a line longer than the log");
        assert_eq!(log.read(0), ConsoleChunk { offset: 28, data: Bytes::from_static(b" the log") });
        assert_eq!(log.read(36), ConsoleChunk { offset: 36, data: Bytes::new() });
        assert_eq!(log.read(99), ConsoleChunk { offset: 99, data: Bytes::new() });
    }

    #[test]
    fn a_chunk_is_bounded() {
        let mut log = ConsoleLog::new(2 * MAX_CONSOLE_CHUNK);
        log.write(&vec![b'x'; MAX_CONSOLE_CHUNK + 1]);
        assert_eq!(log.read(0).data.len(), MAX_CONSOLE_CHUNK);
        assert_eq!(log.read(MAX_CONSOLE_CHUNK as u64).data.len(), 1);
    }
}
