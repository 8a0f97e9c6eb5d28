//! Images as they are shown.

use std::collections::BTreeMap;

use flames_model::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ImageKind, Problem};

/// What an image says about running it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ImageDefaults {
    /// The program and leading arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the program when there is no entrypoint.
    pub cmd: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The working directory.
    pub working_directory: Option<String>,
    /// The user.
    pub user: Option<String>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Its name.
    #[schema(example = "debian")]
    pub name: String,
    /// What it is for.
    pub kind: ImageKind,
    /// The digest of the image's own bytes (unpacked).
    #[schema(example = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    pub digest: String,
    /// The length of the image's own bytes.
    pub size_bytes: u64,
    /// What it says about running it.
    pub defaults: ImageDefaults,
    /// When it was imported.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl From<&flames_model::Image> for Image {
    fn from(image: &flames_model::Image) -> Self {
        let defaults = &image.manifest.defaults;
        Self {
            name: image.name.to_string(),
            kind: image.manifest.kind.into(),
            digest: image.manifest.digest.clone(),
            size_bytes: image.manifest.size_bytes,
            defaults: ImageDefaults {
                entrypoint: defaults.entrypoint.clone(),
                cmd: defaults.cmd.clone(),
                env: defaults.env.clone(),
                working_directory: defaults.working_directory.clone(),
                user: defaults.user.clone(),
            },
            created_at: image.created_at,
        }
    }
}

/// A page of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// The images, by name.
    pub items: Vec<Image>,
    /// Where the next page begins; null: this was the last.
    pub next_cursor: Option<String>,
}

/// One line of an import's progress: exactly one of the fields is there. The last line holds `image` or `problem`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ImportUpdate {
    /// How far it is, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// What it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}
