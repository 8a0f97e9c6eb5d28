//! Messages of DNS (RFC 1035), read strictly: whatever is not well formed is refused whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::reader::{HEADER, Header, LONGEST_NAME, Name, Reader};

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const AAAA: u16 = 28;
/// EDNS's pseudo-record (RFC 6891).
const OPT: u16 = 41;
pub(crate) const SVCB: u16 = 64;
pub(crate) const HTTPS: u16 = 65;
/// Types 128 to 255 ask for several types, or for a transfer (RFC 6895, section 3.1).
pub(crate) const META_TYPES: std::ops::RangeInclusive<u16> = 128..=255;
const INTERNET: u16 = 1;

/// The most records of an answer that are read.
const MOST_RECORDS: u16 = 128;

/// Response codes (RFC 1035, section 4.1.1).
pub(crate) mod rcode {
    pub(crate) const NO_ERROR: u8 = 0;
    pub(crate) const FORMAT_ERROR: u8 = 1;
    pub(crate) const SERVER_FAILURE: u8 = 2;
    pub(crate) const NO_SUCH_NAME: u8 = 3;
    pub(crate) const NOT_IMPLEMENTED: u8 = 4;
    pub(crate) const REFUSED: u8 = 5;
}

/// What a machine asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) id: u16,
    pub(crate) recursion_desired: bool,
    pub(crate) name: Name,
    pub(crate) kind: u16,
    /// The question as it was written: an answer repeats it to the letter.
    pub(crate) question: Vec<u8>,
    /// The largest answer that the asker takes over UDP, when it speaks EDNS.
    pub(crate) edns: Option<u16>,
}

/// Why a message gets no answer, or one without a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Nobody to answer: too short, or an answer itself.
    Ignore,
    /// To be answered with this code and nothing else.
    Code { id: u16, code: u8 },
}

impl Query {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut reader = Reader { bytes, at: 0 };
        let header = reader.header().ok_or(Unreadable::Ignore)?;
        if header.is_response() {
            return Err(Unreadable::Ignore);
        }
        let code = |code| Unreadable::Code { id: header.id, code };
        if header.operation() != 0 {
            return Err(code(rcode::NOT_IMPLEMENTED));
        }
        if header.counts[0] != 1 || header.counts[1] != 0 || header.counts[2] != 0 || header.counts[3] > 1 {
            return Err(code(rcode::FORMAT_ERROR));
        }
        Self::read_body(&mut reader, &header).ok_or(code(rcode::FORMAT_ERROR))
    }

    fn read_body(reader: &mut Reader<'_>, header: &Header) -> Option<Self> {
        let name = reader.plain_name()?;
        let kind = reader.u16()?;
        if reader.u16()? != INTERNET {
            return None;
        }
        let question = reader.bytes.get(HEADER..reader.at)?.to_vec();
        let mut edns = None;
        if header.counts[3] == 1 {
            // The root's name, the type, the size, four bytes of flags, the options.
            if reader.u8()? != 0 || reader.u16()? != OPT {
                return None;
            }
            edns = Some(reader.u16()?);
            reader.take(4)?;
            let length = usize::from(reader.u16()?);
            reader.take(length)?;
        }
        if reader.at != reader.bytes.len() {
            return None;
        }
        Some(Self {
            id: header.id,
            recursion_desired: header.flags & 0x0100 != 0,
            name,
            kind,
            question,
            edns,
        })
    }

    /// The same question in our words, for a resolver: with recursion, and with EDNS for answers of up to `largest` bytes.
    pub(crate) fn for_upstream(&self, id: u16, largest: u16) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + LONGEST_NAME + 16);
        bytes.extend(id.to_be_bytes());
        bytes.extend([0x01, 0x00]);
        for count in [1_u16, 0, 0, 1] {
            bytes.extend(count.to_be_bytes());
        }
        bytes.extend(self.name.wire());
        bytes.extend(self.kind.to_be_bytes());
        bytes.extend(INTERNET.to_be_bytes());
        push_edns(&mut bytes, largest);
        bytes
    }
}

pub(crate) fn push_edns(bytes: &mut Vec<u8>, largest: u16) {
    bytes.push(0);
    bytes.extend(OPT.to_be_bytes());
    bytes.extend(largest.to_be_bytes());
    bytes.extend([0; 6]);
}

/// A record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) owner: Name,
    /// Seconds.
    pub(crate) ttl: u32,
    pub(crate) data: Data,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    Address(IpAddr),
    Alias(Name),
    Other,
}

/// What a resolver answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) code: u8,
    pub(crate) truncated: bool,
    pub(crate) answers: Vec<Record>,
    /// The message up to the end of its answers. A name in it points back only, so nothing in it points out of it.
    pub(crate) through_answers: Vec<u8>,
}

impl Response {
    /// None for anything but a well-formed answer to this question under this id.
    pub(crate) fn read(bytes: &[u8], id: u16, query: &Query) -> Option<Self> {
        let mut reader = Reader { bytes, at: 0 };
        let header = reader.header()?;
        let [questions, answers, ..] = header.counts;
        if !header.is_response() || header.operation() != 0 || header.id != id || questions != 1 {
            return None;
        }
        if reader.plain_name()? != query.name || reader.u16()? != query.kind || reader.u16()? != INTERNET {
            return None;
        }
        let truncated = header.flags & 0x0200 != 0;
        let mut records = Vec::new();
        if !truncated {
            if answers > MOST_RECORDS {
                return None;
            }
            for _ in 0..answers {
                records.extend(reader.record()?);
            }
        }
        Some(Self {
            // The four low bits; EDNS's upper ones are of errors that are all the same to a machine.
            code: u8::try_from(header.flags & 0x000f).ok()?,
            truncated,
            answers: records,
            through_answers: bytes.get(..reader.at)?.to_vec(),
        })
    }
}

impl Reader<'_> {
    /// The inner none is a record of another class than the internet's.
    fn record(&mut self) -> Option<Option<Record>> {
        let (owner, _) = self.any_name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        // More than 31 bits count as none (RFC 2181, section 8).
        let ttl = Some(self.u32()?).filter(|ttl| *ttl <= 0x7fff_ffff).unwrap_or(0);
        let length = usize::from(self.u16()?);
        let start = self.at;
        let bytes = self.take(length)?;
        let data = match kind {
            A => Data::Address(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
            AAAA => Data::Address(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
            CNAME => {
                let mut inner = Reader { bytes: self.bytes, at: start };
                let (target, _) = inner.any_name()?;
                if inner.at != start + length {
                    return None;
                }
                Data::Alias(target)
            }
            _ => Data::Other,
        };
        Some((class == INTERNET).then_some(Record { owner, ttl, data }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A query as resolvers write it.
    pub(crate) fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
        push_name(&mut bytes, name);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes
    }

    pub(crate) fn push_name(bytes: &mut Vec<u8>, name: &str) {
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
    }

    /// An answer to `asked` under its id, with records of an owner, a type and data.
    pub(crate) fn response(asked: &[u8], records: &[(&str, u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = asked.to_vec();
        bytes[2..4].copy_from_slice(&[0x81, 0x80]);
        bytes[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
        for (owner, kind, data) in records {
            push_name(&mut bytes, owner);
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1, 0, 0, 0, 60]);
            bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(data);
        }
        bytes
    }

    fn name(text: &str) -> Name {
        let mut wire = Vec::new();
        push_name(&mut wire, text);
        Name::from_wire(wire)
    }

    #[test]
    fn a_query_is_read_and_its_question_kept_to_the_letter() {
        let mut bytes = query("API.Example.com", AAAA);
        bytes[11] = 1;
        push_edns(&mut bytes, 4096);
        let read = Query::read(&bytes).unwrap();
        assert_eq!((read.id, read.kind, read.edns, read.recursion_desired), (0x1234, AAAA, Some(4096), true));
        assert_eq!(read.name.text().as_deref(), Some("api.example.com"));
        assert_eq!(read.question, &bytes[12..12 + read.question.len()]);
        assert!(read.question.windows(3).any(|three| three == b"API"));
        let ours = Query::read(&read.for_upstream(7, 1232)).unwrap();
        assert_eq!((ours.id, ours.name, ours.kind, ours.edns), (7, read.name, AAAA, Some(1232)));
    }

    #[test]
    fn what_is_no_query_is_told_so_or_ignored() {
        let good = query("a.com", A);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Query::read(&bytes).unwrap_err()
        };
        let code = |code| Unreadable::Code { id: 0x1234, code };
        assert_eq!(with(2, 0x81), Unreadable::Ignore, "an answer");
        assert_eq!(with(2, 0x28), code(rcode::NOT_IMPLEMENTED), "an update");
        assert_eq!(with(5, 2), code(rcode::FORMAT_ERROR), "two questions");
        assert_eq!(with(7, 1), code(rcode::FORMAT_ERROR), "an answer in a question");
        assert_eq!(with(11, 1), code(rcode::FORMAT_ERROR), "EDNS that is not there");
        assert_eq!(with(12, 0xc0), code(rcode::FORMAT_ERROR), "a pointer in a question");
        assert_eq!(with(good.len() - 1, 3), code(rcode::FORMAT_ERROR), "another class");
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(Query::read(&longer).unwrap_err(), code(rcode::FORMAT_ERROR));
        for length in 0..good.len() {
            assert!(Query::read(&good[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn names_of_other_bytes_have_no_text() {
        for (wire, text) in [
            (&b"\x01a\x00"[..], Some("a")),
            (b"\x00", None),
            (b"\x03a.b\x00", None),
            (b"\x02\xff\xfe\x00", None),
            (b"\x01*\x01a\x00", None),
        ] {
            assert_eq!(Name::from_wire(wire.to_vec()).text().as_deref(), text, "{wire:?}");
        }
    }

    #[test]
    fn an_answer_is_read_with_its_pointers() {
        let asked = query("www.example.com", A);
        let read = Query::read(&asked).unwrap();
        let mut bytes = response(&asked, &[]);
        bytes[7] = 2;
        // www.example.com (a pointer) is an alias of cdn.example.com (a label and a pointer).
        bytes.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 6, 3, b'c', b'd', b'n', 0xc0, 16]);
        let alias = bytes.len() - 6;
        bytes.extend([0xc0, u8::try_from(alias).unwrap(), 0, 1, 0, 1, 0xff, 0, 0, 0, 0, 4, 198, 51, 100, 7]);
        let answer = Response::read(&bytes, 0x1234, &read).unwrap();
        let expected = [
            Record { owner: name("www.example.com"), ttl: 9, data: Data::Alias(name("cdn.example.com")) },
            Record {
                owner: name("cdn.example.com"),
                ttl: 0,
                data: Data::Address("198.51.100.7".parse().unwrap()),
            },
        ];
        assert_eq!(answer.answers, expected);
        assert_eq!(answer.through_answers, bytes);
        assert!(Response::read(&bytes, 0x1235, &read).is_none(), "another id");
        let other = Query::read(&query("www.example.org", A)).unwrap();
        assert!(Response::read(&bytes, 0x1234, &other).is_none(), "another question");
        for length in 0..bytes.len() {
            assert!(Response::read(&bytes[..length], 0x1234, &read).is_none(), "{length}");
        }
    }

    #[test]
    fn pointers_that_lead_on_or_around_are_refused() {
        let asked = query("a.com", A);
        let read = Query::read(&asked).unwrap();
        let start = u8::try_from(asked.len()).unwrap();
        for pointer in [[0xc0, start], [0xc0, start + 2], [0xc0, 0], [0xff, 0xff], [0x80, 12], [0x40, 12]] {
            let mut bytes = response(&asked, &[]);
            bytes[7] = 1;
            bytes.extend(pointer);
            bytes.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 1, 2, 3, 4]);
            assert!(Response::read(&bytes, 0x1234, &read).is_none(), "{pointer:?}");
        }
    }

    #[test]
    fn garbage_is_never_more_than_refused() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let asked = query("www.example.com", A);
        let read = Query::read(&asked).unwrap();
        let whole = response(
            &asked,
            &[
                ("www.example.com", CNAME, vec![1, b'b', 0]),
                ("b", A, vec![198, 51, 100, 1]),
                ("b", 16, vec![0; 9]),
            ],
        );
        assert_eq!(Response::read(&whole, 0x1234, &read).unwrap().answers.len(), 3);
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..=next() % 6 {
                let at = usize::try_from(next()).unwrap() % bytes.len();
                bytes[at] = next().to_le_bytes()[0];
            }
            if let Some(answer) = Response::read(&bytes, 0x1234, &read) {
                assert!(answer.answers.len() <= usize::from(MOST_RECORDS));
            }
            let _ = Query::read(&bytes);
            let noise: Vec<u8> = (0..next() % 600).map(|_| next().to_le_bytes()[0]).collect();
            let _ = Query::read(&noise);
            let _ = Response::read(&noise, 0, &read);
        }
    }
}
