//! Where file contents wait until the file system is laid out: one append-only file of blocks.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{ImageError, Result};

/// The block size of the file systems that are made here, in bytes.
pub(crate) const BLOCK: usize = 4096;
const CHUNK: usize = 64 * BLOCK;

/// Blocks of a file that follow one another in the file and in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first block within the file.
    pub(crate) logical: u32,
    /// How many.
    pub(crate) blocks: u32,
    /// The first block within the spool.
    pub(crate) spool: u64,
}

/// A file's content: what is not covered by a run is a hole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) size: u64,
    pub(crate) runs: Vec<Run>,
}

/// Holds contents by block. Blocks of zeros are not stored, so a sparse file stays sparse whatever brought it here.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    next: u64,
}

impl Spool {
    /// Makes `path`, which must not be there.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Self { file, next: 0 })
    }

    /// Stores exactly `size` bytes of `reader`; `Malformed` when it ends before.
    pub(crate) fn store(&mut self, reader: &mut dyn Read, size: u64) -> Result<Content> {
        let mut content = Content { size, runs: Vec::new() };
        if size.div_ceil(BLOCK as u64) > u64::from(u32::MAX) {
            return Err(ImageError::too_large("a file of an image is at most 16 TiB"));
        }
        let mut buffer = vec![0u8; CHUNK.min(size.next_multiple_of(BLOCK as u64) as usize)];
        let mut logical: u32 = 0;
        let mut left = size;
        while left > 0 {
            let wanted = left.min(buffer.len() as u64) as usize;
            reader.read_exact(&mut buffer[..wanted]).map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    ImageError::malformed("the content ends before its stated size")
                }
                _ => error.into(),
            })?;
            left -= wanted as u64;
            let padded = wanted.next_multiple_of(BLOCK);
            buffer[wanted..padded].fill(0);
            self.store_blocks(&buffer[..padded], logical, &mut content)?;
            logical += (padded / BLOCK) as u32;
        }
        Ok(content)
    }

    fn store_blocks(&mut self, bytes: &[u8], first: u32, content: &mut Content) -> Result<()> {
        let is_hole = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        let mut index = 0;
        let blocks: Vec<bool> = bytes.chunks_exact(BLOCK).map(is_hole).collect();
        while index < blocks.len() {
            if blocks[index] {
                index += 1;
                continue;
            }
            let end =
                blocks[index..].iter().position(|hole| *hole).map_or(blocks.len(), |length| index + length);
            self.file.write_all_at(&bytes[index * BLOCK..end * BLOCK], self.next * BLOCK as u64)?;
            let run = Run { logical: first + index as u32, blocks: (end - index) as u32, spool: self.next };
            self.next += u64::from(run.blocks);
            match content.runs.last_mut() {
                Some(last)
                    if last.logical + last.blocks == run.logical
                        && last.spool + u64::from(last.blocks) == run.spool =>
                {
                    last.blocks += run.blocks;
                }
                _ => content.runs.push(run),
            }
            index = end;
        }
        Ok(())
    }

    /// Fills `buffer` (a multiple of a block) from the block `first` on.
    pub(crate) fn read_blocks(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        Ok(self.file.read_exact_at(buffer, first * BLOCK as u64)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_zeros_become_holes_and_neighbours_one_run() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(&folder.path().join("spool")).unwrap();
        let mut bytes = vec![7u8; CHUNK + BLOCK];
        bytes.extend(vec![0u8; 3 * BLOCK]);
        bytes.extend([9u8; 10]);
        let content = spool.store(&mut bytes.as_slice(), bytes.len() as u64).unwrap();
        assert_eq!(
            content.runs,
            [Run { logical: 0, blocks: 65, spool: 0 }, Run { logical: 68, blocks: 1, spool: 65 }]
        );
        let mut block = vec![0; BLOCK];
        spool.read_blocks(65, &mut block).unwrap();
        assert_eq!((&block[..10], block[10]), ([9u8; 10].as_slice(), 0));
    }

    #[test]
    fn content_that_ends_early_is_malformed() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(&folder.path().join("spool")).unwrap();
        let error = spool.store(&mut [1u8, 2].as_slice(), 3).unwrap_err();
        assert_eq!(error.kind, crate::ImageErrorKind::Malformed);
    }
}
