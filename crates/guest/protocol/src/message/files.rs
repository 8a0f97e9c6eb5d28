use serde::{Deserialize, Serialize};

/// A part of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReadFileRequest {
    /// An absolute path.
    pub path: String,
    /// The first byte.
    #[serde(default)]
    pub offset: u64,
    /// How many bytes; `None`: up to the end.
    #[serde(default)]
    pub length: Option<u64>,
}

/// A file to write. Its content stands under a temporary name beside it until it is whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WriteFileRequest {
    /// An absolute path.
    pub path: String,
    /// Permission bits; `None`: those of the file that is replaced, else 0644.
    #[serde(default)]
    pub mode: Option<u32>,
    /// User and group number; `None`: those of the file that is replaced, else the agent's.
    #[serde(default)]
    pub owner: Option<(u32, u32)>,
    /// Whether an existing file is replaced; else it is `already_exists`.
    #[serde(default)]
    pub overwrite: bool,
}

/// A directory to list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListDirectoryRequest {
    /// An absolute path.
    pub path: String,
    /// Only names after this one.
    #[serde(default)]
    pub after: Option<String>,
    /// How many entries at most; more than the protocol's bound is that bound.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// The end of a listing.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct DirectoryListed {
    /// Whether more entries follow the last one.
    pub more: bool,
}

/// A path to look at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatRequest {
    /// An absolute path.
    pub path: String,
    /// Whether a symbolic link is followed.
    #[serde(default)]
    pub follow: bool,
}

/// A path to remove.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemoveRequest {
    /// An absolute path.
    pub path: String,
    /// Whether a directory goes with what is in it.
    #[serde(default)]
    pub recursive: bool,
}

/// A path to rename.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenameRequest {
    /// The present name, absolute.
    pub from: String,
    /// The new name, absolute; a file that stands there is replaced.
    pub to: String,
}

/// A directory to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MakeDirectoryRequest {
    /// An absolute path.
    pub path: String,
    /// Whether missing parents are made too, and an existing directory is no error.
    #[serde(default)]
    pub parents: bool,
    /// Permission bits; `None`: 0755.
    #[serde(default)]
    pub mode: Option<u32>,
}

/// What kind of file a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe, or a kind that this version does not know.
    #[serde(other)]
    Other,
}

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    /// Its kind.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size: u64,
    /// Its permission bits, with set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// Its owner's number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
    /// When its content last changed, in milliseconds since 1970.
    pub modified_ms: u64,
    /// Where a symbolic link leads.
    #[serde(default)]
    pub link_target: Option<String>,
}

/// One name in a directory. A name that is not UTF-8 has replacement characters and cannot be opened by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// The name, without the directory.
    pub name: String,
    /// What it is.
    pub status: FileStatus,
}
