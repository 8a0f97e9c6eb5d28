//! A conversion in a process of its own, bounded in memory, time, CPU and disk: images come from strangers.
//!
//! The parent ([`Converter`]) starts this program again with the hidden command [`CONVERT_COMMAND`], writes one line of JSON (the request) to its standard
//! input and keeps that open; the child ([`child_main`]) bounds itself before it opens anything, answers in lines of JSON on its standard output, and ends
//! itself when its standard input ends, so that it never outlives its parent, however that died.

mod child;
mod parent;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::rootfs::{ConversionRequest, ConversionResult, Progress};

pub use child::child_main;
pub use parent::{Conversion, Converter};

/// The hidden command of the binary that runs [`child_main`].
pub const CONVERT_COMMAND: &str = "__convert-image";
/// The longest line in either direction, in bytes (a configuration of 4 MiB, escaped).
const LONGEST_LINE: usize = 16 << 20;

/// What one conversion may take of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// Address space, in bytes (RLIMIT_AS).
    pub memory_bytes: u64,
    /// CPU time, in seconds (RLIMIT_CPU).
    pub cpu_seconds: u64,
    /// The largest file, in bytes (RLIMIT_FSIZE): of the contents, and of the file system.
    pub file_bytes: u64,
    /// Open files (RLIMIT_NOFILE).
    pub open_files: u64,
    /// Time by the clock, in seconds, after which the child is killed.
    pub seconds: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { memory_bytes: 2 << 30, cpu_seconds: 600, file_bytes: 32 << 30, open_files: 64, seconds: 1200 }
    }
}

/// The parent's one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Assignment {
    request: ConversionRequest,
    bounds: Bounds,
    staging: PathBuf,
}

/// The child's lines.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event", deny_unknown_fields)]
enum Line {
    Progress { progress: Progress },
    Done { result: Box<ConversionResult> },
    Failed { error: ImageError },
}
