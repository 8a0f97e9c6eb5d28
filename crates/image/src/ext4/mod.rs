//! A writer of ext4 file systems, from a tree in memory to a file, without a mount, a privilege or a program of the machine.
//!
//! Why not `mke2fs -d`: it stamps every inode with the source file's change time, which nobody can set, so two conversions of one
//! image differ; it needs root for owners; and it needs the image unpacked into a folder of the host.
//!
//! The layout is simple because everything is known before the first byte is written: superblock, group descriptors, all bitmaps, all inode
//! tables, the journal if there is one, then the data without a gap. `flex_bg` allows the metadata to lie there, and `sparse_super2`
//! without backups leaves nothing in between. The file is sparse: only what is not zero is written. The same tree gives the same bytes.
//!
//! Format: the Linux kernel's documentation, `Documentation/filesystems/ext4/` (superblock, group descriptors, inodes, extents,
//! directories, extended attributes, journal); checked in the tests by `e2fsck -f` and by mounting.

mod encode;
mod layout;
mod writer;
mod xattr;

pub(crate) use writer::write;
pub(crate) use xattr::check_attributes;

use crate::spool::BLOCK;

/// Blocks in a group: as many as one bitmap block has bits.
const BLOCKS_PER_GROUP: u64 = 8 * BLOCK as u64;
/// Bytes of one inode.
const INODE_BYTES: u64 = 256;
/// The root directory's inode, the journal's, the first that is free, and the one of `lost+found`, which e2fsck expects.
const ROOT_INODE: u32 = 2;
const JOURNAL_INODE: u32 = 8;
const LOST_AND_FOUND_INODE: u32 = 11;
const FIRST_OWN_INODE: u32 = 12;

/// What a file system is to have beyond the tree.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The size in bytes: at least this, and at least what the tree takes.
    pub(crate) least_bytes: u64,
    /// Room beyond the tree's own, in bytes.
    pub(crate) free_bytes: u64,
    /// Blocks of the journal; none for a file system that is only read.
    pub(crate) journal_blocks: u32,
    /// What the UUID and the hash seed are derived from; the content when absent.
    pub(crate) identity: Option<Vec<u8>>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// The file system's size in bytes.
    pub(crate) bytes: u64,
    /// The inodes in use for the tree.
    pub(crate) inodes: u32,
}
