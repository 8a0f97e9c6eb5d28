//! How the body of a target's HTTP/1.1 response is framed (RFC 9112, sections 6 and 7).

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, TRANSFER_ENCODING};
use http::{HeaderValue, Method, StatusCode};

use crate::headers::list_contains;

/// The longest line that gives a chunk's size, with its extensions.
const MAX_CHUNK_LINE: usize = 1_024;

/// The most bytes that are copied out of the read buffer, so that it can be used again; more are split off it.
const COPIED: usize = 4 * 1_024;

/// What is still to come of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes; none are the end.
    Length(u64),
    /// Whatever comes until the connection ends.
    UntilClose,
    /// A line with a chunk's size.
    ChunkSize,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The end of a chunk's last line.
    ChunkEnd,
    /// Trailers, and an empty line.
    Trailers,
}

/// A piece of a body.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// The framing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Framing {
    /// By a response's head; and whether the connection can carry another request after the body.
    pub(crate) fn of(
        method: &Method,
        status: StatusCode,
        is_http_1_1: bool,
        headers: &mut HeaderMap,
    ) -> Result<(Self, bool), Malformed> {
        let mut is_kept = is_http_1_1 && !list_contains(headers, &CONNECTION, "close");
        let is_bodiless = *method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = length(headers)?;
        if headers.contains_key(TRANSFER_ENCODING) {
            let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
            let is_chunked =
                codings.next().is_some_and(|one| one.as_bytes().eq_ignore_ascii_case(b"chunked"));
            // HTTP/1.0 has no codings, and no other coding is understood.
            if !is_chunked || codings.next().is_some() || !is_http_1_1 {
                return Err(Malformed);
            }
            // A length beside it may be an attempt to say two things: the chunks count, and the connection ends.
            is_kept &= headers.remove(CONTENT_LENGTH).is_none();
            return Ok((if is_bodiless { Self::Length(0) } else { Self::ChunkSize }, is_kept));
        }
        Ok(match length {
            _ if is_bodiless => (Self::Length(0), is_kept),
            Some(length) => (Self::Length(length), is_kept),
            None => (Self::UntilClose, false),
        })
    }

    pub(crate) fn is_end(self) -> bool {
        self == Self::Length(0)
    }

    /// The next piece of what was read; none when more must be read first.
    pub(crate) fn decode(
        &mut self,
        input: &mut BytesMut,
        most_header_bytes: usize,
    ) -> Result<Option<Piece>, Malformed> {
        loop {
            match self {
                Self::Length(0) => return Ok(Some(Piece::End)),
                Self::Length(left) | Self::Chunk(left) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let size = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    *left -= size as u64;
                    if *self == Self::Chunk(0) {
                        *self = Self::ChunkEnd;
                    }
                    return Ok(Some(Piece::Data(take(input, size))));
                }
                Self::UntilClose if input.is_empty() => return Ok(None),
                Self::UntilClose => {
                    let size = input.len();
                    return Ok(Some(Piece::Data(take(input, size))));
                }
                Self::ChunkSize => {
                    let Some(end) = line_end(input) else {
                        return if input.len() > MAX_CHUNK_LINE { Err(Malformed) } else { Ok(None) };
                    };
                    let size = chunk_size(&input[..end])?;
                    input.advance(end + 2);
                    *self = if size == 0 { Self::Trailers } else { Self::Chunk(size) };
                }
                Self::ChunkEnd => match input.first_chunk::<2>() {
                    Some(b"\r\n") => {
                        input.advance(2);
                        *self = Self::ChunkSize;
                    }
                    Some(_) => return Err(Malformed),
                    None => return Ok(None),
                },
                Self::Trailers => {
                    if input.starts_with(b"\r\n") {
                        input.advance(2);
                        *self = Self::Length(0);
                        continue;
                    }
                    let Some(end) = input.windows(4).position(|end| end == b"\r\n\r\n") else {
                        return if input.len() > most_header_bytes { Err(Malformed) } else { Ok(None) };
                    };
                    if end + 4 > most_header_bytes {
                        return Err(Malformed);
                    }
                    let trailers = trailers(&input[..end + 4])?;
                    input.advance(end + 4);
                    *self = Self::Length(0);
                    return Ok(Some(Piece::Trailers(trailers)));
                }
            }
        }
    }
}

fn take(input: &mut BytesMut, size: usize) -> Bytes {
    if size > COPIED {
        return input.split_to(size).freeze();
    }
    let data = Bytes::copy_from_slice(&input[..size]);
    input.advance(size);
    data
}

/// The one length that a head gives; several that say the same are one.
fn length(headers: &mut HeaderMap) -> Result<Option<u64>, Malformed> {
    let Some(first) = headers.get(CONTENT_LENGTH).cloned() else { return Ok(None) };
    let all = headers.get_all(CONTENT_LENGTH);
    if all.iter().any(|other| *other != first) {
        return Err(Malformed);
    }
    if all.iter().nth(1).is_some() {
        headers.insert(CONTENT_LENGTH, first.clone());
    }
    digits(first.as_bytes(), 10).map(Some)
}

fn digits(text: &[u8], radix: u32) -> Result<u64, Malformed> {
    let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
    if text.is_empty() || !text.chars().all(|digit| digit.is_digit(radix)) {
        return Err(Malformed);
    }
    u64::from_str_radix(text, radix).map_err(|_| Malformed)
}

fn line_end(input: &[u8]) -> Option<usize> {
    input.windows(2).position(|end| end == b"\r\n")
}

fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
    digits(size.trim_ascii_end(), 16)
}

fn trailers(section: &[u8]) -> Result<HeaderMap, Malformed> {
    let mut parsed = [httparse::EMPTY_HEADER; 64];
    let httparse::Status::Complete((_, lines)) =
        httparse::parse_headers(section, &mut parsed).map_err(|_| Malformed)?
    else {
        return Err(Malformed);
    };
    let mut trailers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed)?;
        trailers.append(name, HeaderValue::from_bytes(line.value).map_err(|_| Malformed)?);
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Decodes what comes in pieces of `step` bytes.
    fn decoded(
        body: &str,
        mut framing: Framing,
        step: usize,
    ) -> Result<(String, Option<HeaderMap>, bool), Malformed> {
        let (mut input, mut data, mut last) = (BytesMut::new(), Vec::new(), None);
        for bytes in body.as_bytes().chunks(step) {
            input.extend_from_slice(bytes);
            while let Some(piece) = framing.decode(&mut input, 200)? {
                match piece {
                    Piece::Data(bytes) => data.extend_from_slice(&bytes),
                    Piece::Trailers(trailers) => last = Some(trailers),
                    Piece::End => break,
                }
            }
        }
        Ok((String::from_utf8(data).unwrap(), last, framing.is_end()))
    }

    #[test]
    fn bodies_are_read_however_their_bytes_come() {
        for step in [1, 2, 3, 7, 100] {
            let (data, last, is_end) =
                decoded("5;x=y\r\nhello\r\n00A \r\n0123456789\r\n0\r\n\r\n", Framing::ChunkSize, step)
                    .unwrap();
            assert_eq!((data.as_str(), last, is_end), ("hello0123456789", None, true));
            let (data, last, is_end) =
                decoded("1\r\na\r\n0\r\nx-a: 1\r\nX-B: 2\r\n\r\n", Framing::ChunkSize, step).unwrap();
            let last = last.unwrap();
            assert_eq!((data.as_str(), is_end), ("a", true));
            assert_eq!(
                (&last["x-a"], &last["x-b"]),
                (&HeaderValue::from_static("1"), &HeaderValue::from_static("2"))
            );
            let (data, _, is_end) = decoded("abc", Framing::Length(4), step).unwrap();
            assert_eq!((data.as_str(), is_end), ("abc", false));
            let (data, _, is_end) = decoded("abc", Framing::UntilClose, step).unwrap();
            assert_eq!((data.as_str(), is_end), ("abc", false));
        }
    }

    #[test]
    fn chunks_that_could_be_read_in_two_ways_are_refused() {
        let long = format!("1;{}\r\na\r\n", "x".repeat(2_000));
        let many = format!("0\r\nx: {}\r\n\r\n", "y".repeat(300));
        for wrong in [
            "\r\n",
            "x\r\n",
            "-1\r\na",
            "+1\r\na\r\n",
            "0x1\r\na\r\n",
            " 1\r\na\r\n",
            "1\na\n",
            "1\r\nab\r\n",
            "10000000000000000\r\n",
            "1 1\r\na\r\n",
            "0\r\n bad\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            &long,
            &many,
        ] {
            for step in [1, 100_000] {
                let outcome = decoded(wrong, Framing::ChunkSize, step);
                let is_whole = outcome.as_ref().is_ok_and(|(_, _, is_end)| *is_end);
                assert!(!is_whole, "{wrong:?}: {outcome:?}");
            }
        }
    }

    #[test]
    fn a_heads_framing_is_told_by_the_standards_order() {
        let of = |method: Method, status: u16, is_http_1_1: bool, lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            Framing::of(&method, StatusCode::from_u16(status).unwrap(), is_http_1_1, &mut headers)
        };
        let get = |lines: &[(&'static str, &'static str)]| of(Method::GET, 200, true, lines);
        assert_eq!(get(&[("content-length", "3")]), Ok((Framing::Length(3), true)));
        assert_eq!(
            get(&[("content-length", "3"), ("connection", "x, Close")]),
            Ok((Framing::Length(3), false))
        );
        assert_eq!(get(&[("content-length", "3"), ("content-length", "3")]), Ok((Framing::Length(3), true)));
        assert_eq!(get(&[("transfer-encoding", "Chunked")]), Ok((Framing::ChunkSize, true)));
        assert_eq!(
            get(&[("transfer-encoding", "chunked"), ("content-length", "3")]),
            Ok((Framing::ChunkSize, false))
        );
        assert_eq!(get(&[]), Ok((Framing::UntilClose, false)));
        assert_eq!(of(Method::HEAD, 200, true, &[("content-length", "3")]), Ok((Framing::Length(0), true)));
        assert_eq!(of(Method::GET, 304, true, &[("content-length", "3")]), Ok((Framing::Length(0), true)));
        assert_eq!(of(Method::GET, 204, true, &[]), Ok((Framing::Length(0), true)));
        assert_eq!(of(Method::GET, 200, false, &[("content-length", "3")]), Ok((Framing::Length(3), false)));
        for wrong in [
            &[("content-length", "3"), ("content-length", "4")][..],
            &[("content-length", "3, 3")],
            &[("content-length", "+3")],
            &[("content-length", "")],
            &[("content-length", "99999999999999999999")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "identity")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        ] {
            assert_eq!(get(wrong), Err(Malformed), "{wrong:?}");
        }
        assert_eq!(of(Method::GET, 200, false, &[("transfer-encoding", "chunked")]), Err(Malformed));
    }
}
