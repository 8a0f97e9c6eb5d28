//! Extended attributes as ext4 keeps them: in the inode's tail if all fit there, else in one block.

use std::collections::BTreeMap;

use crate::error::{ImageError, Result};
use crate::spool::BLOCK;
use crate::tree::Attributes;

/// The first word of both places.
const MAGIC: u32 = 0xEA02_0000;
/// The room behind the inode's fixed part (128 + 32 bytes of 256), the magic included.
pub(super) const INODE_ROOM: usize = 96;
const BLOCK_HEADER: usize = 32;
/// The list ends with a word of zeros.
const END: usize = 4;

/// Name prefixes that are stored as a number (fs/ext4/xattr.h). The access lists stand for a whole name.
const PREFIXES: [(u8, &[u8]); 6] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
    (7, b"system."),
];

/// One attribute in ext4's form. Ordered as the kernel searches a block: number, length of the name, name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stored {
    index: u8,
    name_length: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Stored {
    fn entry_bytes(&self) -> usize {
        (16 + self.name.len()).next_multiple_of(4)
    }

    fn value_bytes(&self) -> usize {
        self.value.len().next_multiple_of(4)
    }

    /// The hash of fs/ext4/xattr.c, `ext4_xattr_hash_entry`.
    fn hash(&self) -> u32 {
        let mut hash: u32 = 0;
        for byte in &self.name {
            hash = hash.rotate_left(5) ^ u32::from(*byte);
        }
        for word in self.value.chunks(4) {
            let mut bytes = [0; 4];
            bytes[..word.len()].copy_from_slice(word);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(bytes);
        }
        hash
    }
}

fn stored(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<Stored>> {
    let mut all = Vec::with_capacity(xattrs.len());
    for (full, value) in xattrs {
        let shown = crate::error::printable(full);
        let (index, prefix) = PREFIXES
            .iter()
            .find(
                |(index, prefix)| {
                    if matches!(index, 2 | 3) { full == prefix } else { full.starts_with(prefix) }
                },
            )
            .ok_or_else(|| {
                ImageError::unsupported(format!("the attribute {shown:?} is of no namespace that Linux has"))
            })?;
        let name = full[prefix.len()..].to_vec();
        if name.len() > 255 || (name.is_empty() && !matches!(index, 2 | 3)) || name.contains(&0) {
            return Err(ImageError::malformed(format!(
                "the attribute's name {shown:?} is empty, too long or holds NUL"
            )));
        }
        let value = if matches!(index, 2 | 3) {
            access_list(value)
                .ok_or_else(|| ImageError::malformed(format!("{shown} is no POSIX access list")))?
        } else {
            value.clone()
        };
        all.push(Stored { index: *index, name_length: name.len(), name, value });
    }
    all.sort();
    Ok(all)
}

/// An access list as ext4 stores it (fs/ext4/acl.h), from the form that system calls use (linux/posix_acl_xattr.h).
fn access_list(bytes: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = bytes.split_at_checked(4)?;
    if version != 2u32.to_le_bytes() || entries.len() % 8 != 0 {
        return None;
    }
    let mut stored = 1u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        stored.extend(&entry[..4]);
        // Only named users (2) and groups (8) have an id.
        if matches!(u16::from_le_bytes([entry[0], entry[1]]), 2 | 8) {
            stored.extend(&entry[4..]);
        }
    }
    Some(stored)
}

fn needed(all: &[Stored]) -> usize {
    all.iter().map(|one| one.entry_bytes() + one.value_bytes()).sum::<usize>() + END
}

fn fit_inode(all: &[Stored]) -> bool {
    4 + needed(all) <= INODE_ROOM
}

/// Refuses attributes that ext4 cannot hold, so that the error can name the entry.
pub(crate) fn check_attributes(attributes: &Attributes) -> Result<()> {
    if attributes.xattrs.is_empty() {
        return Ok(());
    }
    let room = BLOCK - BLOCK_HEADER;
    let bytes = needed(&stored(&attributes.xattrs)?);
    if bytes > room {
        return Err(ImageError::too_large(format!(
            "the extended attributes take {bytes} bytes; ext4 has {room} for one file's"
        )));
    }
    Ok(())
}

/// Whether the attributes need a block of their own.
pub(super) fn needs_block(attributes: &Attributes) -> bool {
    !attributes.xattrs.is_empty() && stored(&attributes.xattrs).is_ok_and(|all| !fit_inode(&all))
}

/// The inode's tail with the attributes, when they fit there.
pub(super) fn in_inode(attributes: &Attributes) -> Result<[u8; INODE_ROOM]> {
    let mut tail = [0; INODE_ROOM];
    if !attributes.xattrs.is_empty() {
        let all = stored(&attributes.xattrs)?;
        if fit_inode(&all) {
            tail[..4].copy_from_slice(&MAGIC.to_le_bytes());
            // Offsets count from the first entry.
            write_entries(&all, &mut tail[4..], 0);
        }
    }
    Ok(tail)
}

/// The block with the attributes.
pub(super) fn in_block(attributes: &Attributes) -> Result<[u8; BLOCK]> {
    let mut block = [0; BLOCK];
    let all = stored(&attributes.xattrs)?;
    // Offsets count from the start of the block.
    write_entries(&all, &mut block, BLOCK_HEADER);
    let hash = all.iter().fold(0u32, |hash, one| hash.rotate_left(16) ^ one.hash());
    let one = 1u32.to_le_bytes();
    block[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    block[4..8].copy_from_slice(&one);
    block[8..12].copy_from_slice(&one);
    block[12..16].copy_from_slice(&hash.to_le_bytes());
    Ok(block)
}

/// Entries from `at` upwards, values from the end downwards.
fn write_entries(all: &[Stored], area: &mut [u8], mut at: usize) {
    let mut end = area.len();
    for one in all {
        end -= one.value_bytes();
        area[end..end + one.value.len()].copy_from_slice(&one.value);
        let offset = if one.value.is_empty() { 0 } else { end as u16 };
        let entry = &mut area[at..at + one.entry_bytes()];
        entry[0] = one.name.len() as u8;
        entry[1] = one.index;
        entry[2..4].copy_from_slice(&offset.to_le_bytes());
        entry[8..12].copy_from_slice(&(one.value.len() as u32).to_le_bytes());
        entry[12..16].copy_from_slice(&one.hash().to_le_bytes());
        entry[16..16 + one.name.len()].copy_from_slice(&one.name);
        at += one.entry_bytes();
    }
}
