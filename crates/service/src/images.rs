//! Images: importing, listing, removing.

use std::fmt::Debug;

use async_trait::async_trait;
use flames_blob::{BlobKey, ByteStream};
use flames_clock::Timestamp;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{EventKind, Image, ImageKind, ImageManifest, ImageName};
use flames_records::{Change, ListPage, Outcome, Versioned};
use tokio::sync::mpsc;

use crate::mutation::{ATTEMPTS, wrong_outcome};
use crate::{Caller, Mutation, Service, codes};

/// How far an import is, as a sentence for users.
pub type ImportProgress = mpsc::Sender<String>;

/// What becomes of device nodes in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceNodes {
    /// The archive is refused: a guest's `/dev` is made by its kernel, so that honest images need none.
    #[default]
    Refuse,
    /// They are left out.
    Skip,
    /// They are made.
    Keep,
}

/// What an archive is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewImage {
    /// What it is for.
    pub kind: ImageKind,
    /// What becomes of device nodes in it.
    pub device_nodes: DeviceNodes,
}

/// What an import made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// What the image consists of; its blob is stored.
    pub manifest: ImageManifest,
}

/// How an archive becomes an image: an interface of this crate, implemented over `flames-image` by the binary.
#[async_trait]
pub trait ImageImporter: Debug + Send + Sync + 'static {
    /// Makes an image of an archive (or a kernel of its file) and stores its blob. A failed import leaves nothing.
    ///
    /// Errors: `InvalidInput` with a user message when the archive is refused; `Exhausted`; `Unavailable`.
    async fn import(&self, new: NewImage, archive: ByteStream, progress: ImportProgress) -> Result<Imported>;
}

impl Service {
    /// Imports an archive as the image `name`, replacing what had that name: VMs that use the old one keep it.
    ///
    /// Errors: `InvalidInput` ([`codes::IMAGE_REFUSED`]); `Exhausted`; `Unavailable`; `OutcomeUnknown`.
    pub async fn import_image(
        &self,
        caller: &Caller,
        name: &ImageName,
        new: NewImage,
        archive: ByteStream,
        progress: ImportProgress,
        mutation: &Mutation,
    ) -> Result<Image> {
        if let Some(image) = self.replayed_image(caller, mutation).await? {
            return Ok(image);
        }
        let imported =
            self.parts.importer.import(new, archive, progress).await.map_err(|error| match error.kind() {
                ErrorKind::InvalidInput if error.code().is_none() => error.with_code(codes::IMAGE_REFUSED),
                _ => error,
            })?;
        match self.name_image(caller, name, imported.manifest, mutation).await {
            // Found by the import, and swept before it had a name: the next import stores it anew.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(swept_meanwhile("service.import_image").with_source(error))
            }
            named => named,
        }
    }

    /// Gives a stored manifest a name. Its blob must be stored already.
    ///
    /// Errors: `NotFound` when the blob is not there; `Unavailable`, also while the blob is being swept; `OutcomeUnknown`.
    pub async fn name_image(
        &self,
        caller: &Caller,
        name: &ImageName,
        manifest: ImageManifest,
        mutation: &Mutation,
    ) -> Result<Image> {
        let blob = BlobKey::new(manifest.blob.clone())?;
        for _ in 0..ATTEMPTS {
            // In this order: a blob that is condemned after it was seen makes the commit fail.
            let condemnations = self.records().condemnations().await?;
            self.blobs().head(&blob).await?;
            let old = self.records().image(&caller.project, name).await?;
            let now: Timestamp = self.clock().now();
            let image = Image {
                project: caller.project.clone(),
                name: name.clone(),
                manifest: manifest.clone(),
                removing: false,
                created_at: now,
            };
            let mut change = Change::new();
            change.keep_blob(blob.as_str(), condemnations);
            match &old {
                Some(old) => change.update_image(old, &image),
                None => change.insert_image(&image),
            };
            let event = caller.event(now, EventKind::ImageImported { image: name.clone() });
            change.event(Some(&caller.project), &event);
            self.record_request(caller, mutation, &mut change, Outcome::Image(name.clone()));
            match self.records().apply_knowing(change).await {
                Ok(()) => return Ok(image),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    if let Some(image) = self.replayed_image(caller, mutation).await? {
                        return Ok(image);
                    }
                    if self.records().condemned(blob.as_str()).await?.is_some() {
                        return Err(
                            swept_meanwhile("service.name_image").with_resource("blob", blob.as_str())
                        );
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(codes::contended("service.import_image"))
    }

    async fn replayed_image(&self, caller: &Caller, mutation: &Mutation) -> Result<Option<Image>> {
        match self.replay(caller, mutation).await? {
            Some(Outcome::Image(name)) => self.get_image(caller, &name).await.map(Some),
            Some(_) => Err(wrong_outcome()),
            None => Ok(None),
        }
    }

    /// An image. Errors: `NotFound` ([`codes::IMAGE_NOT_FOUND`]).
    pub async fn get_image(&self, caller: &Caller, name: &ImageName) -> Result<Image> {
        let image = self.records().image(&caller.project, name).await?;
        image.map(Versioned::into_record).ok_or_else(|| codes::image_not_found(name))
    }

    /// A page of images, by name.
    pub async fn list_images(
        &self,
        caller: &Caller,
        after: Option<&ImageName>,
        limit: usize,
    ) -> Result<ListPage<Image, ImageName>> {
        let page = self.records().images(&caller.project, after, limit).await?;
        Ok(ListPage { items: page.items.into_iter().map(Versioned::into_record).collect(), next: page.next })
    }

    /// Removes an image that no VM uses. Its blob stays until no image names it.
    ///
    /// Errors: `NotFound` ([`codes::IMAGE_NOT_FOUND`]); `Conflict` ([`codes::IMAGE_IN_USE`]); `Unavailable`; `OutcomeUnknown`.
    pub async fn remove_image(&self, caller: &Caller, name: &ImageName, mutation: &Mutation) -> Result<()> {
        match self.replay(caller, mutation).await? {
            Some(Outcome::ImageRemoved(_)) => return Ok(()),
            Some(_) => return Err(wrong_outcome()),
            None => {}
        }
        for _ in 0..ATTEMPTS {
            let Some(image) = self.records().image(&caller.project, name).await? else {
                return Err(codes::image_not_found(name));
            };
            // Marked first, so that no VM begins to use it between the look and the removal.
            let marked = match self.mark_removing(&image, true).await {
                Ok(marked) => marked,
                Err(error) if error.kind() == ErrorKind::Conflict => continue,
                Err(error) => return Err(error),
            };
            if let Some(user) = self.records().image_user(&caller.project, name).await? {
                // A conflict here means that another removal is at work; it unmarks or removes by itself.
                match self.mark_removing(&marked, false).await {
                    Err(error) if error.kind() != ErrorKind::Conflict => return Err(error),
                    _ => return Err(image_in_use(name, &user.to_string())),
                }
            }
            let event = caller.event(self.clock().now(), EventKind::ImageRemoved { image: name.clone() });
            let mut change = Change::new();
            change.remove_image(&marked).event(Some(&caller.project), &event);
            self.record_request(caller, mutation, &mut change, Outcome::ImageRemoved(name.clone()));
            match self.records().apply_knowing(change).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                other => return other,
            }
        }
        Err(codes::contended("service.remove_image"))
    }

    async fn mark_removing(&self, image: &Versioned<Image>, removing: bool) -> Result<Versioned<Image>> {
        let mut change = Change::new();
        change.update_image(image, &Image { removing, ..Image::clone(image) });
        self.records().apply(change).await?;
        let read = self.records().image(&image.project, &image.name).await?;
        // Read again: to be removed it must be as it was marked, whoever marked it.
        read.filter(|read| read.removing == removing).ok_or_else(|| {
            Error::new(ErrorKind::Conflict, "service.remove_image", "the image changed meanwhile")
        })
    }
}

fn swept_meanwhile(operation: &'static str) -> Error {
    Error::unavailable(operation, "the blob is being swept").with_user_message(
        "The same image was removed before, and its data is just being deleted. Try again in a moment.",
    )
}

fn image_in_use(name: &ImageName, user: &str) -> Error {
    Error::new(ErrorKind::Conflict, "service.remove_image", "a VM uses the image")
        .with_resource("image", name.as_str())
        .with_context("vm", user)
        .with_code(codes::IMAGE_IN_USE)
        .with_user_message(format!("The image `{name}` is used by {user}. Delete the VMs that use it first."))
}
