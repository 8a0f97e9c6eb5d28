//! A compressed stream as bytes: digests computed, bombs noticed while the bytes pass.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use flames_blob::Digest;
use sha2::{Digest as _, Sha256};

use crate::error::{ImageError, ImageErrorKind, Result};
use crate::limits::Limits;

/// What was read so far of the stream as it lies on disk.
#[derive(Default)]
struct Meter {
    bytes: Cell<u64>,
    hash: RefCell<Sha256>,
}

struct Metered {
    file: File,
    meter: Rc<Meter>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.meter.bytes.set(self.meter.bytes.get() + count as u64);
        self.meter.hash.borrow_mut().update(&buffer[..count]);
        Ok(count)
    }
}

enum Decoder {
    Plain(BufReader<Metered>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<Metered>>>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<Metered>>),
}

/// The unpacked bytes of a plain, gzip or zstd file, recognised by its first bytes.
pub(crate) struct Unpacked {
    decoder: Decoder,
    meter: Rc<Meter>,
    hash: Sha256,
    bytes: u64,
    limits: Limits,
}

/// Digests and size of a stream that was read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamSummary {
    /// Of the bytes as they lie on disk.
    pub(crate) digest: Digest,
    /// Of the unpacked bytes.
    pub(crate) unpacked_digest: Digest,
    /// The length on disk.
    pub(crate) size: u64,
}

impl Unpacked {
    /// Opens a stream. `Unsupported` for a compression that is none of these.
    pub(crate) fn new(file: File, limits: &Limits) -> Result<Self> {
        let meter = Rc::new(Meter::default());
        let mut reader = BufReader::with_capacity(128 * 1024, Metered { file, meter: Rc::clone(&meter) });
        let first = reader.fill_buf()?;
        let decoder = if first.starts_with(&[0x1f, 0x8b]) {
            Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(reader)))
        } else if first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Decoder::Zstd(zstd::stream::read::Decoder::with_buffer(reader)?)
        } else if first.starts_with(b"\xfd7zXZ\0") || first.starts_with(b"BZh") || first.starts_with(b"LZIP")
        {
            return Err(ImageError::unsupported("the compression is not supported; use gzip, zstd or none"));
        } else {
            Decoder::Plain(reader)
        };
        Ok(Self { decoder, meter, hash: Sha256::new(), bytes: 0, limits: limits.clone() })
    }

    /// Reads what is left and answers the digests.
    pub(crate) fn finish(mut self) -> Result<StreamSummary> {
        let mut buffer = vec![0; 64 * 1024];
        while self.read(&mut buffer)? > 0 {}
        let mut rest = match self.decoder {
            Decoder::Plain(reader) => reader,
            Decoder::Gzip(decoder) => decoder.into_inner(),
            Decoder::Zstd(decoder) => decoder.finish(),
        };
        while rest.read(&mut buffer)? > 0 {}
        drop(rest);
        let digest = self.meter.hash.borrow().clone();
        Ok(StreamSummary {
            digest: Digest::from_bytes(digest.finalize().into()),
            unpacked_digest: Digest::from_bytes(self.hash.finalize().into()),
            size: self.meter.bytes.get(),
        })
    }

    fn check(&self) -> Result<()> {
        if self.bytes > self.limits.ratio_free_bytes
            && self.bytes / self.limits.ratio.max(1) > self.meter.bytes.get()
        {
            return Err(ImageError::too_large(format!(
                "the stream unpacks to more than {} times its size",
                self.limits.ratio
            )));
        }
        // Headers, padding and the archive's own structure come on top of the contents; twice the bound is a bomb for certain.
        if self.bytes > self.limits.unpacked_bytes.saturating_mul(2).saturating_add(64 << 20) {
            return Err(ImageError::too_large(format!(
                "the stream unpacks to more than {} bytes of contents",
                self.limits.unpacked_bytes
            )));
        }
        Ok(())
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = match &mut self.decoder {
            Decoder::Plain(reader) => reader.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer).map_err(damaged),
            Decoder::Zstd(decoder) => decoder.read(buffer).map_err(damaged),
        };
        let count = result?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        self.check()?;
        Ok(count)
    }
}

/// A decoder's complaint is about the input, unless the disk itself failed.
fn damaged(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => error,
        None => {
            ImageError::new(ImageErrorKind::Malformed, format!("the compressed stream is damaged: {error}"))
                .into()
        }
    }
}
