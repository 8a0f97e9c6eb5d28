//! Artefacts in a BlobStore: root file systems, kernels, initramfs and manifests, each under the digest of what it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use flames_blob::{BlobKey, BlobStore, BlobStoreExt, ByteStream, Digest, PutOptions};
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt;

use crate::config::ImageConfig;
use crate::convert::Conversion;

/// The manifest's schema number. A reader refuses a newer one.
const SCHEMA: u32 = 1;
/// The longest manifest, in bytes: an image's configuration is at most 4 MiB.
const LONGEST_MANIFEST: u64 = 16 << 20;
/// Bytes read from a file at once.
const CHUNK: usize = 256 * 1024;

/// What an artefact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtefactKind {
    /// An ext4 root file system, read-only.
    Rootfs,
    /// A kernel.
    Kernel,
    /// An initramfs.
    Initramfs,
}

impl ArtefactKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rootfs => "rootfs",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
        }
    }
}

/// How an artefact's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// As they are.
    Plain,
    /// One zstd stream.
    Zstd,
}

/// One artefact: what a host needs to know to fetch and check it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artefact {
    /// What it is.
    pub kind: ArtefactKind,
    /// The SHA-256 of its bytes, decoded.
    #[serde(with = "digest_text")]
    pub digest: Digest,
    /// Its size in bytes, decoded.
    pub size: u64,
    /// How it is stored.
    pub encoding: Encoding,
}

impl Artefact {
    /// Where it lies in the BlobStore: `images/<kind>/<hex digest>`.
    pub fn key(&self) -> Result<BlobKey> {
        BlobKey::new(format!("images/{}/{}", self.kind.as_str(), self.digest.hex()))
    }
}

/// An image as it is stored: which root file system, and how it wants to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageManifest {
    /// The shape of this record, from 1.
    pub schema: u32,
    /// The root file system.
    pub rootfs: Artefact,
    /// How the image wants to be run.
    pub config: ImageConfig,
    /// What it was made from, for people: `oci-layout`, `tar: base.tar`.
    pub created_from: String,
}

/// Puts artefacts into a BlobStore and finds them again.
#[derive(Debug, Clone)]
pub struct ImageStore {
    blobs: Arc<dyn BlobStore>,
}

impl ImageStore {
    /// Images in `blobs`.
    pub fn new(blobs: Arc<dyn BlobStore>) -> Self {
        Self { blobs }
    }

    /// Stores what a conversion made, root file system first, and answers the manifest with its digest, which names the image. Storing the
    /// same image again stores nothing twice.
    ///
    /// Errors: those of [`BlobStore::put`]; `Unavailable` when the file cannot be read.
    pub async fn put_conversion(
        &self,
        conversion: &Conversion,
        created_from: &str,
    ) -> Result<(Digest, ImageManifest)> {
        let result = &conversion.result;
        let rootfs = Artefact {
            kind: ArtefactKind::Rootfs,
            digest: result.digest.parse()?,
            size: result.size,
            encoding: Encoding::Zstd,
        };
        let options = PutOptions {
            content_type: Some("application/zstd".to_owned()),
            expected_size: Some(result.compressed_size),
            expected_digest: Some(result.compressed_digest.parse()?),
            metadata: metadata(&rootfs),
        };
        if !self.blobs.exists(&rootfs.key()?).await? {
            self.blobs.put(&rootfs.key()?, read_file(&conversion.path()).await?, options).await?;
        }
        let manifest = ImageManifest {
            schema: SCHEMA,
            rootfs,
            config: result.config.clone(),
            created_from: created_from.to_owned(),
        };
        let digest = self.put_manifest(&manifest).await?;
        Ok((digest, manifest))
    }

    async fn put_manifest(&self, manifest: &ImageManifest) -> Result<Digest> {
        let bytes = serde_json::to_vec(manifest).map_err(|error| {
            Error::internal("image.put_manifest", "the manifest cannot be written").with_source(error)
        })?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        let options = PutOptions {
            content_type: Some("application/json".to_owned()),
            expected_digest: Some(digest),
            ..PutOptions::default()
        };
        self.blobs.put_bytes(&manifest_key(&digest)?, bytes.into(), options).await?;
        Ok(digest)
    }

    /// The manifest with this digest, checked against it.
    ///
    /// Errors: `NotFound`; `Corrupt` when the bytes are others or of a newer schema.
    pub async fn manifest(&self, digest: &Digest) -> Result<ImageManifest> {
        let corrupt = |why: &str| {
            Error::new(ErrorKind::Corrupt, "image.manifest", why).with_resource("image", digest.to_string())
        };
        let bytes = self.blobs.get_bytes(&manifest_key(digest)?, LONGEST_MANIFEST).await?;
        if Digest::from_bytes(Sha256::digest(&bytes).into()) != *digest {
            return Err(corrupt("the manifest does not have its digest"));
        }
        let manifest: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|error| corrupt("this is no manifest").with_source(error))?;
        if manifest.schema > SCHEMA {
            return Err(corrupt("the manifest was written by a newer version"));
        }
        Ok(manifest)
    }

    /// Stores a file (a kernel, an initramfs) as it is. `InvalidInput` for a kernel that is none.
    pub async fn put_file(&self, kind: ArtefactKind, path: &Path) -> Result<Artefact> {
        let owned = path.to_owned();
        let (digest, size) = tokio::task::spawn_blocking(move || {
            if kind == ArtefactKind::Kernel {
                crate::kernel::recognise(&owned)?;
            }
            digest_of(&owned)
        })
        .await
        .map_err(|error| {
            Error::internal("image.put_file", "reading the file was interrupted").with_source(error)
        })??;
        let artefact = Artefact { kind, digest, size, encoding: Encoding::Plain };
        if !self.blobs.exists(&artefact.key()?).await? {
            let options = self.plain_options(&artefact);
            self.blobs.put(&artefact.key()?, read_file(path).await?, options).await?;
        }
        Ok(artefact)
    }

    /// Stores bytes that are in memory (an initramfs just built) as they are.
    pub async fn put_bytes(&self, kind: ArtefactKind, bytes: Bytes) -> Result<Artefact> {
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        let artefact = Artefact { kind, digest, size: bytes.len() as u64, encoding: Encoding::Plain };
        if !self.blobs.exists(&artefact.key()?).await? {
            let options = self.plain_options(&artefact);
            self.blobs.put_bytes(&artefact.key()?, bytes, options).await?;
        }
        Ok(artefact)
    }

    fn plain_options(&self, artefact: &Artefact) -> PutOptions {
        PutOptions {
            content_type: None,
            expected_size: Some(artefact.size),
            expected_digest: Some(artefact.digest),
            metadata: metadata(artefact),
        }
    }

    /// Removes a manifest; its artefacts stay, since other manifests may name them. No error when it is not there.
    pub async fn delete_manifest(&self, digest: &Digest) -> Result<()> {
        self.blobs.delete(&manifest_key(digest)?).await
    }

    /// Removes an artefact that the caller knows to be named by nothing. No error when it is not there.
    pub async fn delete_artefact(&self, artefact: &Artefact) -> Result<()> {
        self.blobs.delete(&artefact.key()?).await
    }
}

fn manifest_key(digest: &Digest) -> Result<BlobKey> {
    BlobKey::new(format!("images/manifest/{}", digest.hex()))
}

/// What is kept with the blob, so that it can be understood without its manifest.
fn metadata(artefact: &Artefact) -> BTreeMap<String, String> {
    let encoding = match artefact.encoding {
        Encoding::Plain => "plain",
        Encoding::Zstd => "zstd",
    };
    BTreeMap::from([
        ("encoding".to_owned(), encoding.to_owned()),
        ("decoded-digest".to_owned(), artefact.digest.to_string()),
        ("decoded-size".to_owned(), artefact.size.to_string()),
    ])
}

fn digest_of(path: &Path) -> Result<(Digest, u64)> {
    let failed = |error: std::io::Error| Error::from(crate::ImageError::from(error).at_path(path));
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok((Digest::from_bytes(hash.finalize().into()), size));
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
}

async fn read_file(path: &Path) -> Result<ByteStream> {
    let failed =
        |error: std::io::Error| Error::unavailable("image.read", "a file cannot be read").with_source(error);
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let stream = futures::stream::try_unfold(file, move |mut file| async move {
        let mut chunk = vec![0; CHUNK];
        let count = file.read(&mut chunk).await.map_err(failed)?;
        chunk.truncate(count);
        Ok((count > 0).then(|| (Bytes::from(chunk), file)))
    });
    Ok(stream.boxed())
}

/// A digest as its text.
mod digest_text {
    use flames_blob::Digest;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom("not a digest of the form sha256:<64 hex digits>"))
    }
}
