//! Images.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ImageName, ProjectName};

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// A root file system.
    Rootfs,
    /// A kernel.
    Kernel,
}

/// What an image says about running it (OCI image configuration, `config` object).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageDefaults {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`.
    pub env: BTreeMap<String, String>,
    /// `WorkingDir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// `User`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// What an image consists of: enough for a controller to make it local.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageManifest {
    /// What it is for.
    pub kind: ImageKind,
    /// The blob's key in the BlobStore.
    pub blob: String,
    /// The digest of the image's own bytes (unpacked), `sha256:…`.
    pub digest: String,
    /// The length of the image's own bytes.
    pub size_bytes: u64,
    /// What it says about running it.
    pub defaults: ImageDefaults,
}

/// A name for an image, within a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Whose.
    pub project: ProjectName,
    /// The name.
    pub name: ImageName,
    /// What it names.
    pub manifest: ImageManifest,
    /// Whether it is being removed: no VM may begin to use it.
    pub removing: bool,
    /// When it was imported.
    pub created_at: Timestamp,
}
