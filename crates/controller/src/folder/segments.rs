//! A log of output in segments. The oldest segment is dropped when the log is full.
//!
//! An entry is a header (length of the data `u32`, stream `u8`, time in milliseconds since 1970 `u64`, offset `u64`; little-endian) and the
//! data. A segment's file is named after the position of its first byte in all that was ever appended. A write that was cut off
//! leaves a part of an entry at the end of the last segment, which the next writer cuts away.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{MAX_ENTRY, OutputEntry, OutputPage};

/// The bytes before an entry's data.
pub(crate) const HEADER: usize = 4 + 1 + 8 + 8;
/// In how many segments a log is kept.
const SEGMENTS: u64 = 4;

/// The end of a log: where the next entry goes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tail {
    /// The position of the last segment's first byte.
    segment: u64,
    /// How many bytes the last segment has.
    length: u64,
    /// The offset behind the last byte of output.
    pub(crate) offset: u64,
}

fn path(folder: &Path, segment: u64) -> PathBuf {
    folder.join(format!("{segment:020}.log"))
}

/// The segments that are there, oldest first, with their lengths.
fn segments(folder: &Path) -> std::io::Result<Vec<(u64, u64)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let position =
            name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|name| name.parse().ok());
        if let Some(position) = position {
            found.push((position, entry.metadata()?.len()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn number<const N: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

/// The next whole entry of a file; none at its end, or where it is cut off or damaged.
fn read_entry(file: &mut impl Read) -> std::io::Result<Option<OutputEntry>> {
    let mut header = [0; HEADER];
    let cut_off = |error: std::io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => Ok(None),
        _ => Err(error),
    };
    if let Err(error) = file.read_exact(&mut header) {
        return cut_off(error);
    }
    let length = u32::from_le_bytes(number(&header, 0)) as usize;
    if length > MAX_ENTRY {
        return Ok(None);
    }
    let mut data = vec![0; length];
    if let Err(error) = file.read_exact(&mut data) {
        return cut_off(error);
    }
    Ok(Some(OutputEntry {
        stream: header[4],
        at_ms: u64::from_le_bytes(number(&header, 5)),
        offset: u64::from_le_bytes(number(&header, 13)),
        data: data.into(),
    }))
}

/// Finds the end of a log, and cuts away what a writer left unfinished there.
pub(crate) fn open(folder: &Path) -> std::io::Result<Tail> {
    let mut tail = Tail::default();
    // The last segment may hold no whole entry; then the one before tells the offset.
    for (segment, length) in segments(folder)?.into_iter().rev().take(2) {
        let mut file = std::io::BufReader::new(File::open(path(folder, segment))?);
        let (mut whole, mut end) = (0, None);
        while let Some(entry) = read_entry(&mut file)? {
            whole += (HEADER + entry.data.len()) as u64;
            end = Some(entry.end());
        }
        if tail.segment == 0 && tail.length == 0 {
            (tail.segment, tail.length) = (segment, whole);
            if whole < length {
                OpenOptions::new().write(true).open(path(folder, segment))?.set_len(whole)?;
            }
        }
        if let Some(end) = end {
            tail.offset = end;
            break;
        }
    }
    Ok(tail)
}

/// Appends entries, and drops the oldest segments so that about `kept` bytes stay.
pub(crate) fn append(
    folder: &Path,
    tail: &mut Tail,
    kept: u64,
    entries: &[OutputEntry],
) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let most = (kept / SEGMENTS).max(1);
    let mut buffer = Vec::new();
    let mut next = *tail;
    for entry in entries {
        if next.length >= most {
            flush(folder, tail, &mut buffer, next)?;
            next = Tail { segment: next.segment + next.length, length: 0, offset: next.offset };
            *tail = next;
            let found = segments(folder)?;
            let dropped = found.len().saturating_sub(SEGMENTS as usize - 1);
            for (oldest, _) in found.into_iter().take(dropped) {
                fs::remove_file(path(folder, oldest))?;
            }
        }
        let length = u32::try_from(entry.data.len()).unwrap_or(u32::MAX);
        buffer.extend_from_slice(&length.to_le_bytes());
        buffer.push(entry.stream);
        buffer.extend_from_slice(&entry.at_ms.to_le_bytes());
        buffer.extend_from_slice(&entry.offset.to_le_bytes());
        buffer.extend_from_slice(&entry.data);
        next.length += (HEADER + entry.data.len()) as u64;
        next.offset = entry.end();
    }
    flush(folder, tail, &mut buffer, next)
}

fn flush(folder: &Path, tail: &mut Tail, buffer: &mut Vec<u8>, after: Tail) -> std::io::Result<()> {
    if buffer.is_empty() {
        return Ok(());
    }
    let target = path(folder, tail.segment);
    let mut options = OpenOptions::new();
    let mut file = options.create(true).write(true).truncate(false).mode(0o600).open(target)?;
    // Not in append mode: what an earlier write left unfinished is overwritten.
    file.seek(SeekFrom::Start(tail.length))?;
    let written = file.write_all(buffer);
    if written.is_err() {
        file.set_len(tail.length)?;
    }
    written?;
    buffer.clear();
    *tail = after;
    Ok(())
}

/// Reads entries from a position on.
pub(crate) fn read(folder: &Path, from: u64, most_bytes: usize) -> std::io::Result<OutputPage> {
    let mut page = OutputPage { entries: Vec::new(), next: from };
    let mut taken = 0;
    for (segment, length) in segments(folder)? {
        if segment + length <= page.next {
            continue;
        }
        page.next = page.next.max(segment);
        let mut file = match File::open(path(folder, segment)) {
            // Dropped meanwhile, as too old.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            file => std::io::BufReader::new(file?),
        };
        file.seek(SeekFrom::Start(page.next - segment))?;
        while taken < most_bytes {
            let Some(entry) = read_entry(&mut file)? else { break };
            page.next += (HEADER + entry.data.len()) as u64;
            taken += entry.data.len().max(1);
            page.entries.push(entry);
        }
        if taken >= most_bytes {
            break;
        }
    }
    Ok(page)
}

/// The bytes of a file, at most `most` of its end; none when it is not there.
pub(crate) fn read_end(path: &Path, most: usize) -> std::io::Result<Option<Bytes>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most as u64)))?;
    let mut data = Vec::new();
    file.take(most as u64).read_to_end(&mut data)?;
    Ok(Some(data.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(offset: u64, text: &str) -> OutputEntry {
        OutputEntry { stream: 1, offset, at_ms: 7, data: Bytes::copy_from_slice(text.as_bytes()) }
    }

    fn all(folder: &Path) -> Vec<OutputEntry> {
        let (mut found, mut from) = (Vec::new(), 0);
        loop {
            let page = read(folder, from, 10).unwrap();
            if page.entries.is_empty() {
                return found;
            }
            from = page.next;
            found.extend(page.entries);
        }
    }

    #[test]
    fn output_is_read_back_in_order_and_a_new_writer_goes_on_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut tail = open(folder.path()).unwrap();
        append(folder.path(), &mut tail, 1 << 20, &[entry(0, "ab"), entry(2, "cd")]).unwrap();
        let mut tail = open(folder.path()).unwrap();
        assert_eq!(tail.offset, 4);
        append(folder.path(), &mut tail, 1 << 20, &[entry(4, "ef")]).unwrap();
        assert_eq!(all(folder.path()), [entry(0, "ab"), entry(2, "cd"), entry(4, "ef")]);
    }

    #[test]
    fn a_log_stays_within_its_bound_and_keeps_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let mut tail = open(folder.path()).unwrap();
        let text = "x".repeat(100);
        for number in 0..1_000 {
            append(folder.path(), &mut tail, 4_000, &[entry(number * 100, &text)]).unwrap();
        }
        let bytes: u64 = segments(folder.path()).unwrap().iter().map(|(_, length)| length).sum();
        assert!(bytes <= 4_000 + 121, "{bytes}");
        let kept = all(folder.path());
        assert!(kept.len() > 20);
        assert_eq!(kept.last(), Some(&entry(99_900, &text)));
        assert_eq!(open(folder.path()).unwrap().offset, 100_000);
    }

    #[test]
    fn an_entry_that_was_cut_off_is_cut_away() {
        let folder = tempfile::tempdir().unwrap();
        let mut tail = open(folder.path()).unwrap();
        append(folder.path(), &mut tail, 1 << 20, &[entry(0, "whole"), entry(5, "torn")]).unwrap();
        let file = OpenOptions::new().write(true).open(path(folder.path(), 0)).unwrap();
        file.set_len(tail.length - 2).unwrap();
        let mut tail = open(folder.path()).unwrap();
        assert_eq!(tail.offset, 5);
        append(folder.path(), &mut tail, 1 << 20, &[entry(5, "again")]).unwrap();
        assert_eq!(all(folder.path()), [entry(0, "whole"), entry(5, "again")]);
    }
}
