use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use super::{AgentClient, cut_off, failure, response, within};
use crate::error::{Error, ErrorKind, Result};
use crate::frame::{FrameKind, FrameReader, write_frame};
use crate::limits::{CONTENT_LENGTH, MAX_DIRECTORY_ENTRIES};
use crate::message::{
    DirectoryEntry, DirectoryListed, Done, FileStatus, ListDirectoryRequest, MakeDirectoryRequest, Operation,
    ReadFileRequest, RemoveRequest, RenameRequest, StatRequest, WriteFileRequest,
};
use crate::mux::MuxStream;

// A listing of the most entries with long names; a hostile guest's names are not kept beyond it.
const MAX_LISTING_BYTES: usize = 16 * 1024 * 1024;

/// A file's content on its way from the guest.
#[derive(Debug)]
pub struct FileReader {
    frames: FrameReader<MuxStream>,
    remaining: Option<u64>,
    timeout: Duration,
}

impl FileReader {
    /// The next piece; `None` when all is there.
    ///
    /// Errors: `Unavailable` when the stream was cut off or stands still, `Corrupt` when the guest sends more than
    /// was asked for, and what the guest met while it read.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let reading = within(Some(self.timeout), "read the guest's file", self.frames.next());
        let frame = reading.await?.ok_or_else(cut_off)?;
        match frame.kind {
            FrameKind::Data => {
                if let Some(remaining) = &mut self.remaining {
                    *remaining = remaining.checked_sub(frame.payload.len() as u64).ok_or_else(|| {
                        Error::new(ErrorKind::Corrupt, "the guest sends more of the file than was asked for")
                    })?;
                }
                Ok(Some(frame.payload))
            }
            FrameKind::End => Ok(None),
            _ => Err(failure(&frame)),
        }
    }
}

/// A file's content on its way to the guest. Dropping it before [`FileWriter::finish`] leaves the guest's file as
/// it was.
#[derive(Debug)]
pub struct FileWriter {
    stream: MuxStream,
    timeout: Duration,
}

impl FileWriter {
    /// Sends a piece of any size.
    ///
    /// Errors: `Unavailable` when the stream was cut off or stands still.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(CONTENT_LENGTH) {
            let writing = write_frame(&mut self.stream, FrameKind::Data, piece);
            let written = within(Some(self.timeout), "write the guest's file", writing).await;
            if written.is_err() {
                return self.explain(written).await;
            }
        }
        Ok(())
    }

    // The guest ends the stream when it cannot go on, and has said why.
    async fn explain(&mut self, written: Result<()>) -> Result<()> {
        let short = Some(Duration::from_secs(1));
        match within(short, "read the reason", crate::frame::read_frame(&mut self.stream)).await {
            Ok(Some(frame)) if frame.kind == FrameKind::Failure => Err(failure(&frame)),
            _ => written,
        }
    }

    /// Puts the file in its place.
    ///
    /// Errors: what the guest met, or `OutcomeUnknown` when its answer did not come.
    pub async fn finish(mut self) -> Result<FileStatus> {
        let unknown = |error: Error| match error.kind {
            ErrorKind::Unavailable => Error::new(ErrorKind::OutcomeUnknown, error.message),
            _ => error,
        };
        let mut ended = within(Some(self.timeout), "write the guest's file", async {
            write_frame(&mut self.stream, FrameKind::End, &[]).await?;
            self.stream.flush().await.map_err(|error| Error::from_io("write the guest's file", &error))
        })
        .await;
        if ended.is_err() {
            ended = self.explain(ended).await;
        }
        ended.map_err(unknown)?;
        let reading = crate::frame::read_frame(&mut self.stream);
        let frame = within(Some(self.timeout), "put the guest's file in place", reading)
            .await
            .and_then(|frame| frame.ok_or_else(cut_off))
            .map_err(unknown)?;
        response(&frame)
    }
}

impl AgentClient {
    /// Reads a file, or a part of it.
    ///
    /// Errors: `NotFound`, `PermissionDenied`, `InvalidInput` when it is no regular file.
    pub async fn read_file(&self, request: ReadFileRequest) -> Result<(FileStatus, FileReader)> {
        let remaining = request.length;
        let (status, stream) = self.start(&Operation::ReadFile(request)).await?;
        Ok((status, FileReader { frames: FrameReader::new(stream), remaining, timeout: self.timeout }))
    }

    /// Begins to write a file, which appears whole or not at all.
    ///
    /// Errors: `NotFound` when the directory is not there, `AlreadyExists`, `PermissionDenied`, `InvalidInput`.
    pub async fn write_file(&self, request: WriteFileRequest) -> Result<FileWriter> {
        let (Done {}, stream) = self.start(&Operation::WriteFile(request)).await?;
        Ok(FileWriter { stream, timeout: self.timeout })
    }

    /// Lists a directory by name; the flag says whether more follow, which `after` with the last name gets.
    ///
    /// Errors: `NotFound`, `InvalidInput` when it is no directory, `Corrupt` when the guest sends more than was
    /// asked for.
    pub async fn list_directory(&self, request: ListDirectoryRequest) -> Result<(Vec<DirectoryEntry>, bool)> {
        let limit = request.limit.unwrap_or(MAX_DIRECTORY_ENTRIES).min(MAX_DIRECTORY_ENTRIES) as usize;
        let stream = self.request(&Operation::ListDirectory(request)).await?;
        let mut frames = FrameReader::new(stream);
        let mut entries: Vec<DirectoryEntry> = Vec::new();
        let mut bytes = 0;
        within(Some(self.timeout), "list the guest's directory", async {
            loop {
                let frame = frames.next().await?.ok_or_else(cut_off)?;
                if frame.kind != FrameKind::Entries {
                    return Ok((entries, response::<DirectoryListed>(&frame)?.more));
                }
                bytes += frame.payload.len();
                entries.extend(frame.json::<Vec<DirectoryEntry>>()?);
                if entries.len() > limit || bytes > MAX_LISTING_BYTES {
                    return Err(Error::new(ErrorKind::Corrupt, "the guest lists more than was asked for"));
                }
            }
        })
        .await
    }

    /// What a path is.
    ///
    /// Errors: `NotFound`.
    pub async fn stat(&self, path: &str, follow: bool) -> Result<FileStatus> {
        self.call(&Operation::Stat(StatRequest { path: path.to_owned(), follow })).await
    }

    /// Removes a file, an empty directory, or with `recursive` a whole directory.
    ///
    /// Errors: `NotFound`, `Conflict` when a directory is not empty.
    pub async fn remove(&self, path: &str, recursive: bool) -> Result<()> {
        self.done(&Operation::Remove(RemoveRequest { path: path.to_owned(), recursive })).await
    }

    /// Renames within one file system; a file that stands at `to` is replaced.
    ///
    /// Errors: `NotFound`, `Conflict`.
    pub async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.done(&Operation::Rename(RenameRequest { from: from.to_owned(), to: to.to_owned() })).await
    }

    /// Makes a directory.
    ///
    /// Errors: `NotFound` when the parent is not there, `AlreadyExists` without `parents`.
    pub async fn make_directory(&self, request: MakeDirectoryRequest) -> Result<()> {
        self.done(&Operation::MakeDirectory(request)).await
    }
}
