//! Messages and attributes (netlink(7)), and the batch that holds them.

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h).
pub(super) const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_BATCH_GENID`.
const BATCH_GENERATION: u16 = 1;

// linux/netlink.h
pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACKNOWLEDGE: u16 = 0x4;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
/// `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
const FLAGS_AT: usize = 6;

/// Attributes, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// An attribute of at most 64 KiB.
    pub(super) fn bytes(&mut self, kind: u16, bytes: &[u8]) {
        let length = u16::try_from(bytes.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn number(&mut self, kind: u16, number: u32) {
        self.bytes(kind, &number.to_be_bytes());
    }

    pub(super) fn long(&mut self, kind: u16, number: u64) {
        self.bytes(kind, &number.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }

    pub(super) fn append(&mut self, kind: u16, inner: &Self) {
        self.bytes(kind | NESTED, &inner.0);
    }
}

/// A transaction under way. The sequence number of a message is the number of the change that it belongs to.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where the last message of a change begins.
    last: Option<usize>,
    /// How many changes are in it.
    pub(super) changes: u32,
    sets: u32,
}

impl Batch {
    pub(super) fn new(generation: Option<u32>) -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(16 * 1024), last: None, changes: 0, sets: 0 };
        let mut attributes = Attributes::default();
        if let Some(generation) = generation {
            attributes.number(BATCH_GENERATION, generation);
        }
        write(&mut batch.bytes, BATCH_BEGIN, REQUEST, 0, 0, SUBSYSTEM, &attributes);
        batch
    }

    /// An id for a set, unique in the batch.
    pub(super) fn set_id(&mut self) -> u32 {
        self.sets += 1;
        self.sets
    }

    /// `kind`: one of `enum nf_tables_msg_types`.
    pub(super) fn message(&mut self, kind: u16, flags: u16, family: u8, attributes: &Attributes) {
        self.last = Some(self.bytes.len());
        let kind = (SUBSYSTEM << 8) | kind;
        write(&mut self.bytes, kind, REQUEST | flags, self.changes, family, 0, attributes);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        // One acknowledgement, of what comes last: no kernel in use answers to a batch's end.
        if let Some(flags) = self.last.and_then(|at| self.bytes.get_mut(at + FLAGS_AT)) {
            *flags |= ACKNOWLEDGE.to_ne_bytes()[0];
        }
        write(&mut self.bytes, BATCH_END, REQUEST, self.changes, 0, SUBSYSTEM, &Attributes::default());
        self.bytes
    }
}

/// A message that is alone.
pub(super) fn single(kind: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, (SUBSYSTEM << 8) | kind, REQUEST, 0, 0, 0, &Attributes::default());
    bytes
}

/// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
fn write(
    to: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &Attributes,
) {
    let length = u32::try_from(HEADER + 4 + attributes.0.len()).unwrap_or(u32::MAX);
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(flags.to_ne_bytes());
    to.extend(sequence.to_ne_bytes());
    to.extend(0_u32.to_ne_bytes());
    to.extend([family, 0]);
    to.extend(resource.to_be_bytes());
    to.extend(&attributes.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_begin_at_multiples_of_four_and_tell_their_own_length() {
        let mut attributes = Attributes::default();
        attributes.text(1, "ab");
        attributes.nested(2, |inner| inner.number(3, 0x0102_0304));
        let little = u16::from_ne_bytes([1, 0]) == 1;
        if little {
            let expected = [7, 0, 1, 0, b'a', b'b', 0, 0, 12, 0, 2, 0x80, 8, 0, 3, 0, 1, 2, 3, 4];
            assert_eq!(attributes.0, expected);
        }
    }

    #[test]
    fn a_batch_asks_for_the_acknowledgement_of_its_last_message_alone() {
        let mut batch = Batch::new(Some(7));
        batch.message(0, CREATE, 1, &Attributes::default());
        batch.message(3, CREATE, 1, &Attributes::default());
        let bytes = batch.finish();
        let mut flags = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            flags.push(u16::from_ne_bytes([rest[6], rest[7]]) & ACKNOWLEDGE != 0);
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            rest = &rest[length..];
        }
        assert_eq!(flags, [false, false, true, false]);
    }
}
