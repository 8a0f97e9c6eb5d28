//! Every bound of the protocol, in one place.

use std::time::Duration;

/// The most bytes of one frame's payload.
pub const MAX_FRAME_LENGTH: usize = 64 * 1024;

/// The most bytes of raw content that one frame carries; what both sides send, below [`MAX_FRAME_LENGTH`] so
/// that an output frame's header fits too.
pub const CONTENT_LENGTH: usize = 16 * 1024;

/// The most streams of one session that are open at a time.
pub const MAX_STREAMS: usize = 64;

/// The receive window of each stream: what yamux starts with, and here also its end.
pub const STREAM_WINDOW: usize = 256 * 1024;

/// The most data frames of one session that the controller holds unread, whatever their size. It bounds the
/// overhead of many tiny frames: the whole session costs at most 16 MiB of content and about 32 MiB of overhead.
pub const MAX_UNREAD_FRAMES: u32 = 512 * 1024;

/// The most bytes of a dead session that either side skips in search of the start of the new one.
pub const MAX_SKIPPED_BYTES: usize = 16 * 1024 * 1024;

/// How often the controller repeats its hello until it is answered.
pub const HELLO_INTERVAL: Duration = Duration::from_millis(250);

/// How long the agent waits for the controller's proof, once it has answered a hello.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(10);

/// The default time that one operation may take until its first answer, and between frames of a transfer.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// The most bytes of an encoded [`GuestConfig`](crate::GuestConfig).
pub const MAX_CONFIG_LENGTH: usize = 1024 * 1024;

/// The most characters of an error text that are kept of what a peer sent.
pub const MAX_ERROR_TEXT: usize = 1024;

/// The most bytes of a path in a file operation (Linux: `PATH_MAX`).
pub const MAX_PATH_LENGTH: usize = 4096;

/// The most entries of one answer to a directory listing.
pub const MAX_DIRECTORY_ENTRIES: u32 = 10_000;

/// The most processes that the agent knows at a time, running or with an exit that is not acknowledged.
pub const MAX_PROCESSES: usize = 128;

/// The most bytes of a process id.
pub const MAX_PROCESS_ID_LENGTH: usize = 64;
