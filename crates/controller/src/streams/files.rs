//! Files in a guest.

use flames_client::wire::stream::{
    DirectoryEntry, FileAnswer, FileInfo, FileKind, FileRequest, MAX_CONTENT, StreamFrame,
};
use flames_error::{Error, ErrorKind};
use flames_guest_protocol::message::{
    DirectoryEntry as AgentEntry, FileKind as AgentKind, FileStatus, ListDirectoryRequest,
    MakeDirectoryRequest, ReadFileRequest, WriteFileRequest,
};
use futures::StreamExt;

use super::process::guest_time;
use super::{AcceptedStream, Broken, FromClient, ToClient, unexpected};
use crate::guest::Guest;

/// The most entries of one frame. A name has at most 255 bytes (Linux: `NAME_MAX`) and a link 4,096, each doubled or more as JSON.
const ENTRIES_PER_FRAME: usize = 8;
/// The most entries asked of an agent at once.
const ENTRIES_PER_REQUEST: u32 = 1_000;

type Served = Result<(), Broken>;

/// Gives an error about a file the code of one.
fn of_file(error: Error) -> Error {
    let is_files = matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::Conflict
            | ErrorKind::InvalidInput
            | ErrorKind::PermissionDenied
    );
    if is_files && error.code().is_none() { error.with_code("GUEST_FILE") } else { error }
}

fn info(status: FileStatus) -> FileInfo {
    FileInfo {
        kind: match status.kind {
            AgentKind::File => FileKind::File,
            AgentKind::Directory => FileKind::Directory,
            AgentKind::Symlink => FileKind::Symlink,
            AgentKind::Other => FileKind::Other,
        },
        size_bytes: status.size,
        mode: status.mode,
        uid: status.uid,
        gid: status.gid,
        modified_at: guest_time(status.modified_ms),
        link_target: status.link_target,
    }
}

fn answer(answer: FileAnswer) -> StreamFrame {
    StreamFrame::FileAnswer(answer)
}

impl AcceptedStream {
    pub(super) async fn files(&self, to: &ToClient, from: &mut FromClient) -> Served {
        let StreamFrame::FileRequest(request) = self.first(from).await? else {
            return Err(unexpected().into());
        };
        let guest = self.guest().await?;
        let guest = guest.as_ref();
        match request {
            FileRequest::Read { path } => super::until_gone(self.read_file(guest, path, to), from).await?,
            FileRequest::Write { path, mode, overwrite } => {
                let request = WriteFileRequest { path, mode, owner: None, overwrite };
                self.write_file(guest, request, to, from).await?;
            }
            FileRequest::List { path, after, limit } => {
                let listing = self.list_directory(guest, &path, after, limit, to);
                super::until_gone(listing, from).await?;
            }
            FileRequest::Stat { path, follow } => {
                let status = self.ask(guest.stat(&path, follow)).await.map_err(of_file)?;
                to.send(answer(FileAnswer::Info(info(status)))).await?;
            }
            FileRequest::Remove { path, recursive } => {
                self.ask(guest.remove(&path, recursive)).await.map_err(of_file)?;
                to.send(answer(FileAnswer::Done)).await?;
            }
            FileRequest::Rename { from, to: target } => {
                self.ask(guest.rename(&from, &target)).await.map_err(of_file)?;
                to.send(answer(FileAnswer::Done)).await?;
            }
            FileRequest::MakeDirectory { path, parents, mode } => {
                let request = MakeDirectoryRequest { path, parents, mode };
                self.ask(guest.make_directory(request)).await.map_err(of_file)?;
                to.send(answer(FileAnswer::Done)).await?;
            }
        }
        to.send(StreamFrame::End).await
    }

    async fn read_file(&self, guest: &dyn Guest, path: String, to: &ToClient) -> Served {
        let request = ReadFileRequest { path, offset: 0, length: None };
        let (status, mut pieces) = self.ask(guest.read_file(request)).await.map_err(of_file)?;
        to.send(answer(FileAnswer::Info(info(status)))).await?;
        let next = async |pieces: &mut futures::stream::BoxStream<'static, _>| Ok(pieces.next().await);
        while let Some(piece) = self.ask(next(&mut pieces)).await? {
            let mut piece: bytes::Bytes = piece.map_err(of_file)?;
            while !piece.is_empty() {
                to.send(StreamFrame::Data(piece.split_to(piece.len().min(MAX_CONTENT)))).await?;
            }
        }
        Ok(())
    }

    async fn write_file(
        &self,
        guest: &dyn Guest,
        request: WriteFileRequest,
        to: &ToClient,
        from: &mut FromClient,
    ) -> Served {
        let mut writer = self.ask(guest.write_file(request)).await.map_err(of_file)?;
        to.send(answer(FileAnswer::Ready)).await?;
        loop {
            match self.first(from).await? {
                StreamFrame::Data(data) => self.ask(writer.write(&data)).await.map_err(of_file)?,
                StreamFrame::End => break,
                _ => return Err(unexpected().into()),
            }
        }
        let status = self.ask(writer.finish()).await.map_err(of_file)?;
        to.send(answer(FileAnswer::Info(info(status)))).await
    }

    async fn list_directory(
        &self,
        guest: &dyn Guest,
        path: &str,
        mut after: Option<String>,
        limit: Option<u32>,
        to: &ToClient,
    ) -> Served {
        let mut left = limit.unwrap_or(u32::MAX);
        loop {
            let most = left.min(ENTRIES_PER_REQUEST);
            let request =
                ListDirectoryRequest { path: path.to_owned(), after: after.clone(), limit: Some(most) };
            let (entries, more) = self.ask(guest.list_directory(request)).await.map_err(of_file)?;
            left = left.saturating_sub(u32::try_from(entries.len()).unwrap_or(u32::MAX));
            let last = entries.last().map(|entry| entry.name.clone());
            let goes_on = more && left > 0 && last.is_some() && last > after;
            let mut frames = entries.chunks(ENTRIES_PER_FRAME).peekable();
            if frames.peek().is_none() {
                to.send(answer(FileAnswer::Entries { entries: Vec::new(), more: false })).await?;
            }
            while let Some(some) = frames.next() {
                let more = more && !goes_on && frames.peek().is_none();
                let entries = some.iter().cloned().map(entry).collect();
                to.send(answer(FileAnswer::Entries { entries, more })).await?;
            }
            if !goes_on {
                return Ok(());
            }
            after = last;
        }
    }
}

fn entry(entry: AgentEntry) -> DirectoryEntry {
    DirectoryEntry { name: entry.name, info: info(entry.status) }
}
