//! How an archive becomes an image: kept in a bounded file, converted in a bounded process, stored under its digest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use flames_blob::{BlobStore, ByteStream};
use flames_error::{Error, ErrorKind, Result};
use flames_image::{
    Artefact, ArtefactKind, Bounds, ConversionRequest, Converter, DeviceNodes, ImageConfig, ImageStore,
};
use flames_model::{ImageDefaults, ImageKind, ImageManifest};
use flames_service::{ImageImporter, ImportProgress, Imported, NewImage, codes};
use futures::StreamExt;
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use crate::exit::Failure;

const OPERATION: &str = "image.import";
/// The longest archive that is taken in, in bytes: as long as what the conversion unpacks at most.
const LONGEST_ARCHIVE: u64 = 16 << 30;
/// Conversions at the same time: each may take a processor and 2 GiB of memory.
const CONVERSIONS: usize = 2;

/// Imports by `flames-image`.
#[derive(Debug)]
pub(super) struct Importer {
    converter: Converter,
    store: ImageStore,
    uploads: PathBuf,
    turns: Semaphore,
}

impl Importer {
    /// Imports into `blobs`, with uploads and conversions below `staging`, which is emptied.
    pub(super) fn new(staging: &Path, blobs: Arc<dyn BlobStore>) -> std::result::Result<Self, Failure> {
        let cannot = |error: std::io::Error| Failure::io("The folder for imports cannot be used", &error);
        let uploads = staging.join("uploads");
        match std::fs::remove_dir_all(&uploads) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(cannot(error)),
            _ => {}
        }
        std::fs::create_dir_all(&uploads).map_err(cannot)?;
        let converter = Converter::new(staging.join("conversions"), Bounds::default())
            .map_err(|error| Failure::failed(format!("Images cannot be converted here: {error}")))?;
        Ok(Self { converter, store: ImageStore::new(blobs), uploads, turns: Semaphore::new(CONVERSIONS) })
    }

    /// Everything that comes, in a file that goes with what this answers.
    async fn receive(&self, mut archive: ByteStream, progress: &ImportProgress) -> Result<NamedTempFile> {
        let file = NamedTempFile::new_in(&self.uploads).map_err(disk)?;
        let mut writer =
            tokio::io::BufWriter::new(tokio::fs::File::from_std(file.as_file().try_clone().map_err(disk)?));
        let (mut received, mut told) = (0_u64, 0);
        while let Some(piece) = archive.next().await {
            let piece = piece?;
            received = received.saturating_add(piece.len() as u64);
            if received > LONGEST_ARCHIVE {
                return Err(Error::new(ErrorKind::InvalidInput, OPERATION, "the archive is too long")
                    .with_code(codes::IMAGE_REFUSED)
                    .with_user_message(format!("An archive is at most {} GiB.", LONGEST_ARCHIVE >> 30)));
            }
            writer.write_all(&piece).await.map_err(disk)?;
            const STEP: u64 = 16 << 20;
            if received / STEP > told {
                told = received / STEP;
                tell(progress, format!("received {} MiB", received >> 20));
            }
        }
        writer.flush().await.map_err(disk)?;
        if received == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, OPERATION, "nothing came")
                .with_user_message("The archive is empty."));
        }
        Ok(file)
    }

    async fn rootfs(
        &self,
        archive: &Path,
        device_nodes: DeviceNodes,
        progress: &ImportProgress,
    ) -> Result<ImageManifest> {
        if self.turns.available_permits() == 0 {
            tell(progress, "waiting for another conversion".to_owned());
        }
        let _turn = self
            .turns
            .acquire()
            .await
            .map_err(|error| Error::internal(OPERATION, "no turn for a conversion").with_source(error))?;
        let mut phase = String::new();
        let mut told = |step: flames_image::Progress| {
            if phase != step.phase {
                phase.clone_from(&step.phase);
                tell(progress, step.phase);
            }
        };
        let request = ConversionRequest { device_nodes, ..ConversionRequest::new(archive) };
        let conversion = self.converter.convert(&request, &mut told).await?;
        tell(progress, "storing".to_owned());
        let (_, manifest) = self.store.put_conversion(&conversion, &conversion.result.source_kind).await?;
        let defaults = defaults(manifest.config);
        self::manifest(ImageKind::Rootfs, &manifest.rootfs, defaults)
    }

    async fn kernel(&self, file: &Path, progress: &ImportProgress) -> Result<ImageManifest> {
        tell(progress, "storing".to_owned());
        let artefact = self.store.put_file(ArtefactKind::Kernel, file).await?;
        manifest(ImageKind::Kernel, &artefact, ImageDefaults::default())
    }
}

#[async_trait]
impl ImageImporter for Importer {
    async fn import(&self, new: NewImage, archive: ByteStream, progress: ImportProgress) -> Result<Imported> {
        let file = self.receive(archive, &progress).await?;
        let device_nodes = match new.device_nodes {
            flames_service::DeviceNodes::Refuse => DeviceNodes::Refuse,
            flames_service::DeviceNodes::Skip => DeviceNodes::Skip,
            flames_service::DeviceNodes::Keep => DeviceNodes::Keep,
        };
        let made = match new.kind {
            ImageKind::Rootfs => self.rootfs(file.path(), device_nodes, &progress).await,
            ImageKind::Kernel => self.kernel(file.path(), &progress).await,
        };
        let manifest = made.map_err(|error| for_the_sender(error, file.path()))?;
        Ok(Imported { manifest })
    }
}

fn manifest(kind: ImageKind, artefact: &Artefact, defaults: ImageDefaults) -> Result<ImageManifest> {
    Ok(ImageManifest {
        kind,
        blob: artefact.key()?.as_str().to_owned(),
        digest: artefact.digest.to_string(),
        size_bytes: artefact.size,
        defaults,
    })
}

fn defaults(config: ImageConfig) -> ImageDefaults {
    ImageDefaults {
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env.iter().filter_map(|pair| pair.split_once('=')).map(owned).collect(),
        working_directory: config.working_dir,
        user: config.user,
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Words that nobody waits for are dropped: the import must not wait for whoever watches it.
fn tell(progress: &ImportProgress, words: String) {
    let _ = progress.try_send(words);
}

/// An error in the API's own codes, without the name that the upload has on this host.
fn for_the_sender(error: Error, file: &Path) -> Error {
    if error.code() == Some("IMAGE_NO_SPACE") {
        return error.with_user_message(
            "The server's disk is full: it has not the room to make this image. Free some, and import it again.",
        );
    }
    let told = error.user_message().map(|message| message.replace(&format!("{}: ", file.display()), ""));
    let error = match error.kind() {
        _ if error.code().is_some_and(|code| flames_wire::codes::known(code).is_some()) => error,
        ErrorKind::InvalidInput => error.with_code(codes::IMAGE_REFUSED),
        ErrorKind::Exhausted => error.with_code(codes::EXHAUSTED),
        _ => error,
    };
    match told {
        Some(told) => error.with_user_message(told),
        None => error,
    }
}

fn disk(error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::Unavailable,
    };
    let message = match kind {
        ErrorKind::Exhausted => "The server's disk is full.",
        _ => "The server cannot keep the upload.",
    };
    Error::new(kind, OPERATION, "the upload cannot be kept").with_user_message(message).with_source(error)
}
