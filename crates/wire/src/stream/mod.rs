//! What client and controller say to each other over a stream to a guest. The control plane relays it unread, in bounded pieces.
//!
//! A stream is opened by a [`StreamRequest`]. What follows are [`StreamFrame`]s: one byte that says what it is, then the payload,
//! [`MAX_FRAME`] bytes at most. On a WebSocket each frame is one binary message. Numbers are big-endian.
//!
//! | Byte | Frame | Direction | Payload |
//! |---|---|---|---|
//! | 1 | [`Stdin`](StreamFrame::Stdin) | to the guest | bytes for the process's standard input |
//! | 2 | [`StdinClosed`](StreamFrame::StdinClosed) | to the guest | nothing |
//! | 3 | [`Resize`](StreamFrame::Resize) | to the guest | rows (u16), columns (u16) |
//! | 4 | [`Signal`](StreamFrame::Signal) | to the guest | the signal's number on Linux (u8) |
//! | 16 | [`Started`](StreamFrame::Started) | from the guest | the process's id (UTF-8, at most 64 bytes) |
//! | 17 | [`Stdout`](StreamFrame::Stdout) | from the guest | offset (u64), bytes |
//! | 18 | [`Stderr`](StreamFrame::Stderr) | from the guest | offset (u64), bytes |
//! | 19 | [`Truncated`](StreamFrame::Truncated) | from the guest | offset (u64) before which output is no longer kept |
//! | 20 | [`Exit`](StreamFrame::Exit) | from the guest | JSON of an [`ExitStatus`] |
//! | 21 | [`Error`](StreamFrame::Error) | from the guest | JSON of a [`StreamError`]; the stream ends with it |
//! | 32 | [`Data`](StreamFrame::Data) | both | bytes of a file, a console or a TCP connection |
//! | 33 | [`End`](StreamFrame::End) | both | nothing: no more data in this direction |
//! | 34 | [`Connected`](StreamFrame::Connected) | from the guest | nothing: the connection stands |
//! | 48 | [`FileRequest`](StreamFrame::FileRequest) | to the guest | JSON of a [`FileRequest`] |
//! | 49 | [`FileAnswer`](StreamFrame::FileAnswer) | from the guest | JSON of a [`FileAnswer`] |
//! | 50 | [`ProcessRequest`](StreamFrame::ProcessRequest) | to the guest | JSON of a [`ProcessRequest`] |
//! | 51 | [`ProcessAnswer`](StreamFrame::ProcessAnswer) | from the guest | JSON of a [`ProcessAnswer`] |
//!
//! Offsets count the bytes of standard output and standard error together, in the order in which they were read, from 0 at the
//! process's start: so one number says from where to replay.
//!
//! | Stream | What is said |
//! |---|---|
//! | exec | `Started`; then output, input, `Resize`, `Signal` in any order; `Exit`; `End` |
//! | attach | `Started`; output from the offset asked for; as exec |
//! | logs | `Stdout`, `Stderr`, `Truncated`; `End` when all is told and `follow` is not asked for, or the run is over |
//! | console | `Data`; `End` likewise |
//! | tcp | `Connected`, before which nothing came of what was sent; `Data` both ways; `End` closes one direction |
//! | files, read | `FileRequest`; answer `Info`, then `Data`, `End` |
//! | files, write | `FileRequest`; answer `Ready`; `Data`, `End`; answer `Info`, `End` |
//! | files, list | `FileRequest`; answers `Entries`, one or more; `End` |
//! | files, other | `FileRequest`; one answer (`Info` or `Done`); `End` |
//! | processes | `ProcessRequest`; answer `Processes` (one or more) or `Done`; `End` |
//!
//! Each may end with `Error` instead. A stream that ends with neither `End` nor `Error` was cut off.

mod frame;
mod message;

pub use frame::{MAX_CONTENT, MAX_FRAME, StreamFrame};
pub use message::{FileAnswer, FileRequest, ProcessAnswer, ProcessRequest, StreamError, StreamRequest};

pub use crate::guest::{
    DirectoryEntry, ExecRequest, ExitStatus, FileInfo, FileKind, ProcessInfo, TerminalSize,
};

/// The version of these frames.
pub const VERSION: u32 = 1;
