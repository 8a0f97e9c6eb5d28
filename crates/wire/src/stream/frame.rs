//! Frames: encoding and decoding.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flames_error::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::{FileAnswer, FileRequest, ProcessAnswer, ProcessRequest, StreamError};
use crate::guest::ExitStatus;

/// The longest frame, in bytes.
pub const MAX_FRAME: usize = 128 * 1024;
/// The most content of one frame, in bytes: what is longer is sent in several.
pub const MAX_CONTENT: usize = MAX_FRAME - 16;
const MAX_PROCESS_ID: usize = 64;
const OPERATION: &str = "stream.frame";

/// One frame. See the [module's docs](super) for the table of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamFrame {
    /// Bytes for the process's standard input.
    Stdin(Bytes),
    /// No more standard input.
    StdinClosed,
    /// The terminal has another size.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// A signal for the process: its number on Linux.
    Signal(u8),
    /// The process that the stream is attached to.
    Started {
        /// Its id.
        process: String,
    },
    /// Standard output.
    Stdout {
        /// Where it stands in the process's output.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Standard error.
    Stderr {
        /// Where it stands in the process's output.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Output before this offset is no longer kept.
    Truncated {
        /// The offset.
        before: u64,
    },
    /// The process ended.
    Exit(ExitStatus),
    /// The stream ends before its end.
    Error(StreamError),
    /// Bytes.
    Data(Bytes),
    /// No more data in this direction.
    End,
    /// The TCP connection inside the guest stands.
    Connected,
    /// An operation on files.
    FileRequest(FileRequest),
    /// The answer to one.
    FileAnswer(FileAnswer),
    /// An operation on processes.
    ProcessRequest(ProcessRequest),
    /// The answer to one.
    ProcessAnswer(ProcessAnswer),
}

fn json<T: Serialize>(kind: u8, value: &T) -> Result<BytesMut> {
    let mut buffer = BytesMut::from(&[kind][..]);
    let encoded = serde_json::to_vec(value)
        .map_err(|error| Error::internal(OPERATION, "a frame cannot be encoded").with_source(error))?;
    buffer.put_slice(&encoded);
    Ok(buffer)
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    serde_json::from_slice(payload)
        .map_err(|error| corrupt("a frame's JSON cannot be read").with_source(error))
}

fn corrupt(message: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, message)
}

fn plain(kind: u8, content: &[u8]) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(content.len() + 1);
    buffer.put_u8(kind);
    buffer.put_slice(content);
    buffer
}

fn at_offset(kind: u8, offset: u64, data: &[u8]) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(data.len() + 9);
    buffer.put_u8(kind);
    buffer.put_u64(offset);
    buffer.put_slice(data);
    buffer
}

impl StreamFrame {
    /// The frame's bytes.
    ///
    /// Errors: `InvalidInput` when it is longer than [`MAX_FRAME`].
    pub fn encode(&self) -> Result<Bytes> {
        let buffer = match self {
            Self::Stdin(data) => plain(1, data),
            Self::StdinClosed => plain(2, &[]),
            Self::Resize { rows, columns } => {
                let mut buffer = plain(3, &rows.to_be_bytes());
                buffer.put_u16(*columns);
                buffer
            }
            Self::Signal(signal) => plain(4, &[*signal]),
            Self::Started { process } => {
                if process.len() > MAX_PROCESS_ID {
                    return Err(Error::invalid(OPERATION, "process", "A process id is at most 64 bytes."));
                }
                plain(16, process.as_bytes())
            }
            Self::Stdout { offset, data } => at_offset(17, *offset, data),
            Self::Stderr { offset, data } => at_offset(18, *offset, data),
            Self::Truncated { before } => at_offset(19, *before, &[]),
            Self::Exit(status) => json(20, status)?,
            Self::Error(error) => json(21, error)?,
            Self::Data(data) => plain(32, data),
            Self::End => plain(33, &[]),
            Self::Connected => plain(34, &[]),
            Self::FileRequest(request) => json(48, request)?,
            Self::FileAnswer(answer) => json(49, answer)?,
            Self::ProcessRequest(request) => json(50, request)?,
            Self::ProcessAnswer(answer) => json(51, answer)?,
        };
        if buffer.len() > MAX_FRAME {
            return Err(Error::invalid(OPERATION, "frame", "A frame is at most 131072 bytes."));
        }
        Ok(buffer.freeze())
    }

    /// Reads a frame.
    ///
    /// Errors: `Corrupt` when it is none, or is longer than [`MAX_FRAME`]; `NotSupported` when this version does not know its kind.
    pub fn decode(mut frame: Bytes) -> Result<Self> {
        if frame.len() > MAX_FRAME {
            return Err(corrupt("a frame is too long"));
        }
        if frame.is_empty() {
            return Err(corrupt("a frame is empty"));
        }
        let kind = frame.get_u8();
        let offset = |frame: &mut Bytes| {
            if frame.len() < 8 { Err(corrupt("a frame is too short")) } else { Ok(frame.get_u64()) }
        };
        let nothing = |frame: &Bytes, value: Self| {
            if frame.is_empty() { Ok(value) } else { Err(corrupt("a frame has bytes that it must not have")) }
        };
        match kind {
            1 => Ok(Self::Stdin(frame)),
            2 => nothing(&frame, Self::StdinClosed),
            3 if frame.len() == 4 => Ok(Self::Resize { rows: frame.get_u16(), columns: frame.get_u16() }),
            4 if frame.len() == 1 => Ok(Self::Signal(frame.get_u8())),
            16 if frame.len() <= MAX_PROCESS_ID => {
                let process = std::str::from_utf8(&frame).map_err(|_| corrupt("a process id is no text"))?;
                Ok(Self::Started { process: process.to_owned() })
            }
            17 => Ok(Self::Stdout { offset: offset(&mut frame)?, data: frame }),
            18 => Ok(Self::Stderr { offset: offset(&mut frame)?, data: frame }),
            19 => {
                let before = offset(&mut frame)?;
                nothing(&frame, Self::Truncated { before })
            }
            20 => Ok(Self::Exit(parse(&frame)?)),
            21 => Ok(Self::Error(parse(&frame)?)),
            32 => Ok(Self::Data(frame)),
            33 => nothing(&frame, Self::End),
            34 => nothing(&frame, Self::Connected),
            48 => Ok(Self::FileRequest(parse(&frame)?)),
            49 => Ok(Self::FileAnswer(parse(&frame)?)),
            50 => Ok(Self::ProcessRequest(parse(&frame)?)),
            51 => Ok(Self::ProcessAnswer(parse(&frame)?)),
            3 | 4 | 16 => Err(corrupt("a frame has another length than its kind")),
            _ => Err(Error::new(ErrorKind::NotSupported, OPERATION, "a frame of a kind that is not known")
                .with_context("kind", kind)),
        }
    }

    /// The frame that tells the other side of an error.
    pub fn error(error: &Error) -> Self {
        Self::Error(StreamError::of(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::SignalProcess;
    use proptest::prelude::*;

    fn samples() -> Vec<StreamFrame> {
        let data = Bytes::from_static(b"a\0b");
        vec![
            StreamFrame::Stdin(data.clone()),
            StreamFrame::StdinClosed,
            StreamFrame::Resize { rows: 24, columns: 80 },
            StreamFrame::Signal(15),
            StreamFrame::Started { process: "main".to_owned() },
            StreamFrame::Stdout { offset: u64::MAX, data: data.clone() },
            StreamFrame::Stderr { offset: 7, data: Bytes::new() },
            StreamFrame::Truncated { before: 9 },
            StreamFrame::Exit(ExitStatus { code: Some(3), signal: None }),
            StreamFrame::error(&Error::not_found("test", "process", "p").with_code("PROCESS_NOT_FOUND")),
            StreamFrame::Data(data),
            StreamFrame::End,
            StreamFrame::Connected,
            StreamFrame::FileRequest(FileRequest::Rename { from: "/a".to_owned(), to: "/b".to_owned() }),
            StreamFrame::FileAnswer(FileAnswer::Ready),
            StreamFrame::ProcessRequest(ProcessRequest::Signal {
                process: "main".to_owned(),
                signal: SignalProcess { signal: 9, group: true },
            }),
            StreamFrame::ProcessAnswer(ProcessAnswer::Processes(Vec::new())),
        ]
    }

    #[test]
    fn every_frame_reads_back_as_it_was_written() {
        for frame in samples() {
            assert_eq!(StreamFrame::decode(frame.encode().unwrap()).unwrap(), frame);
        }
    }

    #[test]
    fn the_longest_content_fits_and_one_byte_more_than_a_frame_does_not() {
        let data = Bytes::from(vec![0; MAX_CONTENT]);
        let frame = StreamFrame::Stdout { offset: 0, data };
        assert!(frame.encode().unwrap().len() <= MAX_FRAME);
        assert!(StreamFrame::Data(Bytes::from(vec![0; MAX_FRAME])).encode().is_err());
        let long = Bytes::from(vec![32; MAX_FRAME + 1]);
        assert_eq!(StreamFrame::decode(long).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_frame_of_a_newer_version_is_told_apart_from_a_broken_one() {
        assert_eq!(
            StreamFrame::decode(Bytes::from_static(&[200])).unwrap_err().kind(),
            ErrorKind::NotSupported
        );
        for broken in [&[][..], &[3, 1], &[17, 0], &[33, 0], &[20, b'{'], &[4], &[19]] {
            let error = StreamFrame::decode(Bytes::copy_from_slice(broken)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_what_reads_writes_the_same(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(frame) = StreamFrame::decode(Bytes::from(bytes))
                && let Ok(encoded) = frame.encode() {
                prop_assert_eq!(StreamFrame::decode(encoded).unwrap(), frame);
            }
        }
    }
}
