//! Writes a planned file system to a file.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::layout::{Inode, Layout};
use super::{
    BLOCKS_PER_GROUP, FIRST_OWN_INODE, INODE_BYTES, JOURNAL_INODE, LOST_AND_FOUND_INODE, Options, ROOT_INODE,
    Written,
};
use super::{encode, xattr};
use crate::error::{ImageError, Result};
use crate::spool::{BLOCK, Spool};
use crate::tree::{Kind, Tree};

const COPY_BLOCKS: usize = 128;

/// Writes the tree as an ext4 file system to `path`, which must not be there. `progress` is told the bytes of data written.
pub(crate) fn write(
    tree: &Tree,
    spool: Option<&Spool>,
    options: &Options,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Written> {
    let layout = Layout::plan(tree, options)?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    file.set_len(layout.blocks * BLOCK as u64)?;
    let mut writer = Writer { file: &file, layout: &layout, tree, spool, hash: Sha256::new() };
    writer.data(progress)?;
    writer.inodes()?;
    writer.bitmaps()?;
    writer.descriptors()?;
    writer.superblock(options)?;
    file.sync_all()?;
    Ok(Written { bytes: layout.blocks * BLOCK as u64, inodes: layout.inodes.len() as u32 + 1 })
}

struct Writer<'a> {
    file: &'a File,
    layout: &'a Layout,
    tree: &'a Tree,
    spool: Option<&'a Spool>,
    /// Over all contents and inodes: what the identity is derived from.
    hash: Sha256,
}

impl Writer<'_> {
    fn write_at(&self, bytes: &[u8], block: u64) -> Result<()> {
        Ok(self.file.write_all_at(bytes, block * BLOCK as u64)?)
    }

    /// Writes to a block of the data.
    fn write_data(&mut self, bytes: &[u8], data: u64) -> Result<()> {
        self.hash.update(bytes);
        self.write_at(bytes, self.layout.data_start() + data)
    }

    fn data(&mut self, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let layout = self.layout;
        self.contents(ROOT_INODE, &layout.root)?;
        for (index, inode) in layout.inodes.iter().enumerate() {
            self.contents(LOST_AND_FOUND_INODE + index as u32, inode)?;
            progress(inode.tree_start * BLOCK as u64);
        }
        Ok(())
    }

    fn contents(&mut self, number: u32, inode: &Inode) -> Result<()> {
        let layout = self.layout;
        let node = inode.node.map(|id| self.tree.node(id));
        match node.map(|node| &node.kind) {
            None | Some(Kind::Directory(_)) => {
                let bytes = encode::directory(number, inode, layout, self.tree);
                if let Some(first) = inode.content.first() {
                    self.write_data(&bytes, first.data)?;
                }
            }
            Some(Kind::Symlink(target)) => {
                if let Some(first) = inode.content.first() {
                    let mut block = [0; BLOCK];
                    block[..target.len()].copy_from_slice(target);
                    self.write_data(&block, first.data)?;
                }
            }
            Some(Kind::File(content)) if !content.runs.is_empty() => {
                let spool =
                    self.spool.ok_or_else(|| ImageError::internal("contents without a place for them"))?;
                let mut next = inode.content.first().map_or(0, |first| first.data);
                let mut buffer = vec![0; COPY_BLOCKS * BLOCK];
                for run in &content.runs {
                    let mut done: u64 = 0;
                    while done < u64::from(run.blocks) {
                        let part = (u64::from(run.blocks) - done).min(COPY_BLOCKS as u64);
                        let bytes = &mut buffer[..part as usize * BLOCK];
                        spool.read_blocks(run.spool + done, bytes)?;
                        self.write_data(bytes, next)?;
                        (done, next) = (done + part, next + part);
                    }
                }
            }
            Some(_) => {}
        }
        let (_, blocks) = encode::extent_tree(&inode.content, inode.tree_start, layout.data_start());
        for (index, block) in blocks.iter().enumerate() {
            self.write_data(block, inode.tree_start + index as u64)?;
        }
        if let (Some(block), Some(node)) = (inode.xattr_block, node) {
            self.write_data(&xattr::in_block(&node.attributes)?, block)?;
        }
        Ok(())
    }

    /// All tables follow one another, so inode `n` lies at `n - 1` from the first on.
    fn inodes(&mut self) -> Result<()> {
        let layout = self.layout;
        let base = layout.data_start();
        let start = layout.inode_tables() * BLOCK as u64;
        let at = |number: u32| start + u64::from(number - 1) * INODE_BYTES;
        let root = encode::inode(&layout.root, self.tree, base)?;
        self.hash.update(root);
        self.file.write_all_at(&root, at(ROOT_INODE))?;
        if layout.journal_blocks > 0 {
            self.file.write_all_at(&encode::journal_inode(layout).0, at(JOURNAL_INODE))?;
        }
        let mut file = self.file;
        file.seek(SeekFrom::Start(at(LOST_AND_FOUND_INODE)))?;
        let mut table = BufWriter::with_capacity(COPY_BLOCKS * BLOCK, file);
        for inode in &layout.inodes {
            let bytes = encode::inode(inode, self.tree, base)?;
            self.hash.update(bytes);
            table.write_all(&bytes)?;
        }
        table.flush()?;
        Ok(())
    }

    fn bitmaps(&self) -> Result<()> {
        let layout = self.layout;
        for group in 0..layout.groups {
            let start = group * BLOCKS_PER_GROUP;
            let used = layout.first_free().saturating_sub(start);
            let valid = (layout.blocks - start).min(BLOCKS_PER_GROUP);
            if used > 0 || valid < BLOCKS_PER_GROUP {
                self.write_at(&encode::bitmap(used, valid), layout.block_bitmaps() + group)?;
            }
            let used = u64::from(layout.last_inode()).saturating_sub(group * layout.inodes_per_group);
            let bitmap = encode::bitmap(used.min(layout.inodes_per_group), layout.inodes_per_group);
            self.write_at(&bitmap, layout.inode_bitmaps() + group)?;
        }
        Ok(())
    }

    fn descriptors(&self) -> Result<()> {
        let layout = self.layout;
        let mut directories: HashMap<u64, u16> = HashMap::new();
        let group_of = |number: u32| u64::from(number - 1) / layout.inodes_per_group;
        directories.insert(group_of(ROOT_INODE), 1);
        for (index, inode) in layout.inodes.iter().enumerate() {
            if inode.directory_blocks > 0 {
                *directories.entry(group_of(FIRST_OWN_INODE - 1 + index as u32)).or_default() += 1;
            }
        }
        let mut bytes = Vec::with_capacity(layout.groups as usize * 32);
        for group in 0..layout.groups {
            let count = directories.get(&group).copied().unwrap_or_default();
            bytes.extend(encode::descriptor(layout, group, count));
        }
        self.write_at(&bytes, 1)
    }

    fn superblock(&mut self, options: &Options) -> Result<()> {
        if let Some(identity) = &options.identity {
            self.hash = Sha256::new_with_prefix(identity);
        }
        let seed: [u8; 32] = self.hash.clone().finalize().into();
        let (mut uuid, mut hash_seed) = ([0; 16], [0; 16]);
        uuid.copy_from_slice(&seed[..16]);
        hash_seed.copy_from_slice(&seed[16..]);
        // Version 8 (made from a hash by our own rule) and the variant of RFC 9562.
        uuid[6] = uuid[6] & 0x0F | 0x80;
        uuid[8] = uuid[8] & 0x3F | 0x80;
        if self.layout.journal_blocks > 0 {
            self.write_at(&encode::journal_superblock(self.layout, &uuid), self.layout.journal_start())?;
        }
        self.file.write_all_at(&encode::superblock(self.layout, &uuid, &hash_seed), 1024)?;
        Ok(())
    }
}
