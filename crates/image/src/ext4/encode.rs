//! Structures as bytes.

use super::layout::{
    Extent, FAST_SYMLINK_BYTES, Inode, Layout, entry_bytes, extents_inline, extents_per_block, mode_and_time,
};
use super::{BLOCKS_PER_GROUP, INODE_BYTES, JOURNAL_INODE, LOST_AND_FOUND_INODE, ROOT_INODE, xattr};
use crate::error::Result;
use crate::spool::BLOCK;
use crate::tree::{Kind, Moment, Tree};

const EXTENTS_FLAG: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xF30A;

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The extent tree: the 60 bytes in the inode, and the blocks below it in the order in which they are stored. `base` is the block
/// where data starts.
pub(super) fn extent_tree(content: &[Extent], tree_start: u64, base: u64) -> ([u8; 60], Vec<[u8; BLOCK]>) {
    // An entry is 12 bytes whether it is a leaf's or an index's.
    let mut level: Vec<(u32, [u8; 12])> = content
        .iter()
        .map(|extent| {
            let mut entry = [0; 12];
            put32(&mut entry, 0, extent.logical);
            put16(&mut entry, 4, extent.blocks as u16);
            put32(&mut entry, 8, (base + extent.data) as u32);
            (extent.logical, entry)
        })
        .collect();
    let mut blocks = Vec::new();
    let mut depth = 0;
    while level.len() > extents_inline() {
        let mut above = Vec::new();
        for part in level.chunks(extents_per_block()) {
            let mut block = [0; BLOCK];
            write_node(&mut block, part, extents_per_block(), depth);
            let mut index = [0; 12];
            put32(&mut index, 0, part[0].0);
            put32(&mut index, 4, (base + tree_start + blocks.len() as u64) as u32);
            above.push((part[0].0, index));
            blocks.push(block);
        }
        level = above;
        depth += 1;
    }
    let mut inline = [0; 60];
    write_node(&mut inline, &level, extents_inline(), depth);
    (inline, blocks)
}

fn write_node(node: &mut [u8], entries: &[(u32, [u8; 12])], room: usize, depth: u16) {
    put16(node, 0, EXTENT_MAGIC);
    put16(node, 2, entries.len() as u16);
    put16(node, 4, room as u16);
    put16(node, 6, depth);
    for (index, (_, entry)) in entries.iter().enumerate() {
        node[12 + index * 12..24 + index * 12].copy_from_slice(entry);
    }
}

/// A directory's blocks.
pub(super) fn directory(own: u32, inode: &Inode, layout: &Layout, tree: &Tree) -> Vec<u8> {
    let mut bytes = vec![0; inode.directory_blocks as usize * BLOCK];
    let kind_of = |number: u32| -> u8 {
        let node = match number {
            ROOT_INODE => return 2,
            other => layout.inodes[(other - LOST_AND_FOUND_INODE) as usize].node,
        };
        match node.map(|id| &tree.node(id).kind) {
            None | Some(Kind::Directory(_)) => 2,
            Some(Kind::File(_)) => 1,
            Some(Kind::CharacterDevice { .. }) => 3,
            Some(Kind::BlockDevice { .. }) => 4,
            Some(Kind::Fifo) => 5,
            Some(Kind::Socket) => 6,
            Some(Kind::Symlink(_)) => 7,
        }
    };
    let mut at = 0;
    let mut previous: Option<usize> = None;
    let mut add = |name: &[u8], number: u32| {
        let size = entry_bytes(name);
        if at % BLOCK + size > BLOCK {
            at = at.next_multiple_of(BLOCK);
        }
        if at % BLOCK == 0 {
            previous = None;
        }
        // An entry reaches to the end of its block until another follows there.
        if let Some(previous) = previous {
            put16(&mut bytes, previous + 4, (at - previous) as u16);
        }
        put32(&mut bytes, at, number);
        put16(&mut bytes, at + 4, (BLOCK - at % BLOCK) as u16);
        bytes[at + 6] = name.len() as u8;
        bytes[at + 7] = kind_of(number);
        bytes[at + 8..at + 8 + name.len()].copy_from_slice(name);
        previous = Some(at);
        at += size;
    };
    add(b".", own);
    add(b"..", inode.parent);
    for (name, number) in &inode.names {
        add(name, *number);
    }
    bytes
}

fn times(bytes: &mut [u8], moment: Moment) {
    // 34 bits of seconds: a signed 32-bit word and two bits that carry on (kernel documentation, "Inode Timestamps").
    let seconds = moment.seconds.clamp(-(1 << 31), (1 << 34) - (1 << 31) - 1);
    let low = seconds as i32;
    let epoch = ((seconds - i64::from(low)) >> 32) as u32 & 3;
    let extra = moment.nanoseconds.min(999_999_999) << 2 | epoch;
    for at in [0x08, 0x0C, 0x10, 0x90] {
        put32(bytes, at, low as u32);
    }
    for at in [0x84, 0x88, 0x8C, 0x94] {
        put32(bytes, at, extra);
    }
}

/// An inode of the tree.
pub(super) fn inode(inode: &Inode, tree: &Tree, base: u64) -> Result<[u8; INODE_BYTES as usize]> {
    let mut bytes = [0; INODE_BYTES as usize];
    let node = inode.node.map(|id| tree.node(id));
    let (mode, modified) = mode_and_time(node);
    put16(&mut bytes, 0x00, mode);
    put16(&mut bytes, 0x1A, inode.links as u16);
    put16(&mut bytes, 0x80, 32);
    times(&mut bytes, modified);
    let mut size = u64::from(inode.directory_blocks) * BLOCK as u64;
    let mut has_extents = true;
    if let Some(node) = node {
        put16(&mut bytes, 0x02, node.attributes.uid as u16);
        put16(&mut bytes, 0x78, (node.attributes.uid >> 16) as u16);
        put16(&mut bytes, 0x18, node.attributes.gid as u16);
        put16(&mut bytes, 0x7A, (node.attributes.gid >> 16) as u16);
        bytes[0xA0..].copy_from_slice(&xattr::in_inode(&node.attributes)?);
        match &node.kind {
            Kind::Directory(_) => {}
            Kind::File(content) => size = content.size,
            Kind::Symlink(target) => {
                size = target.len() as u64;
                if target.len() < FAST_SYMLINK_BYTES {
                    has_extents = false;
                    bytes[0x28..0x28 + target.len()].copy_from_slice(target);
                }
            }
            Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                has_extents = false;
                if *major < 256 && *minor < 256 {
                    put32(&mut bytes, 0x28, major << 8 | minor);
                } else {
                    // The kernel's new_encode_dev, in the second word.
                    put32(&mut bytes, 0x2C, (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
                }
            }
            Kind::Fifo | Kind::Socket => has_extents = false,
        }
    }
    if has_extents {
        put32(&mut bytes, 0x20, EXTENTS_FLAG);
        let (root, _) = extent_tree(&inode.content, inode.tree_start, base);
        bytes[0x28..0x64].copy_from_slice(&root);
    }
    let stored: u64 = inode.content.iter().map(|extent| u64::from(extent.blocks)).sum();
    let blocks = stored + u64::from(inode.tree_blocks) + u64::from(inode.xattr_block.is_some());
    let sectors = blocks * (BLOCK as u64 / 512);
    put32(&mut bytes, 0x1C, sectors as u32);
    put16(&mut bytes, 0x74, (sectors >> 32) as u16);
    put32(&mut bytes, 0x04, size as u32);
    put32(&mut bytes, 0x6C, (size >> 32) as u32);
    if let Some(block) = inode.xattr_block {
        put32(&mut bytes, 0x68, (base + block) as u32);
    }
    Ok(bytes)
}

/// The journal's inode, and its 60 bytes of extents again for the superblock's copy.
pub(super) fn journal_inode(layout: &Layout) -> ([u8; INODE_BYTES as usize], [u8; 60]) {
    let mut bytes = [0; INODE_BYTES as usize];
    let size = u64::from(layout.journal_blocks) * BLOCK as u64;
    let content = [Extent { logical: 0, blocks: layout.journal_blocks, data: 0 }];
    let (root, _) = extent_tree(&content, 0, layout.journal_start());
    put16(&mut bytes, 0x00, 0o100_600);
    put32(&mut bytes, 0x04, size as u32);
    put16(&mut bytes, 0x1A, 1);
    put32(&mut bytes, 0x1C, (size / 512) as u32);
    put32(&mut bytes, 0x20, EXTENTS_FLAG);
    bytes[0x28..0x64].copy_from_slice(&root);
    put16(&mut bytes, 0x80, 32);
    (bytes, root)
}

/// The first block of an empty journal: a version 2 superblock of jbd2, big-endian.
pub(super) fn journal_superblock(layout: &Layout, uuid: &[u8; 16]) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put(0x00, 0xC03B_3998);
    put(0x04, 4);
    put(0x0C, BLOCK as u32);
    put(0x10, layout.journal_blocks);
    // The first block of the log, and the first transaction expected there.
    put(0x14, 1);
    put(0x18, 1);
    put(0x40, 1);
    bytes[0x30..0x40].copy_from_slice(uuid);
    bytes
}

/// The superblock's 1024 bytes.
pub(super) fn superblock(layout: &Layout, uuid: &[u8; 16], hash_seed: &[u8; 16]) -> [u8; 1024] {
    let mut bytes = [0; 1024];
    let inodes = (layout.groups * layout.inodes_per_group) as u32;
    put32(&mut bytes, 0x00, inodes);
    put32(&mut bytes, 0x04, layout.blocks as u32);
    put32(&mut bytes, 0x0C, (layout.blocks - layout.first_free()) as u32);
    put32(&mut bytes, 0x10, inodes - layout.last_inode());
    // Block and cluster size: 1024 << 2.
    put32(&mut bytes, 0x18, 2);
    put32(&mut bytes, 0x1C, 2);
    put32(&mut bytes, 0x20, BLOCKS_PER_GROUP as u32);
    put32(&mut bytes, 0x24, BLOCKS_PER_GROUP as u32);
    put32(&mut bytes, 0x28, layout.inodes_per_group as u32);
    // No check by count of mounts; magic; clean; carry on at errors; dynamic revision.
    put16(&mut bytes, 0x36, 0xFFFF);
    put16(&mut bytes, 0x38, 0xEF53);
    put16(&mut bytes, 0x3A, 1);
    put16(&mut bytes, 0x3C, 1);
    put32(&mut bytes, 0x4C, 1);
    put32(&mut bytes, 0x54, LOST_AND_FOUND_INODE);
    put16(&mut bytes, 0x58, INODE_BYTES as u16);
    // Compatible: ext_attr, dir_index, sparse_super2. Incompatible: filetype, extents, flex_bg. Read-only compatible: large_file, huge_file,
    // dir_nlink, extra_isize.
    let journal = layout.journal_blocks > 0;
    put32(&mut bytes, 0x5C, 0x8 | 0x20 | 0x200 | if journal { 0x4 } else { 0 });
    put32(&mut bytes, 0x60, 0x2 | 0x40 | 0x200);
    put32(&mut bytes, 0x64, 0x2 | 0x8 | 0x20 | 0x40);
    bytes[0x68..0x78].copy_from_slice(uuid);
    bytes[0xEC..0xFC].copy_from_slice(hash_seed);
    // Half MD4; user_xattr and acl by default.
    bytes[0xFC] = 1;
    put32(&mut bytes, 0x100, 0xC);
    put16(&mut bytes, 0x15C, 32);
    put16(&mut bytes, 0x15E, 32);
    // Names are hashed as signed bytes; 16 groups in a flexible group.
    put32(&mut bytes, 0x160, 1);
    bytes[0x174] = 4;
    if journal {
        put32(&mut bytes, 0xE0, JOURNAL_INODE);
        let (_, extents) = journal_inode(layout);
        // A copy of the journal's place (s_jnl_blocks): the inode's 15 words, then its size, high word first.
        bytes[0xFD] = 1;
        bytes[0x10C..0x148].copy_from_slice(&extents);
        put32(&mut bytes, 0x14C, layout.journal_blocks * BLOCK as u32);
    }
    bytes
}

/// One group's descriptor.
pub(super) fn descriptor(layout: &Layout, group: u64, directories: u16) -> [u8; 32] {
    let mut bytes = [0; 32];
    put32(&mut bytes, 0x00, (layout.block_bitmaps() + group) as u32);
    put32(&mut bytes, 0x04, (layout.inode_bitmaps() + group) as u32);
    put32(&mut bytes, 0x08, (layout.inode_tables() + group * layout.table_blocks_per_group()) as u32);
    let start = group * BLOCKS_PER_GROUP;
    let end = (start + BLOCKS_PER_GROUP).min(layout.blocks);
    put16(&mut bytes, 0x0C, (end - layout.first_free().clamp(start, end)) as u16);
    let first = group * layout.inodes_per_group;
    let used = u64::from(layout.last_inode()).saturating_sub(first).min(layout.inodes_per_group);
    put16(&mut bytes, 0x0E, (layout.inodes_per_group - used) as u16);
    put16(&mut bytes, 0x10, directories);
    bytes
}

/// A bitmap block in which the first `used` bits are set, and all from `valid` on.
pub(super) fn bitmap(used: u64, valid: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for (index, byte) in bytes.iter_mut().enumerate() {
        let first = index as u64 * 8;
        if first + 8 <= used || first >= valid {
            *byte = 0xFF;
        } else if first < used || first + 8 > valid {
            for bit in 0..8 {
                if first + bit < used || first + bit >= valid {
                    *byte |= 1 << bit;
                }
            }
        }
    }
    bytes
}
