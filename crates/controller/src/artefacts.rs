//! What a machine is made from, made local.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flames_blob::BlobStore;
use flames_error::{Error, ErrorKind, Result};
use flames_image::{Artefact, ArtefactKind, Encoding, LocalImages};
use flames_model::{ImageKind, ImageManifest};

/// Makes images, kernels and disks local. Each call is idempotent.
#[async_trait]
pub trait Artefacts: Debug + Send + Sync + 'static {
    /// The root file system of an image, as a read-only file.
    ///
    /// Errors: `NotFound` when it is not in the BlobStore any more; `Corrupt`; `Exhausted` when the disk is full; `Unavailable`.
    async fn rootfs(&self, image: &ImageManifest) -> Result<PathBuf>;

    /// A kernel; the default one when none is named. Errors: as [`Artefacts::rootfs`]; `InvalidInput` when it is no kernel; `NotSupported`
    /// when there is no default.
    async fn kernel(&self, kernel: Option<&ImageManifest>) -> Result<PathBuf>;

    /// The initramfs with the agent. Errors: `NotFound`.
    async fn initramfs(&self) -> Result<Option<PathBuf>>;

    /// The digest of the default kernel; none when there is no default.
    ///
    /// Errors: `NotFound` when it is not there any more; `Unavailable`.
    async fn default_kernel(&self) -> Result<Option<String>>;

    /// Makes sure that a writable layer of this size is at `path`; one that is there stays as it is.
    ///
    /// Errors: `Exhausted` when the disk is full; `Conflict` when one of another size is there; `Unavailable`.
    async fn writable_layer(&self, path: &Path, size_bytes: u64) -> Result<()>;

    /// Removes what was made local and is not needed any more: what no manifest of `needed` names, after a grace period within which
    /// it was not asked for. A file that a machine has open stays as it is for that machine.
    ///
    /// Errors: `Unavailable`; the rest is swept the next time.
    async fn sweep(&self, needed: &[ImageManifest]) -> Result<()>;
}

/// How long what no incarnation needs stays local at least: longer than from looking at what is needed to removing the rest.
const GRACE: Duration = Duration::from_secs(10 * 60);
/// How long it stays while its image is still in the BlobStore, for the next VM made from it.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3_600);

/// The real ones: images from a BlobStore, kept by digest; kernel and initramfs from files.
#[derive(Debug)]
pub struct LocalArtefacts {
    images: LocalImages,
    default_kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
}

impl LocalArtefacts {
    /// Keeps images in `folder`. VMs that name no kernel boot `default_kernel`; each boots with `initramfs`.
    ///
    /// Errors: `Unavailable` when the folder cannot be used.
    pub fn open(
        blobs: Arc<dyn BlobStore>,
        folder: impl Into<PathBuf>,
        default_kernel: Option<PathBuf>,
        initramfs: Option<PathBuf>,
    ) -> Result<Self> {
        Ok(Self { images: LocalImages::open(blobs, folder)?, default_kernel, initramfs })
    }
}

// Every disk that can be asked for can be made.
const _: () = {
    use flames_image::writable::{LEAST_BYTES, MOST_BYTES};
    use flames_model::ControllerLimits;
    assert!(ControllerLimits::MIN_ROOT_DISK_MIB * 1024 * 1024 >= LEAST_BYTES);
    assert!(ControllerLimits::MAX_ROOT_DISK_MIB * 1024 * 1024 <= MOST_BYTES);
};

/// The artefact that a manifest speaks of: root file systems are stored compressed, kernels as they are (`flames-image`'s ImageStore).
fn artefact(manifest: &ImageManifest) -> Result<Artefact> {
    let (kind, encoding) = match manifest.kind {
        ImageKind::Rootfs => (ArtefactKind::Rootfs, Encoding::Zstd),
        ImageKind::Kernel => (ArtefactKind::Kernel, Encoding::Plain),
    };
    let artefact = Artefact { kind, digest: manifest.digest.parse()?, size: manifest.size_bytes, encoding };
    if artefact.key()?.as_str() == manifest.blob {
        Ok(artefact)
    } else {
        Err(Error::new(ErrorKind::Corrupt, "controller.artefact", "the manifest's blob is not its digest's")
            .with_context("blob", &manifest.blob)
            .with_user_message("The image's record is damaged. Import the image again."))
    }
}

#[async_trait]
impl Artefacts for LocalArtefacts {
    async fn rootfs(&self, image: &ImageManifest) -> Result<PathBuf> {
        self.images.fetch(&artefact(image)?).await
    }

    async fn kernel(&self, kernel: Option<&ImageManifest>) -> Result<PathBuf> {
        let path = match (kernel, &self.default_kernel) {
            (Some(kernel), _) => self.images.fetch(&artefact(kernel)?).await?,
            (None, Some(path)) => path.clone(),
            (None, None) => {
                return Err(Error::new(
                    ErrorKind::NotSupported,
                    "controller.kernel",
                    "no default kernel is configured",
                )
                .with_user_message("The host has no default kernel. Name one in the VM's spec, or configure the host with one."));
            }
        };
        let looked_at = path.clone();
        blocking(move || flames_image::kernel::recognise(&looked_at).map(drop)).await?;
        Ok(path)
    }

    async fn initramfs(&self) -> Result<Option<PathBuf>> {
        let Some(path) = &self.initramfs else { return Ok(None) };
        if tokio::fs::try_exists(path).await.unwrap_or(false) {
            return Ok(Some(path.clone()));
        }
        Err(Error::not_found("controller.initramfs", "file", path.display().to_string())
            .with_user_message("The host's initramfs with the guest agent is missing. See `flames doctor`."))
    }

    async fn default_kernel(&self) -> Result<Option<String>> {
        let Some(path) = self.default_kernel.clone() else { return Ok(None) };
        let reading = move || -> std::io::Result<String> {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(std::fs::File::open(path)?)?;
            Ok(format!("blake3:{}", hasher.finalize().to_hex()))
        };
        let digest = tokio::task::spawn_blocking(reading).await.map_err(|error| {
            Error::internal("controller.kernel", "work on the disk was interrupted").with_source(error)
        })?;
        digest.map(Some).map_err(|error| {
            Error::unavailable("controller.kernel", "the default kernel cannot be read").with_source(error)
        })
    }

    async fn sweep(&self, needed: &[ImageManifest]) -> Result<()> {
        // A manifest that is damaged names nothing that could be here.
        let needed: Vec<_> = needed.iter().filter_map(|manifest| artefact(manifest).ok()).collect();
        let removed = self.images.sweep(&needed, GRACE, KEPT).await?;
        if removed > 0 {
            tracing::info!(removed, "bytes of images that no VM here needs were removed");
        }
        Ok(())
    }

    async fn writable_layer(&self, path: &Path, size_bytes: u64) -> Result<()> {
        let size = size_bytes.next_multiple_of(4096);
        let path = path.to_owned();
        blocking(move || flames_image::writable::ensure(&path, size)).await
    }
}

async fn blocking(work: impl FnOnce() -> flames_image::Result<()> + Send + 'static) -> Result<()> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::internal("controller.artefact", "work on the disk was interrupted").with_source(error)
    })?;
    Ok(done?)
}

#[cfg(test)]
mod tests {
    use flames_blob_memory::MemoryBlobStore;
    use flames_image::ImageStore;
    use flames_model::ImageDefaults;

    use super::*;

    fn kernel_bytes() -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes
    }

    fn manifest(artefact: &Artefact) -> ImageManifest {
        ImageManifest {
            kind: ImageKind::Kernel,
            blob: artefact.key().unwrap().as_str().to_owned(),
            digest: artefact.digest.to_string(),
            size_bytes: artefact.size,
            defaults: ImageDefaults::default(),
        }
    }

    #[tokio::test]
    async fn a_kernel_is_fetched_by_its_manifest_and_a_file_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let blobs: Arc<dyn BlobStore> =
            Arc::new(MemoryBlobStore::new(Arc::new(flames_clock::SystemClock::new())));
        let stored = ImageStore::new(Arc::clone(&blobs));
        let good = stored.put_bytes(ArtefactKind::Kernel, kernel_bytes().into()).await.unwrap();
        let bad = stored.put_bytes(ArtefactKind::Kernel, "#!/bin/sh\n".into()).await.unwrap();
        let local = LocalArtefacts::open(blobs, folder.path(), None, None).unwrap();
        let path = local.kernel(Some(&manifest(&good))).await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), kernel_bytes());
        let error = local.kernel(Some(&manifest(&bad))).await.unwrap_err();
        assert_eq!(error.code(), Some("NOT_A_KERNEL"));
        assert_eq!(local.kernel(None).await.unwrap_err().kind(), ErrorKind::NotSupported);
        let forged = ImageManifest { blob: "images/kernel/other".to_owned(), ..manifest(&good) };
        assert_eq!(local.kernel(Some(&forged)).await.unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[tokio::test]
    async fn a_writable_layer_is_made_once_and_never_touched_again() {
        let folder = tempfile::tempdir().unwrap();
        let blobs: Arc<dyn BlobStore> =
            Arc::new(MemoryBlobStore::new(Arc::new(flames_clock::SystemClock::new())));
        let local = LocalArtefacts::open(blobs, folder.path().join("images"), None, None).unwrap();
        let path = folder.path().join("disk.ext4");
        local.writable_layer(&path, 32 << 20).await.unwrap();
        let made = std::fs::metadata(&path).unwrap().modified().unwrap();
        local.writable_layer(&path, 32 << 20).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), made);
        assert_eq!(local.writable_layer(&path, 64 << 20).await.unwrap_err().kind(), ErrorKind::Conflict);
    }
}
