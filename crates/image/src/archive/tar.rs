//! A reader of tar archives (ustar, GNU, PAX) that trusts nothing: every length is bounded before memory is taken for it.
//!
//! Formats: POSIX.1-2017 `pax`, and GNU tar's manual, "Basic Tar Format". Sparse entries are refused; Docker, BuildKit, buildah
//! and Go's `archive/tar` never write them.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};

use crate::error::{ImageError, Result};
use crate::tree::Moment;

const RECORD: usize = 512;
/// The longest extended header or long name, in bytes (Go's `archive/tar` has the same bound).
const LONGEST_EXTENSION: u64 = 1 << 20;
/// The most extension headers before one entry.
const MOST_EXTENSIONS: usize = 8;
/// The prefix of PAX records that hold an extended attribute.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What a tar entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TarKind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TarEntry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: TarKind,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) modified: Moment,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Iterates over the entries of a tar stream; [`TarReader::content`] reads the current one's bytes.
pub(crate) struct TarReader<R> {
    stream: R,
    content_left: u64,
    padding: u64,
    global: Extensions,
}

/// PAX records, and the GNU long names, that change the header that follows.
#[derive(Debug, Clone, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Moment>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, content_left: 0, padding: 0, global: Extensions::default() }
    }

    pub(crate) fn into_inner(self) -> R {
        self.stream
    }

    /// The bytes of the current entry that were not read yet.
    pub(crate) fn content(&mut self) -> Content<'_, R> {
        Content { reader: self }
    }

    /// Reads a whole record, or nothing at the stream's end.
    fn record(&mut self) -> Result<Option<[u8; RECORD]>> {
        let mut record = [0; RECORD];
        let mut filled = 0;
        while filled < RECORD {
            match self.stream.read(&mut record[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ImageError::malformed("the archive ends in the middle of a header")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(record))
    }

    fn skip(&mut self, mut bytes: u64) -> Result<()> {
        let mut buffer = [0; 8192];
        while bytes > 0 {
            let wanted = bytes.min(buffer.len() as u64) as usize;
            match self.stream.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(ImageError::malformed("the archive ends in the middle of an entry")),
                Ok(count) => bytes -= count as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > LONGEST_EXTENSION {
            return Err(ImageError::too_large(format!(
                "an extension header is {size} bytes long; at most {LONGEST_EXTENSION} are allowed"
            )));
        }
        let mut bytes = vec![0; size as usize];
        self.stream.read_exact(&mut bytes)?;
        self.skip(padding_of(size))?;
        Ok(bytes)
    }

    /// The next entry, or none at the archive's end.
    pub(crate) fn next(&mut self) -> Result<Option<TarEntry>> {
        let rest = std::mem::take(&mut self.content_left) + std::mem::take(&mut self.padding);
        self.skip(rest)?;
        let mut extensions = self.global.clone();
        for _ in 0..=MOST_EXTENSIONS {
            let Some(record) = self.record()? else { return Ok(None) };
            if record.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            check_sum(&record)?;
            let size = number(&record[124..136])?;
            match record[156] {
                b'x' => read_pax(&self.extension(size)?, &mut extensions)?,
                b'g' => {
                    let records = self.extension(size)?;
                    read_pax(&records, &mut self.global)?;
                    read_pax(&records, &mut extensions)?;
                }
                b'L' => extensions.path = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => extensions.link = Some(until_nul(&self.extension(size)?).to_vec()),
                b'V' => self.skip(size.saturating_add(padding_of(size)))?,
                flag => {
                    let entry = entry_of(&record, flag, size, extensions)?;
                    self.content_left = entry.size;
                    self.padding = padding_of(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
        Err(ImageError::malformed(format!("more than {MOST_EXTENSIONS} extension headers before one entry")))
    }
}

/// See [`TarReader::content`].
pub(crate) struct Content<'a, R> {
    reader: &'a mut TarReader<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = (buffer.len() as u64).min(self.reader.content_left) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.reader.stream.read(&mut buffer[..wanted])?;
        self.reader.content_left -= count as u64;
        Ok(count)
    }
}

fn padding_of(size: u64) -> u64 {
    size.wrapping_neg() % RECORD as u64
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn check_sum(record: &[u8; RECORD]) -> Result<()> {
    let stated = number(&record[148..156])?;
    let blanked = |index: usize, byte: u8| if (148..156).contains(&index) { b' ' } else { byte };
    let unsigned: u64 = record.iter().enumerate().map(|(index, byte)| u64::from(blanked(index, *byte))).sum();
    // Some old writers summed signed bytes.
    let signed: i64 =
        record.iter().enumerate().map(|(index, byte)| i64::from(blanked(index, *byte) as i8)).sum();
    if stated == unsigned || i64::try_from(stated) == Ok(signed) {
        Ok(())
    } else {
        Err(ImageError::malformed("this is no tar archive, or it is damaged: a header's checksum is wrong"))
    }
}

/// A header's number: octal text, or GNU's base 256 when the top bit is set. Negative ones only occur in times.
fn signed_number(field: &[u8]) -> Result<i64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = if index == 0 && !negative { byte & 0x7f } else { *byte };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| ImageError::malformed("a number in a header is too large"));
    }
    let text = until_nul(field).trim_ascii();
    let mut value: i64 = 0;
    for byte in text {
        if !matches!(byte, b'0'..=b'7') {
            return Err(ImageError::malformed(
                "this is no tar archive, or it is damaged: a header's number is none",
            ));
        }
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(byte - b'0')))
            .ok_or_else(|| ImageError::malformed("a number in a header is too large"))?;
    }
    Ok(value)
}

fn number(field: &[u8]) -> Result<u64> {
    u64::try_from(signed_number(field)?)
        .map_err(|_| ImageError::malformed("a number in a header is negative"))
}

fn id(value: u64) -> Result<u32> {
    u32::try_from(value).map_err(|_| ImageError::malformed("an owner in a header is larger than 32 bits"))
}

fn entry_of(record: &[u8; RECORD], flag: u8, size: u64, extensions: Extensions) -> Result<TarEntry> {
    let mut name = until_nul(&record[0..100]).to_vec();
    if &record[257..263] == b"ustar\0" {
        let prefix = until_nul(&record[345..500]);
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
    }
    let path = extensions.path.unwrap_or(name);
    let named = |error: ImageError| error.at(&path);
    let kind = match flag {
        b'0' | b'\0' | b'7' if path.last() == Some(&b'/') => TarKind::Directory,
        b'0' | b'\0' | b'7' => TarKind::File,
        b'1' => TarKind::HardLink,
        b'2' => TarKind::Symlink,
        b'3' => TarKind::CharacterDevice,
        b'4' => TarKind::BlockDevice,
        b'5' => TarKind::Directory,
        b'6' => TarKind::Fifo,
        b'S' => {
            let message = "a sparse entry of GNU tar is not supported; pack the archive without --sparse";
            return Err(named(ImageError::unsupported(message)));
        }
        other => {
            let message = format!("an entry of type {:?} is not supported", char::from(other));
            return Err(named(ImageError::unsupported(message)));
        }
    };
    let is_device = matches!(kind, TarKind::CharacterDevice | TarKind::BlockDevice);
    let read = |range: std::ops::Range<usize>| number(&record[range]).map_err(named);
    Ok(TarEntry {
        link: extensions.link.unwrap_or_else(|| until_nul(&record[157..257]).to_vec()),
        kind,
        mode: (read(100..108)? & 0o7777) as u16,
        uid: match extensions.uid {
            Some(uid) => uid,
            None => id(read(108..116)?).map_err(named)?,
        },
        gid: match extensions.gid {
            Some(gid) => gid,
            None => id(read(116..124)?).map_err(named)?,
        },
        // Only files have contents, whatever the header says (as in Go's archive/tar).
        size: if kind == TarKind::File { extensions.size.unwrap_or(size) } else { 0 },
        modified: match extensions.modified {
            Some(moment) => moment,
            None => Moment { seconds: signed_number(&record[136..148]).map_err(named)?, nanoseconds: 0 },
        },
        major: if is_device { id(read(329..337)?).map_err(named)? } else { 0 },
        minor: if is_device { id(read(337..345)?).map_err(named)? } else { 0 },
        xattrs: extensions.xattrs,
        path,
    })
}

/// Reads PAX records: `<length> <key>=<value>\n`, where the length counts the whole record.
fn read_pax(mut records: &[u8], into: &mut Extensions) -> Result<()> {
    let wrong = || ImageError::malformed("a PAX extension header is damaged");
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length: usize = std::str::from_utf8(&records[..space])
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(wrong)?;
        if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
            return Err(wrong());
        }
        let record = &records[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        records = &records[length..];
        let text = || std::str::from_utf8(value).map_err(|_| wrong());
        match key {
            b"path" => into.path = Some(value.to_vec()),
            b"linkpath" => into.link = Some(value.to_vec()),
            b"size" => into.size = Some(text()?.parse().map_err(|_| wrong())?),
            b"uid" => into.uid = Some(id(text()?.parse().map_err(|_| wrong())?)?),
            b"gid" => into.gid = Some(id(text()?.parse().map_err(|_| wrong())?)?),
            b"mtime" => into.modified = Some(pax_time(text()?).ok_or_else(wrong)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                let message = "a sparse entry of GNU tar is not supported; pack the archive without --sparse";
                return Err(ImageError::unsupported(message));
            }
            _ if key.starts_with(XATTR_PREFIX) => {
                into.xattrs.insert(key[XATTR_PREFIX.len()..].to_vec(), value.to_vec());
            }
            _ => {}
        }
    }
    Ok(())
}

/// A PAX time: decimal seconds, with a fraction perhaps, negative perhaps.
fn pax_time(text: &str) -> Option<Moment> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    // -1.5 s is half a second after second -2.
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(Moment { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Some(Moment { seconds, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_octal_and_base_256() {
        assert_eq!(signed_number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(signed_number(b"  12 \0").unwrap(), 0o12);
        assert_eq!(signed_number(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]).unwrap(), 1 << 32);
        assert_eq!(signed_number(&[0xff; 12]).unwrap(), -1);
        assert!(signed_number(&[0xbf; 12]).is_err());
        assert!(number(b"8").is_err());
    }

    #[test]
    fn times_with_fractions_and_before_1970_are_kept() {
        assert_eq!(pax_time("12.5"), Some(Moment { seconds: 12, nanoseconds: 500_000_000 }));
        assert_eq!(pax_time("-1.25"), Some(Moment { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(pax_time("1.x"), None);
    }

    #[test]
    fn a_damaged_pax_record_is_an_error_and_not_a_panic() {
        for records in
            [&b"5"[..], b"3 a", b"0 a=b\n", b"99 a=b\n", b"6 a=b", b"6 abc\n", b"18446744073709551615 a=b\n"]
        {
            assert!(read_pax(records, &mut Extensions::default()).is_err(), "{records:?}");
        }
        let mut read = Extensions::default();
        read_pax(b"9 size=7\n25 SCHILY.xattr.user.a==\n\n", &mut read).unwrap_err();
        read_pax(b"9 size=7\n", &mut read).unwrap();
        assert_eq!(read.size, Some(7));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048)) {
            let mut reader = TarReader::new(bytes.as_slice());
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
