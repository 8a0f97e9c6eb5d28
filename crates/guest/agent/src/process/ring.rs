use std::collections::VecDeque;

use flames_guest_protocol::limits::CONTENT_LENGTH;

// What one piece costs beside its bytes, so that many tiny pieces are bounded too.
const PIECE_OVERHEAD: usize = 64;
// Output within this time becomes one piece, with the time of its first byte.
const MERGE_MS: u64 = 20;

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) stream: u8,
    pub(crate) offset: u64,
    pub(crate) at_ms: u64,
    pub(crate) content: Vec<u8>,
}

/// What a reader finds at its offset.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Piece(Piece),
    Gone { available_from: u64 },
    Nothing,
}

/// The latest output of a process, by offset. It costs at most its capacity.
#[derive(Debug)]
pub(crate) struct Ring {
    pieces: VecDeque<Piece>,
    capacity: usize,
    cost: usize,
    end: u64,
}

impl Ring {
    /// A ring of this many bytes, at least four pieces' worth.
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(4 * (CONTENT_LENGTH + PIECE_OVERHEAD));
        Self { pieces: VecDeque::new(), capacity, cost: 0, end: 0 }
    }

    /// The offset at which the next byte will stand.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The offset of the first byte that is still here.
    pub(crate) fn start(&self) -> u64 {
        self.pieces.front().map_or(self.end, |piece| piece.offset)
    }

    /// The offset from which output would still be here if `length` bytes were pushed.
    pub(crate) fn start_after(&self, length: usize) -> u64 {
        let mut excess = (self.cost + length + PIECE_OVERHEAD).saturating_sub(self.capacity);
        for piece in &self.pieces {
            if excess == 0 {
                return piece.offset;
            }
            excess = excess.saturating_sub(piece.content.len() + PIECE_OVERHEAD);
        }
        self.end
    }

    /// Appends output of at most [`CONTENT_LENGTH`] bytes; the oldest goes where there is no room.
    pub(crate) fn push(&mut self, stream: u8, at_ms: u64, content: &[u8]) {
        let merged = self.pieces.back_mut().filter(|last| {
            last.stream == stream
                && at_ms.saturating_sub(last.at_ms) < MERGE_MS
                && last.content.len() + content.len() <= CONTENT_LENGTH
        });
        match merged {
            Some(last) => last.content.extend_from_slice(content),
            None => {
                self.pieces.push_back(Piece { stream, offset: self.end, at_ms, content: content.to_vec() });
                self.cost += PIECE_OVERHEAD;
            }
        }
        self.cost += content.len();
        self.end += content.len() as u64;
        while self.cost > self.capacity {
            let Some(oldest) = self.pieces.pop_front() else { break };
            self.cost -= oldest.content.len() + PIECE_OVERHEAD;
        }
    }

    /// What stands at `offset`: the rest of one piece.
    pub(crate) fn read(&self, offset: u64) -> Found {
        if offset >= self.end {
            return Found::Nothing;
        }
        if offset < self.start() {
            return Found::Gone { available_from: self.start() };
        }
        let at = self.pieces.partition_point(|piece| piece.offset <= offset) - 1;
        let piece = &self.pieces[at];
        let skip = usize::try_from(offset - piece.offset).unwrap_or(usize::MAX);
        Found::Piece(Piece { offset, content: piece.content[skip..].to_vec(), ..*piece })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ring: &Ring) -> Vec<u8> {
        let (mut offset, mut bytes) = (ring.start(), Vec::new());
        while let Found::Piece(piece) = ring.read(offset) {
            offset += piece.content.len() as u64;
            bytes.extend(piece.content);
        }
        bytes
    }

    #[test]
    fn output_is_read_back_from_any_offset() {
        let mut ring = Ring::new(0);
        ring.push(1, 0, b"abc");
        ring.push(2, 0, b"def");
        ring.push(1, 500, b"ghi");
        assert_eq!(all(&ring), b"abcdefghi");
        let Found::Piece(piece) = ring.read(4) else { panic!() };
        assert_eq!((piece.stream, piece.offset, piece.content.as_slice()), (2, 4, &b"ef"[..]));
        assert_eq!(ring.read(9), Found::Nothing);
    }

    #[test]
    fn what_is_gone_is_said_to_be_gone() {
        let mut ring = Ring::new(0);
        for byte in 0..100u8 {
            let predicted = ring.start_after(CONTENT_LENGTH);
            ring.push(1, u64::from(byte) * 1000, &[byte; CONTENT_LENGTH]);
            assert_eq!(ring.start(), predicted);
        }
        assert_eq!(ring.end(), 100 * CONTENT_LENGTH as u64);
        assert_eq!(ring.read(0), Found::Gone { available_from: ring.start() });
        assert!(all(&ring).len() >= 3 * CONTENT_LENGTH);
    }

    #[test]
    fn tiny_pieces_count_with_their_overhead() {
        let mut ring = Ring::new(0);
        for at in 0..100_000u64 {
            ring.push(1, at * 1000, b"x");
        }
        assert!(ring.pieces.len() * (PIECE_OVERHEAD + 1) <= ring.capacity);
    }
}
