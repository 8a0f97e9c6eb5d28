use std::collections::VecDeque;

use crate::handshake::{MAGIC, MESSAGE_LENGTH, Message};

/// Finds handshake messages in a stream of bytes. It holds at most one message's bytes.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    held: VecDeque<u8>,
}

impl Scanner {
    /// Takes bytes until a message is whole; gives back how many it took, and the message.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> (usize, Option<Message>) {
        let mut at = 0;
        while at < bytes.len() {
            if self.held.is_empty() {
                match bytes[at..].iter().position(|byte| *byte == MAGIC[0]) {
                    Some(skip) => at += skip,
                    None => return (bytes.len(), None),
                }
            }
            self.push(bytes[at]);
            at += 1;
            if self.held.len() == MESSAGE_LENGTH {
                let mut message = [0; MESSAGE_LENGTH];
                for (to, from) in message.iter_mut().zip(self.held.drain(..)) {
                    *to = from;
                }
                return (at, Some(message));
            }
        }
        (at, None)
    }

    /// A message that was not what the caller looks for may be the torn beginning of one followed by a whole one:
    /// looks again at all but its first byte.
    pub(crate) fn reject(&mut self, message: &Message) {
        for byte in &message[1..] {
            self.push(*byte);
        }
    }

    /// The beginning of a message that is not whole yet.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held).into()
    }

    fn push(&mut self, byte: u8) {
        self.held.push_back(byte);
        let checked = |held: &VecDeque<u8>| held.iter().zip(MAGIC.iter()).all(|(a, b)| a == b);
        if self.held.len() <= MAGIC.len() {
            while !checked(&self.held) {
                self.held.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> Message {
        let mut message = [5; MESSAGE_LENGTH];
        message[..MAGIC.len()].copy_from_slice(&MAGIC);
        message
    }

    /// Whether the message is found when the bytes come in pieces of this length.
    fn finds(stream: &[u8], piece: usize) -> bool {
        let mut scanner = Scanner::default();
        for bytes in stream.chunks(piece) {
            let mut at = 0;
            while at < bytes.len() {
                let (taken, found) = scanner.scan(&bytes[at..]);
                at += taken;
                match found {
                    Some(found) if found == message() => return true,
                    Some(other) => scanner.reject(&other),
                    None => {}
                }
            }
        }
        false
    }

    #[test]
    fn a_torn_message_does_not_hide_the_whole_one_behind_it() {
        for cut in 0..MESSAGE_LENGTH {
            let stream = [&message()[..cut], &message(), &[0xff; MESSAGE_LENGTH]].concat();
            assert!(finds(&stream, stream.len()), "cut after {cut}");
        }
    }

    proptest! {
        #[test]
        fn a_message_is_found_behind_any_noise_in_any_pieces(
            noise in proptest::collection::vec(prop_oneof![Just(MAGIC[0]), Just(MAGIC[1]), any::<u8>()], 0..600),
            cut in 0..MESSAGE_LENGTH,
            piece in 1..200usize,
        ) {
            let stream = [&noise[..], &message()[..cut], &message(), &[0; MESSAGE_LENGTH]].concat();
            prop_assert!(finds(&stream, piece));
        }

        #[test]
        fn it_holds_less_than_one_message(noise in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut scanner = Scanner::default();
            scanner.scan(&[&MAGIC[..], &noise].concat());
            prop_assert!(scanner.take().len() < MESSAGE_LENGTH);
        }
    }
}
