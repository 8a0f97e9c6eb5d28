//! A blob's bytes, in pieces.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use flames_blob::MAX_CHUNK;

/// Chunks shorter than this are gathered: what it costs to keep a chunk should be small beside the chunk.
const GATHER_BELOW: usize = 16 * 1024;

/// The bytes of a blob. No chunk is empty or longer than [`MAX_CHUNK`].
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    chunks: Vec<Bytes>,
    /// Where each chunk starts in the blob.
    starts: Vec<u64>,
}

/// A part of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    chunk: usize,
    part: Range<usize>,
}

impl Chunks {
    fn push(&mut self, chunk: Bytes, start: u64) {
        self.starts.push(start);
        self.chunks.push(chunk);
    }

    /// The pieces that make up `range`, in order. `range` must lie within the blob.
    pub(crate) fn pieces(&self, range: Range<u64>) -> Vec<Piece> {
        let first = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        let within = |offset: u64, chunk: usize| {
            let relative = offset.saturating_sub(self.starts[chunk]);
            usize::try_from(relative).unwrap_or(usize::MAX).min(self.chunks[chunk].len())
        };
        (first..self.chunks.len())
            .take_while(|chunk| self.starts[*chunk] < range.end)
            .map(|chunk| Piece { chunk, part: within(range.start, chunk)..within(range.end, chunk) })
            .filter(|piece| !piece.part.is_empty())
            .collect()
    }

    pub(crate) fn slice(&self, piece: &Piece) -> Bytes {
        self.chunks[piece.chunk].slice(piece.part.clone())
    }
}

/// Makes [`Chunks`] of what comes.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuilder {
    chunks: Chunks,
    gathered: BytesMut,
    size: u64,
}

impl ChunkBuilder {
    pub(crate) fn push(&mut self, mut chunk: Bytes) {
        if chunk.len() < GATHER_BELOW {
            if self.gathered.len() + chunk.len() > GATHER_BELOW {
                self.flush();
            }
            self.gathered.extend_from_slice(&chunk);
            return;
        }
        self.flush();
        while !chunk.is_empty() {
            let part = chunk.split_to(chunk.len().min(MAX_CHUNK));
            self.keep(part);
        }
    }

    pub(crate) fn finish(mut self) -> Chunks {
        self.flush();
        self.chunks
    }

    fn flush(&mut self) {
        if !self.gathered.is_empty() {
            let gathered = self.gathered.split().freeze();
            self.keep(gathered);
        }
    }

    fn keep(&mut self, chunk: Bytes) {
        let start = self.size;
        self.size += chunk.len() as u64;
        self.chunks.push(chunk, start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(lengths: &[usize]) -> Chunks {
        let mut builder = ChunkBuilder::default();
        for length in lengths {
            builder.push(Bytes::from(vec![7; *length]));
        }
        builder.finish()
    }

    #[test]
    fn small_chunks_are_gathered_and_long_ones_split() {
        let lengths = |chunks: &Chunks| chunks.chunks.iter().map(Bytes::len).collect::<Vec<_>>();
        assert_eq!(lengths(&built(&[1; 100])), [100]);
        assert_eq!(lengths(&built(&[1, 0, GATHER_BELOW, 2, 3])), [1, GATHER_BELOW, 5]);
        assert_eq!(lengths(&built(&[MAX_CHUNK * 2 + 5])), [MAX_CHUNK, MAX_CHUNK, 5]);
        assert_eq!(lengths(&built(&[])), [0_usize; 0]);
    }

    #[test]
    fn a_chunk_that_is_kept_is_not_copied() {
        let chunk = Bytes::from(vec![7; GATHER_BELOW]);
        let mut builder = ChunkBuilder::default();
        builder.push(chunk.clone());
        assert_eq!(builder.finish().chunks[0].as_ptr(), chunk.as_ptr());
    }

    #[test]
    fn the_pieces_of_a_range_meet_its_ends_exactly() {
        let chunks = built(&[GATHER_BELOW, GATHER_BELOW]);
        let seam = GATHER_BELOW as u64;
        let piece = |chunk, part| Piece { chunk, part };
        assert_eq!(
            chunks.pieces(seam - 1..seam + 1),
            [piece(0, GATHER_BELOW - 1..GATHER_BELOW), piece(1, 0..1)]
        );
        assert_eq!(chunks.pieces(seam..seam + 2), [piece(1, 0..2)]);
        assert_eq!(chunks.pieces(seam..seam), []);
        assert_eq!(chunks.pieces(2 * seam..2 * seam), []);
        assert_eq!(built(&[]).pieces(0..0), []);
    }
}
