//! Where everything lies: numbers for the inodes, blocks for their contents, sizes of the tables.

use std::collections::HashMap;

use super::{BLOCKS_PER_GROUP, FIRST_OWN_INODE, INODE_BYTES, LOST_AND_FOUND_INODE, Options, ROOT_INODE};
use crate::error::{ImageError, Result};
use crate::spool::BLOCK;
use crate::tree::{Kind, Moment, Node, NodeId, ROOT, Tree};

/// The most blocks that one extent covers (32,768: the top bit marks unwritten ones).
const EXTENT_BLOCKS: u32 = 32_768;
/// Extents in an inode, and in a block.
const EXTENTS_INLINE: usize = 4;
const EXTENTS_PER_BLOCK: usize = (BLOCK - 12) / 12;
/// A symlink shorter than this lies in its inode.
pub(super) const FAST_SYMLINK_BYTES: usize = 60;
/// The most names of one file (EXT4_LINK_MAX); a directory with more sub-directories counts 1.
const LINKS: u32 = 65_000;
/// One inode for this many bytes of free room, as mke2fs has it.
const BYTES_PER_INODE: u64 = 16_384;

/// A stretch of a file that is stored, in file blocks and blocks of the file system relative to the start of the data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) logical: u32,
    pub(super) blocks: u32,
    pub(super) data: u64,
}

/// One inode in the making.
pub(super) struct Inode {
    pub(super) node: Option<NodeId>,
    pub(super) links: u32,
    /// The directory that holds it (for `..`).
    pub(super) parent: u32,
    pub(super) content: Vec<Extent>,
    /// Blocks of the extent tree below the inode, lowest level first: where they start, and how many there are.
    pub(super) tree_start: u64,
    pub(super) tree_blocks: u32,
    pub(super) xattr_block: Option<u64>,
    /// Directory entries, in the order in which they are stored: name, inode.
    pub(super) names: Vec<(Vec<u8>, u32)>,
    pub(super) directory_blocks: u32,
}

/// The whole plan. Inode number `n` (from 11 on) is `inodes[n - 11]`; the root stands apart.
pub(super) struct Layout {
    pub(super) root: Inode,
    pub(super) inodes: Vec<Inode>,
    pub(super) groups: u64,
    pub(super) inodes_per_group: u64,
    pub(super) blocks: u64,
    pub(super) journal_blocks: u32,
    /// Blocks of data in use, the journal not among them.
    pub(super) data_blocks: u64,
}

impl Layout {
    pub(super) fn plan(tree: &Tree, options: &Options) -> Result<Self> {
        let (mut root, mut inodes) = number(tree)?;
        let mut data = 0;
        place(&mut root, tree, &mut data)?;
        for inode in &mut inodes {
            place(inode, tree, &mut data)?;
        }
        let mut layout = Self {
            root,
            inodes,
            groups: 0,
            inodes_per_group: 0,
            blocks: 0,
            journal_blocks: options.journal_blocks,
            data_blocks: data,
        };
        layout.measure(options)?;
        Ok(layout)
    }

    /// Finds the smallest number of groups whose tables, data and free room fit into them.
    fn measure(&mut self, options: &Options) -> Result<()> {
        let block = BLOCK as u64;
        let inodes_used = u64::from(LOST_AND_FOUND_INODE - 1) + self.inodes.len() as u64;
        let free = options.free_bytes.div_ceil(block);
        let least = options.least_bytes / block;
        let contents = u64::from(self.journal_blocks) + self.data_blocks + free;
        let room = (free * block).max(least * block) / BYTES_PER_INODE;
        let inodes = inodes_used + room;
        let per_block = block / INODE_BYTES;
        let mut groups = least.max(contents).div_ceil(BLOCKS_PER_GROUP).max(1);
        loop {
            let per_group = inodes.div_ceil(groups).next_multiple_of(per_block);
            if per_group <= BLOCKS_PER_GROUP {
                let tables = metadata_blocks(groups, per_group);
                // Many inodes may ask for more groups than the blocks do.
                let blocks = (tables + contents).max(least).max((groups - 1) * BLOCKS_PER_GROUP + 64);
                if blocks <= groups * BLOCKS_PER_GROUP {
                    if blocks > u64::from(u32::MAX) || groups * per_group > u64::from(u32::MAX) {
                        return Err(ImageError::too_large("a file system made here is at most 16 TiB"));
                    }
                    (self.groups, self.inodes_per_group, self.blocks) = (groups, per_group, blocks);
                    return Ok(());
                }
            }
            groups += 1;
        }
    }

    pub(super) fn descriptor_blocks(&self) -> u64 {
        descriptor_blocks(self.groups)
    }

    /// The first block of the block bitmaps, of the inode bitmaps, of the inode tables, and the first after them.
    pub(super) fn block_bitmaps(&self) -> u64 {
        1 + self.descriptor_blocks()
    }

    pub(super) fn inode_bitmaps(&self) -> u64 {
        self.block_bitmaps() + self.groups
    }

    pub(super) fn inode_tables(&self) -> u64 {
        self.inode_bitmaps() + self.groups
    }

    pub(super) fn table_blocks_per_group(&self) -> u64 {
        self.inodes_per_group * INODE_BYTES / BLOCK as u64
    }

    pub(super) fn journal_start(&self) -> u64 {
        self.inode_tables() + self.groups * self.table_blocks_per_group()
    }

    pub(super) fn data_start(&self) -> u64 {
        self.journal_start() + u64::from(self.journal_blocks)
    }

    /// The first block that is free; all after it are.
    pub(super) fn first_free(&self) -> u64 {
        self.data_start() + self.data_blocks
    }

    /// The highest inode in use.
    pub(super) fn last_inode(&self) -> u32 {
        LOST_AND_FOUND_INODE - 1 + self.inodes.len() as u32
    }
}

fn descriptor_blocks(groups: u64) -> u64 {
    (groups * 32).div_ceil(BLOCK as u64)
}

fn metadata_blocks(groups: u64, inodes_per_group: u64) -> u64 {
    1 + descriptor_blocks(groups) + groups * (2 + inodes_per_group * INODE_BYTES / BLOCK as u64)
}

impl Inode {
    fn new(node: Option<NodeId>, parent: u32) -> Self {
        Self {
            node,
            links: 0,
            parent,
            content: Vec::new(),
            tree_start: 0,
            tree_blocks: 0,
            xattr_block: None,
            names: Vec::new(),
            directory_blocks: 0,
        }
    }
}

/// Numbers every node in the order of its first name, folder by folder, and gathers the names.
fn number(tree: &Tree) -> Result<(Inode, Vec<Inode>)> {
    let mut root = Inode::new(Some(ROOT), ROOT_INODE);
    root.links = 2;
    let mut inodes: Vec<Inode> = vec![Inode::new(None, ROOT_INODE)];
    let mut numbers: HashMap<NodeId, u32> = HashMap::new();
    let mut folders: Vec<(NodeId, u32)> = vec![(ROOT, ROOT_INODE)];
    let mut has_lost_and_found = false;
    while let Some((folder, own)) = folders.pop() {
        let Kind::Directory(children) = &tree.node(folder).kind else { continue };
        let mut names = Vec::with_capacity(children.len());
        let mut directories = 0;
        let mut inner = Vec::new();
        for (name, entry) in children {
            let is_directory = matches!(tree.node(entry.node).kind, Kind::Directory(_));
            let takes_reserved = own == ROOT_INODE && is_directory && name == b"lost+found";
            let number = match numbers.get(&entry.node) {
                Some(number) => *number,
                None if takes_reserved => {
                    has_lost_and_found = true;
                    if let Some(inode) = inodes.first_mut() {
                        inode.node = Some(entry.node);
                    }
                    LOST_AND_FOUND_INODE
                }
                None => {
                    let number = FIRST_OWN_INODE - 1 + inodes.len() as u32;
                    inodes.push(Inode::new(Some(entry.node), own));
                    number
                }
            };
            numbers.insert(entry.node, number);
            let inode = &mut inodes[(number - LOST_AND_FOUND_INODE) as usize];
            inode.links += 1;
            if is_directory {
                inode.links = 2;
                directories += 1;
                inner.push((entry.node, number));
            } else if inode.links > LINKS {
                return Err(ImageError::too_large(format!("a file has more than {LINKS} names")).at(name));
            }
            names.push((name.clone(), number));
        }
        if own == ROOT_INODE && !has_lost_and_found {
            if children.contains_key(b"lost+found".as_slice()) {
                return Err(ImageError::unsupported(
                    "`/lost+found` is no directory, and ext4 needs it to be one",
                ));
            }
            directories += 1;
            inodes[0].links = 2;
            names.push((b"lost+found".to_vec(), LOST_AND_FOUND_INODE));
            names.sort();
        }
        let inode = match own {
            ROOT_INODE => &mut root,
            other => &mut inodes[(other - LOST_AND_FOUND_INODE) as usize],
        };
        inode.links = if 2 + directories >= LINKS { 1 } else { 2 + directories };
        inode.directory_blocks = directory_blocks(&names);
        inode.names = names;
        folders.extend(inner.into_iter().rev());
    }
    if !has_lost_and_found {
        inodes[0].directory_blocks = 1;
    }
    Ok((root, inodes))
}

/// The bytes that a directory entry takes.
pub(super) fn entry_bytes(name: &[u8]) -> usize {
    (8 + name.len()).next_multiple_of(4)
}

/// The blocks that `.`, `..` and these names take; no entry crosses a block.
fn directory_blocks(names: &[(Vec<u8>, u32)]) -> u32 {
    let (mut blocks, mut used) = (1, 24);
    for (name, _) in names {
        let bytes = entry_bytes(name);
        if used + bytes > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += bytes;
    }
    blocks
}

/// Gives an inode its blocks of data, one after another from `next` on.
fn place(inode: &mut Inode, tree: &Tree, next: &mut u64) -> Result<()> {
    let node = inode.node.map(|id| tree.node(id));
    let mut stretch = |logical: u32, blocks: u32, content: &mut Vec<Extent>| {
        let mut done = 0;
        while done < blocks {
            let part = (blocks - done).min(EXTENT_BLOCKS);
            content.push(Extent { logical: logical + done, blocks: part, data: *next });
            *next += u64::from(part);
            done += part;
        }
    };
    match node.map(|node| &node.kind) {
        None | Some(Kind::Directory(_)) => stretch(0, inode.directory_blocks, &mut inode.content),
        Some(Kind::File(file)) => {
            for run in &file.runs {
                stretch(run.logical, run.blocks, &mut inode.content);
            }
        }
        Some(Kind::Symlink(target)) if target.len() >= FAST_SYMLINK_BYTES => {
            stretch(0, 1, &mut inode.content)
        }
        Some(_) => {}
    }
    inode.tree_start = *next;
    let mut level = inode.content.len();
    while level > EXTENTS_INLINE {
        level = level.div_ceil(EXTENTS_PER_BLOCK);
        inode.tree_blocks += level as u32;
    }
    *next += u64::from(inode.tree_blocks);
    if let Some(node) = node
        && super::xattr::needs_block(&node.attributes)
    {
        inode.xattr_block = Some(*next);
        *next += 1;
    }
    Ok(())
}

/// The attributes of an inode; those of a `lost+found` that the tree does not speak of are mke2fs's.
pub(super) fn mode_and_time(node: Option<&Node>) -> (u16, Moment) {
    const LOST_AND_FOUND: u16 = 0o040_700;
    let Some(node) = node else { return (LOST_AND_FOUND, Moment::default()) };
    let kind = match node.kind {
        Kind::Directory(_) => 0o040_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::CharacterDevice { .. } => 0o020_000,
        Kind::BlockDevice { .. } => 0o060_000,
        Kind::Fifo => 0o010_000,
        Kind::Socket => 0o140_000,
    };
    (kind | (node.attributes.mode & 0o7777), node.attributes.modified)
}

/// The extent tree's shape, shared with the encoder.
pub(super) const fn extents_inline() -> usize {
    EXTENTS_INLINE
}

/// See [`extents_inline`].
pub(super) const fn extents_per_block() -> usize {
    EXTENTS_PER_BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Content, Run};

    #[test]
    fn a_long_run_is_cut_into_extents_and_a_deep_tree_is_counted() {
        let mut tree = Tree::new(crate::Limits::default());
        let runs = vec![Run { logical: 0, blocks: 70_000, spool: 0 }];
        let long = Kind::File(Content { size: 70_000 * 4096, runs });
        tree.insert(b"long", crate::tree::Attributes::default(), long).unwrap();
        let runs = (0..1400).map(|n| Run { logical: n * 2, blocks: 1, spool: u64::from(n) }).collect();
        let holed = Kind::File(Content { size: 2800 * 4096, runs });
        tree.insert(b"holed", crate::tree::Attributes::default(), holed).unwrap();
        let options = Options { least_bytes: 0, free_bytes: 0, journal_blocks: 0, identity: None };
        let layout = Layout::plan(&tree, &options).unwrap();
        let found: Vec<_> =
            layout.inodes[1..].iter().map(|inode| (inode.content.len(), inode.tree_blocks)).collect();
        // 1,400 extents: five leaves and one index block above them.
        assert_eq!(found, [(1400, 6), (3, 0)]);
        assert_eq!(layout.inodes[2].content[2].blocks, 70_000 - 2 * EXTENT_BLOCKS);
        assert!(layout.groups == 3 && layout.first_free() <= layout.blocks);
    }

    #[test]
    fn many_empty_files_get_groups_enough_for_their_inodes() {
        let mut tree = Tree::new(crate::Limits::default());
        for n in 0..40_000 {
            let name = format!("{}/{n}", n % 100);
            tree.insert(name.as_bytes(), crate::tree::Attributes::default(), Kind::Fifo).unwrap();
        }
        let options = Options { least_bytes: 0, free_bytes: 0, journal_blocks: 0, identity: None };
        let layout = Layout::plan(&tree, &options).unwrap();
        assert!(layout.groups * layout.inodes_per_group >= u64::from(layout.last_inode()));
        assert!(layout.inodes_per_group <= BLOCKS_PER_GROUP);
    }
}
