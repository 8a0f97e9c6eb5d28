//! What goes on inside a guest: processes, files, output.

use std::collections::BTreeMap;

use flames_model::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    #[schema(minimum = 1, maximum = 65535)]
    pub rows: u16,
    /// Characters in a line.
    #[schema(minimum = 1, maximum = 65535)]
    pub columns: u16,
}

/// A process to start in a guest: the first message of an exec stream.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program and its arguments.
    #[schema(min_items = 1, example = json!(["/bin/sh", "-c", "id"]))]
    pub command: Vec<String>,
    /// Environment over the workload's own.
    #[serde(default)]
    #[schema(schema_with = schema::variables, required = false)]
    pub env: BTreeMap<String, String>,
    /// The working directory. Absent: the workload's.
    #[serde(default)]
    pub working_directory: Option<String>,
    /// The user. Absent: the workload's.
    #[serde(default)]
    pub user: Option<String>,
    /// A terminal of this size, in place of three pipes.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// Whether its standard input is open; else it reads nothing. A terminal is always open.
    #[serde(default)]
    pub stdin: bool,
}

impl std::fmt::Debug for ExecRequest {
    /// Without the values of the environment, which may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecRequest")
            .field("command", &self.command)
            .field("env", &self.env.keys())
            .field("working_directory", &self.working_directory)
            .field("user", &self.user)
            .field("terminal", &self.terminal)
            .field("stdin", &self.stdin)
            .finish()
    }
}

/// How a process ended. One of both is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ExitStatus {
    /// The exit code. A program that could not be started has 127 (not found) or 126 (not executable).
    #[serde(default)]
    pub code: Option<i32>,
    /// The number of the signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
}

/// A process in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessInfo {
    /// Its id; `main` is the workload.
    #[schema(example = "main")]
    pub id: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Its number in the guest; null when it never started.
    pub pid: Option<u32>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// When it was started, by the guest's clock.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// The bytes of its output so far.
    pub output_bytes: u64,
    /// The offset of the first byte of output that can still be replayed.
    pub output_from: u64,
    /// How it ended; null while it runs.
    pub exit: Option<ExitStatus>,
}

/// The processes in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessList {
    /// The processes that the guest's agent started.
    pub items: Vec<ProcessInfo>,
}

/// A signal for a process in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalProcess {
    /// The signal's number on Linux.
    #[schema(minimum = 1, maximum = 31, example = 15)]
    pub signal: i32,
    /// Whether the whole process group gets it.
    #[serde(default)]
    #[schema(default = false)]
    pub group: bool,
}

/// What kind of file a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// What a path in a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileInfo {
    /// Its kind.
    pub kind: FileKind,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner's number.
    pub uid: u32,
    /// Its group's number.
    pub gid: u32,
    /// When its content changed last, by the guest's clock.
    #[schema(value_type = String, format = DateTime)]
    pub modified_at: Timestamp,
    /// Where a symbolic link leads.
    pub link_target: Option<String>,
}

/// One name in a directory of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DirectoryEntry {
    /// The name, without the directory.
    pub name: String,
    /// What it is.
    pub info: FileInfo,
}

/// A directory of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DirectoryListing {
    /// The entries, by name.
    pub items: Vec<DirectoryEntry>,
    /// Behind which name the next page begins; null: this was the last.
    pub next_cursor: Option<String>,
}

/// Which stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The machine's serial console.
    Console,
    /// No output: bytes before `offset` are no longer kept.
    Truncated,
}

/// A piece of output, as one line of newline-delimited JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogChunk {
    /// Which stream.
    pub stream: LogStream,
    /// Where it stands in the output of both streams together; null where that is not known.
    pub offset: Option<u64>,
    /// The bytes, as text: what is not UTF-8 is replaced by U+FFFD. Ask for text to get the very bytes.
    pub text: String,
}
