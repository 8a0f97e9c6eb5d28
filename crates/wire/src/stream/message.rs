//! The JSON that some frames carry, and what opens a stream.

use flames_error::{Error, ErrorKind};
use flames_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::codes;
use crate::guest::{DirectoryEntry, ExecRequest, FileInfo, ProcessInfo, SignalProcess};

/// What a stream is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stream", content = "request", rename_all = "snake_case")]
pub enum StreamRequest {
    /// Start a process and attach to it.
    Exec(ExecRequest),
    /// Attach to a process that is there, replaying its output from an offset.
    Attach {
        /// Which process; `main` is the workload.
        process: String,
        /// From which offset of its output on.
        from: u64,
    },
    /// One operation on files.
    Files,
    /// The workload's output.
    Logs {
        /// Go on as it grows.
        follow: bool,
        /// Only output at or behind this time.
        since: Option<Timestamp>,
        /// Only this many lines at the end.
        tail: Option<u64>,
    },
    /// The machine's serial console.
    Console {
        /// Go on as it grows.
        follow: bool,
    },
    /// A TCP connection to a port inside the guest.
    Tcp {
        /// The port.
        port: u16,
    },
    /// One operation on processes.
    Processes,
}

/// One operation on files in a guest. Every path is absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", content = "arguments", rename_all = "snake_case")]
pub enum FileRequest {
    /// Reads a file.
    Read {
        /// The file.
        path: String,
    },
    /// Writes a file: its content stands under another name until it is whole.
    Write {
        /// The file.
        path: String,
        /// Permission bits; none: those of the file that is replaced, else `0644`.
        mode: Option<u32>,
        /// Whether a file that is there is replaced.
        overwrite: bool,
    },
    /// Lists a directory, by name.
    List {
        /// The directory.
        path: String,
        /// Only names behind this one.
        after: Option<String>,
        /// The most entries.
        limit: Option<u32>,
    },
    /// What a path is.
    Stat {
        /// The path.
        path: String,
        /// Whether a symbolic link is followed.
        follow: bool,
    },
    /// Removes a file, or a directory.
    Remove {
        /// The path.
        path: String,
        /// Whether a directory goes with what is in it.
        recursive: bool,
    },
    /// Renames within one file system.
    Rename {
        /// The present path.
        from: String,
        /// The new path.
        to: String,
    },
    /// Makes a directory.
    MakeDirectory {
        /// The path.
        path: String,
        /// Whether missing parents are made too, and an existing directory is no error.
        parents: bool,
        /// Permission bits; none: `0755`.
        mode: Option<u32>,
    },
}

/// An answer to a [`FileRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", content = "content", rename_all = "snake_case")]
pub enum FileAnswer {
    /// The data to write may come.
    Ready,
    /// What the path is.
    Info(FileInfo),
    /// Some entries of a directory.
    Entries {
        /// The entries.
        entries: Vec<DirectoryEntry>,
        /// Whether names follow the last entry of the whole answer that were not asked for.
        more: bool,
    },
    /// It is done.
    Done,
}

/// One operation on processes in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", content = "arguments", rename_all = "snake_case")]
pub enum ProcessRequest {
    /// Every process that the agent knows.
    List,
    /// Sends a signal.
    Signal {
        /// The process.
        process: String,
        /// What to send.
        signal: SignalProcess,
    },
}

/// An answer to a [`ProcessRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", content = "content", rename_all = "snake_case")]
pub enum ProcessAnswer {
    /// Some processes.
    Processes(Vec<ProcessInfo>),
    /// It is done.
    Done,
}

/// Why a stream ended before its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamError {
    /// The class of the error, as in [`Problem`](crate::Problem).
    pub kind: String,
    /// The stable code.
    pub code: String,
    /// What happened: for a person. Part of it may come from a guest.
    pub message: String,
    /// The input field that is wrong, when one is.
    #[serde(default)]
    pub field: Option<String>,
}

impl StreamError {
    /// The longest message, in characters.
    pub const MAX_MESSAGE: usize = 1_024;

    /// What the other side may be told of an error.
    pub fn of(error: &Error) -> Self {
        let problem = crate::Problem::of(error);
        Self { kind: problem.kind, code: problem.code, message: problem.detail, field: problem.field }
    }

    /// The error that the other side spoke of. Its text is cut and cleaned, since a guest may have written it.
    pub fn into_error(self, operation: &'static str) -> Error {
        let clean = |text: &str| -> String {
            let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
            visible.take(Self::MAX_MESSAGE).collect()
        };
        let message = clean(&self.message);
        let kind = ErrorKind::from_name(&self.kind).unwrap_or(ErrorKind::Internal);
        let mut error = Error::new(kind, operation, message.clone()).with_user_message(message);
        if let Some(code) = codes::known(&self.code) {
            error = error.with_code(code);
        }
        if let Some(field) = self.field {
            error = error.with_field(clean(&field));
        }
        error
    }
}
