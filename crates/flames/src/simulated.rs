//! What simulated machines are made from: nothing.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use flames_controller::Artefacts;
use flames_error::Result;
use flames_model::ImageManifest;

/// Names files that nobody reads.
#[derive(Debug)]
pub(crate) struct NoArtefacts;

#[async_trait]
impl Artefacts for NoArtefacts {
    async fn rootfs(&self, image: &ImageManifest) -> Result<PathBuf> {
        Ok(PathBuf::from("/simulated").join(&image.digest))
    }

    async fn kernel(&self, _kernel: Option<&ImageManifest>) -> Result<PathBuf> {
        Ok(PathBuf::from("/simulated/kernel"))
    }

    async fn default_kernel(&self) -> Result<Option<String>> {
        Ok(Some("simulated".to_owned()))
    }

    async fn initramfs(&self) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    async fn writable_layer(&self, _path: &Path, _size_bytes: u64) -> Result<()> {
        Ok(())
    }

    async fn sweep(&self, _needed: &[ImageManifest]) -> Result<()> {
        Ok(())
    }
}
