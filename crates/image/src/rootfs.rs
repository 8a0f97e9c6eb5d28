//! From an image in any form to an ext4 root file system: the work itself, in this process.
//!
//! [`crate::Converter`] does it in a bounded child process, which is what a server wants. The result is the read-only lower layer of
//! each VM's root; [`crate::writable`] makes the upper one.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flames_blob::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::archive::layer::Filling;
use crate::bundle::{Bundle, looks_like_image_archive};
use crate::config::ImageConfig;
use crate::directory::fill_from_directory;
use crate::error::{ImageError, Result};
use crate::ext4;
use crate::limits::{DeviceNodes, Limits};
use crate::oci::{Choice, fill_from_bundle};
use crate::spool::Spool;

/// How hard zstd tries; the usual default, fast and good on file systems.
const ZSTD_LEVEL: i32 = 3;
/// The names of a conversion's files within its staging folder.
const COMPRESSED: &str = "rootfs.ext4.zst";
const UNCOMPRESSED: &str = "rootfs.ext4";

/// What the input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// Told by its looks: a folder with `oci-layout` is a layout, another is a root file system; a file whose first member belongs
    /// to an image is an image's archive, another is a root file system's tar.
    #[default]
    Auto,
    /// A folder that is the root file system.
    Directory,
    /// A tar of the root file system: plain, gzip or zstd.
    Tar,
    /// A folder in the form of the OCI image layout.
    OciLayout,
    /// A tar (plain, gzip or zstd) of an OCI image layout, or what `docker save` writes.
    ImageArchive,
}

impl SourceKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Directory => "directory",
            Self::Tar => "tar",
            Self::OciLayout => "oci-layout",
            Self::ImageArchive => "image-archive",
        }
    }
}

/// What to convert, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConversionRequest {
    /// The folder or file.
    pub source: PathBuf,
    /// What it is.
    #[serde(default)]
    pub kind: SourceKind,
    /// Which image of several, by its name or tag.
    #[serde(default)]
    pub reference: Option<String>,
    /// The processor that the image must be for, in OCI's (Go's) words.
    #[serde(default = "host_architecture")]
    pub architecture: String,
    /// What becomes of device nodes.
    #[serde(default)]
    pub device_nodes: DeviceNodes,
    /// Free room in the file system, in bytes. None is needed under an overlay.
    #[serde(default)]
    pub free_bytes: u64,
    /// The bounds.
    #[serde(default)]
    pub limits: Limits,
}

impl ConversionRequest {
    /// A request with the defaults: kind by looks, this machine's architecture, no device nodes, default bounds.
    pub fn new(source: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            kind: SourceKind::Auto,
            reference: None,
            architecture: host_architecture(),
            device_nodes: DeviceNodes::Refuse,
            free_bytes: 0,
            limits: Limits::default(),
        }
    }
}

/// This machine's processor in OCI's words.
pub fn host_architecture() -> String {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .to_owned()
}

/// What a conversion made. The compressed file system lies in the staging folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConversionResult {
    /// The file's name in the staging folder.
    pub file: String,
    /// The SHA-256 of the file system, uncompressed: the image's identity. The same content gives the same digest on every machine.
    pub digest: String,
    /// The file system's size in bytes.
    pub size: u64,
    /// The SHA-256 of the compressed file, and its size in bytes.
    pub compressed_digest: String,
    /// See `compressed_digest`.
    pub compressed_size: u64,
    /// How the image wants to be run.
    pub config: ImageConfig,
    /// What the input was found to be: `directory`, `tar`, `oci-layout` or `image-archive`.
    pub source_kind: String,
    /// Files, directories and links in it.
    pub inodes: u32,
    /// The bytes of all files that were read, over all layers.
    pub unpacked_bytes: u64,
}

/// How far a conversion is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// What is being done, for people: `reading layer 2 of 5`.
    pub phase: String,
    /// Bytes done in this phase.
    pub bytes: u64,
}

/// Converts in this process, into `staging`, an empty folder that belongs to this conversion. What stays there afterwards is the compressed
/// file system alone, or after an error whatever there is: the folder's owner removes it.
///
/// Errors: `Malformed`, `Hostile`, `TooLarge`, `DigestMismatch`, `Unsupported` (each names the entry); `NotFound`; `NoSpace`, `Io`.
pub fn convert(
    request: &ConversionRequest,
    staging: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<ConversionResult> {
    let kind = found_kind(request)?;
    let spool_path = staging.join("contents");
    let mut filling = Filling::new(Spool::create(&spool_path)?, request.limits.clone(), request.device_nodes);
    let source = &request.source;
    let open = || open_archive(source);
    let choice = Choice { reference: request.reference.as_deref(), architecture: &request.architecture };
    let config = match kind {
        SourceKind::Auto => return Err(ImageError::internal("the input's kind was not found out")),
        SourceKind::Directory => {
            let mut tell = |bytes| progress(Progress { phase: "reading the folder".into(), bytes });
            fill_from_directory(&mut filling, source, &mut tell)?;
            ImageConfig::default()
        }
        SourceKind::Tar => {
            let mut tell = |bytes| progress(Progress { phase: "reading the archive".into(), bytes });
            filling.apply(open()?, false, &mut tell)?;
            ImageConfig::default()
        }
        SourceKind::OciLayout | SourceKind::ImageArchive => {
            let bundle = if kind == SourceKind::OciLayout {
                Bundle::Folder(source.clone())
            } else {
                let mut tell = |bytes| progress(Progress { phase: "unpacking the archive".into(), bytes });
                Bundle::unpack(open()?, staging, &request.limits, &mut tell)?
            };
            fill_from_bundle(&mut filling, &bundle, &choice, &mut |layer, layers, bytes| {
                progress(Progress { phase: format!("reading layer {layer} of {layers}"), bytes });
            })?
        }
    };
    let options =
        ext4::Options { least_bytes: 0, free_bytes: request.free_bytes, journal_blocks: 0, identity: None };
    let image = staging.join(UNCOMPRESSED);
    let mut tell = |bytes| progress(Progress { phase: "writing the file system".into(), bytes });
    let written = ext4::write(&filling.tree, Some(&filling.spool), &options, &image, &mut tell)?;
    let unpacked_bytes = filling.unpacked();
    drop(filling);
    fs::remove_file(&spool_path)?;
    let packed = compress(&image, &staging.join(COMPRESSED), progress)?;
    fs::remove_file(&image)?;
    Ok(ConversionResult {
        file: COMPRESSED.to_owned(),
        digest: packed.digest.to_string(),
        size: written.bytes,
        compressed_digest: packed.compressed_digest.to_string(),
        compressed_size: packed.compressed_size,
        config,
        source_kind: kind.as_str().to_owned(),
        inodes: written.inodes,
        unpacked_bytes,
    })
}

/// Opens a file that is one: a pipe or a device would block, or never end.
fn open_archive(path: &Path) -> Result<File> {
    let named = |error: ImageError| error.at_path(path);
    let metadata = fs::metadata(path).map_err(|error| named(error.into()))?;
    if !metadata.is_file() {
        return Err(named(ImageError::unsupported("not a file")));
    }
    File::open(path).map_err(|error| named(error.into()))
}

fn found_kind(request: &ConversionRequest) -> Result<SourceKind> {
    if request.kind != SourceKind::Auto {
        return Ok(request.kind);
    }
    let source = &request.source;
    let metadata = fs::metadata(source).map_err(|error| ImageError::from(error).at_path(source))?;
    if metadata.is_dir() {
        let is_layout = source.join("oci-layout").is_file() && source.join("index.json").is_file();
        return Ok(if is_layout { SourceKind::OciLayout } else { SourceKind::Directory });
    }
    if !metadata.is_file() {
        return Err(ImageError::unsupported("neither a folder nor a file").at_path(source));
    }
    let is_archive = looks_like_image_archive(open_archive(source)?, &request.limits)?;
    Ok(if is_archive { SourceKind::ImageArchive } else { SourceKind::Tar })
}

pub(crate) struct Packed {
    pub(crate) digest: Digest,
    pub(crate) compressed_digest: Digest,
    pub(crate) compressed_size: u64,
}

/// Compresses a file, computing both digests on the way.
pub(crate) fn compress(from: &Path, to: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Packed> {
    struct Hashing<W> {
        inner: W,
        hash: Sha256,
        bytes: u64,
    }
    impl<W: Write> Write for Hashing<W> {
        fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
            let count = self.inner.write(buffer)?;
            self.hash.update(&buffer[..count]);
            self.bytes += count as u64;
            Ok(count)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            self.inner.flush()
        }
    }
    let mut input = BufReader::new(File::open(from)?);
    let output = BufWriter::new(File::create_new(to)?);
    let mut encoder = zstd::stream::write::Encoder::new(
        Hashing { inner: output, hash: Sha256::new(), bytes: 0 },
        ZSTD_LEVEL,
    )?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut done: u64 = 0;
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        encoder.write_all(&buffer[..count])?;
        done += count as u64;
        progress(Progress { phase: "compressing".into(), bytes: done });
    }
    let mut written = encoder.finish()?;
    written.flush()?;
    let file = written.inner.into_inner().map_err(|error| ImageError::from(error.into_error()))?;
    file.sync_all()?;
    Ok(Packed {
        digest: Digest::from_bytes(hash.finalize().into()),
        compressed_digest: Digest::from_bytes(written.hash.finalize().into()),
        compressed_size: written.bytes,
    })
}
