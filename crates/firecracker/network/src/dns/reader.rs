//! The elements of messages: numbers, and names with their pointers.

/// How long a header is.
pub(crate) const HEADER: usize = 12;
/// The longest name with its lengths and its end (RFC 1035, section 2.3.4).
pub(crate) const LONGEST_NAME: usize = 255;

/// A name as it stands in messages, uncompressed and in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(Vec<u8>);

impl Name {
    #[cfg(test)]
    pub(crate) fn from_wire(wire: Vec<u8>) -> Self {
        Self(wire)
    }

    /// Lengths and labels, up to the root's zero.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The name as text without the last dot; none for the root, and for a name of other bytes than host names have.
    pub(crate) fn text(&self) -> Option<String> {
        let mut text = String::new();
        let mut rest = self.0.as_slice();
        while let Some((length, behind)) = rest.split_first().filter(|(length, _)| **length > 0) {
            let (label, behind) = behind.split_at_checked(usize::from(*length))?;
            if !label.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_')) {
                return None;
            }
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(std::str::from_utf8(label).ok()?);
            rest = behind;
        }
        (!text.is_empty()).then_some(text)
    }
}

/// A message's first twelve bytes (RFC 1035, section 4.1.1).
pub(crate) struct Header {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    /// Of questions, answers, authorities and additional records.
    pub(crate) counts: [u16; 4],
}

impl Header {
    pub(crate) fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    pub(crate) fn operation(&self) -> u16 {
        self.flags >> 11 & 0x000f
    }
}

/// Reads a message from its front. None from any of it: there is not so much, or it is not well formed.
pub(crate) struct Reader<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(crate) fn header(&mut self) -> Option<Header> {
        Some(Header {
            id: self.u16()?,
            flags: self.u16()?,
            counts: [self.u16()?, self.u16()?, self.u16()?, self.u16()?],
        })
    }

    /// A name that is written out.
    pub(crate) fn plain_name(&mut self) -> Option<Name> {
        let before = self.at;
        let (name, pointed) = self.any_name()?;
        (!pointed && self.at - before == name.0.len()).then_some(name)
    }

    /// A name, and whether it points to its end elsewhere. Pointers lead back, each further than the one before, so reading ends.
    pub(crate) fn any_name(&mut self) -> Option<(Name, bool)> {
        let mut wire = Vec::new();
        let mut at = self.at;
        let mut behind = None;
        let mut lowest = self.at;
        loop {
            let length = *self.bytes.get(at)?;
            match length & 0xc0 {
                0x00 => {
                    let end = at + 1 + usize::from(length);
                    wire.push(length);
                    wire.extend(self.bytes.get(at + 1..end)?.iter().map(u8::to_ascii_lowercase));
                    if wire.len() > LONGEST_NAME {
                        return None;
                    }
                    at = end;
                    if length == 0 {
                        break;
                    }
                }
                0xc0 => {
                    let to = usize::from(length & 0x3f) << 8 | usize::from(*self.bytes.get(at + 1)?);
                    behind.get_or_insert(at + 2);
                    if to >= lowest || to < HEADER {
                        return None;
                    }
                    lowest = to;
                    at = to;
                }
                _ => return None,
            }
        }
        self.at = behind.unwrap_or(at);
        Some((Name(wire), behind.is_some()))
    }
}
