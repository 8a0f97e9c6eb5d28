//! Frames: what one stream carries. A kind (`u8`), the payload's length (`u32`, little-endian, at most
//! [`MAX_FRAME_LENGTH`]), the payload.

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_FRAME_LENGTH;

/// The bytes before a frame's payload.
pub const FRAME_HEADER_LENGTH: usize = 5;

/// The bytes before the content of an output frame: stream, offset, time.
pub const OUTPUT_HEADER_LENGTH: usize = 17;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Host to guest, the first of a stream: the JSON of an [`Operation`](crate::message::Operation).
    Request = 1,
    /// Guest to host: the JSON that answers the request.
    Response = 2,
    /// Guest to host: the JSON of an [`Error`]; the stream ends with it.
    Failure = 3,
    /// Raw content: of a file, or of a process's standard input.
    Data = 4,
    /// No more content in this direction. A stream that ends without it was cut off.
    End = 5,
    /// Guest to host: a process's output; see [`output_frame`].
    Output = 6,
    /// Guest to host: the output before this offset (`u64`, little-endian) is gone.
    Truncated = 7,
    /// Guest to host: the JSON of a [`ProcessExit`](crate::message::ProcessExit).
    Exit = 8,
    /// Guest to host: the JSON of an [`Event`](crate::message::Event).
    Event = 9,
    /// Guest to host: a JSON array of [`DirectoryEntry`](crate::message::DirectoryEntry).
    Entries = 10,
    /// Host to guest: the JSON of a [`TerminalSize`](crate::message::TerminalSize).
    Resize = 11,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Result<Self> {
        Ok(match byte {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Failure,
            4 => Self::Data,
            5 => Self::End,
            6 => Self::Output,
            7 => Self::Truncated,
            8 => Self::Exit,
            9 => Self::Event,
            10 => Self::Entries,
            11 => Self::Resize,
            other => return Err(Error::new(ErrorKind::Corrupt, format!("unknown frame kind {other}"))),
        })
    }
}

/// One frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// Its payload, at most [`MAX_FRAME_LENGTH`] bytes.
    pub payload: Bytes,
}

impl Frame {
    /// The payload as the JSON of a `T`.
    ///
    /// Errors: `Corrupt`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.payload).map_err(|error| {
            Error::new(ErrorKind::Corrupt, format!("unreadable {:?} frame: {error}", self.kind)).sanitized()
        })
    }

    /// A protocol error that names this frame.
    #[must_use]
    pub fn unexpected(&self) -> Error {
        Error::new(ErrorKind::Corrupt, format!("unexpected {:?} frame", self.kind))
    }
}

fn header(kind: FrameKind, length: usize) -> Result<[u8; FRAME_HEADER_LENGTH]> {
    if length > MAX_FRAME_LENGTH {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a message of {length} bytes is longer than {MAX_FRAME_LENGTH}"),
        ));
    }
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    Ok([kind as u8, a, b, c, d])
}

fn parse_header(bytes: [u8; FRAME_HEADER_LENGTH]) -> Result<(FrameKind, usize)> {
    let [kind, a, b, c, d] = bytes;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_FRAME_LENGTH {
        return Err(Error::new(ErrorKind::Corrupt, format!("a frame of {length} bytes is too long")));
    }
    Ok((FrameKind::from_byte(kind)?, length))
}

/// Writes one frame in one piece, without a flush. Not cancel-safe.
///
/// Errors: `InvalidInput` when it is too long, else those of the stream.
pub async fn write_frame<W: AsyncWrite + Unpin>(io: &mut W, kind: FrameKind, payload: &[u8]) -> Result<()> {
    write_parts(io, kind, &[payload]).await
}

async fn write_parts<W: AsyncWrite + Unpin>(io: &mut W, kind: FrameKind, parts: &[&[u8]]) -> Result<()> {
    let length = parts.iter().map(|part| part.len()).sum();
    let mut buffer = Vec::with_capacity(FRAME_HEADER_LENGTH + length);
    buffer.extend_from_slice(&header(kind, length)?);
    for part in parts {
        buffer.extend_from_slice(part);
    }
    io.write_all(&buffer).await.map_err(|error| Error::from_io("write to the peer", &error))
}

/// Writes one frame whose payload is the JSON of `value`.
///
/// Errors: as [`write_frame`].
pub async fn write_json<W, T>(io: &mut W, kind: FrameKind, value: &T) -> Result<()>
where
    W: AsyncWrite + Unpin,
    T: Serialize + ?Sized,
{
    let json = serde_json::to_vec(value)
        .map_err(|error| Error::new(ErrorKind::Internal, format!("cannot encode a message: {error}")))?;
    write_frame(io, kind, &json).await
}

/// Writes an output frame: the stream's number (`u8`), the offset of its first byte in all of the process's
/// output (`u64`, little-endian), the time it was read in milliseconds since 1970 (`u64`, little-endian), the bytes.
///
/// Errors: as [`write_frame`].
pub async fn output_frame<W: AsyncWrite + Unpin>(
    io: &mut W,
    stream: u8,
    offset: u64,
    at_ms: u64,
    content: &[u8],
) -> Result<()> {
    let parts: [&[u8]; 4] = [&[stream], &offset.to_le_bytes(), &at_ms.to_le_bytes(), content];
    write_parts(io, FrameKind::Output, &parts).await
}

/// Reads exactly one frame and nothing after it; `None` at a clean end. Not cancel-safe: see [`FrameReader`].
///
/// Errors: `Corrupt` for what is no frame, `Unavailable` when the stream was cut off.
pub async fn read_frame<R: AsyncRead + Unpin>(io: &mut R) -> Result<Option<Frame>> {
    let failed = |error: std::io::Error| Error::from_io("read from the peer", &error);
    let mut bytes = [0; FRAME_HEADER_LENGTH];
    if io.read(&mut bytes[..1]).await.map_err(failed)? == 0 {
        return Ok(None);
    }
    io.read_exact(&mut bytes[1..]).await.map_err(failed)?;
    let (kind, length) = parse_header(bytes)?;
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await.map_err(failed)?;
    Ok(Some(Frame { kind, payload: payload.into() }))
}

/// Reads frames; a call that is dropped half-way loses nothing, so it may stand in a `select!`.
#[derive(Debug)]
pub struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `io`.
    pub fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new() }
    }

    /// The next frame; `None` at a clean end. Cancel-safe.
    ///
    /// Errors: `Corrupt` for what is no frame, `Unavailable` when the stream was cut off.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            let mut wanted = FRAME_HEADER_LENGTH;
            if let Some(bytes) = self.buffer.first_chunk::<FRAME_HEADER_LENGTH>() {
                let (kind, length) = parse_header(*bytes)?;
                wanted += length;
                if self.buffer.len() >= wanted {
                    self.buffer.advance(FRAME_HEADER_LENGTH);
                    return Ok(Some(Frame { kind, payload: self.buffer.split_to(length).freeze() }));
                }
            }
            self.buffer.reserve(wanted - self.buffer.len());
            let read = self.io.read_buf(&mut self.buffer).await;
            if read.map_err(|error| Error::from_io("read from the peer", &error))? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => {
                        Err(Error::new(ErrorKind::Unavailable, "the peer closed in the middle of a frame"))
                    }
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_read_back_one_by_one() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, FrameKind::Data, b"abc").await.unwrap();
        write_frame(&mut bytes, FrameKind::End, b"").await.unwrap();
        let mut reader = FrameReader::new(bytes.as_slice());
        let first = reader.next().await.unwrap().unwrap();
        assert_eq!((first.kind, &first.payload[..]), (FrameKind::Data, &b"abc"[..]));
        assert_eq!(reader.next().await.unwrap().unwrap().kind, FrameKind::End);
        assert!(reader.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_refused_before_it_is_allocated() {
        let bytes = [4, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(FrameReader::new(&bytes[..]).next().await.unwrap_err().kind, ErrorKind::Corrupt);
        assert_eq!(read_frame(&mut &bytes[..]).await.unwrap_err().kind, ErrorKind::Corrupt);
    }

    #[tokio::test]
    async fn a_frame_that_is_cut_off_is_an_error_and_no_clean_end() {
        let bytes = [4, 3, 0, 0, 0, b'a'];
        assert_eq!(FrameReader::new(&bytes[..]).next().await.unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(read_frame(&mut &bytes[..]).await.unwrap_err().kind, ErrorKind::Unavailable);
    }
}
