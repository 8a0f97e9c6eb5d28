//! The files of a simulated guest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use flames_controller::GuestFileWriter;
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::message::{
    DirectoryEntry, FileKind, FileStatus, ReadFileRequest, WriteFileRequest,
};

use crate::{OPERATION, lock};

/// The most bytes that the files of one guest hold together.
const DISK: usize = 16 * 1024 * 1024;

/// Files by their path. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files(Arc<Mutex<BTreeMap<String, Bytes>>>);

fn no_file(path: &str) -> Error {
    Error::not_found(OPERATION, "file", path)
        .with_user_message(format!("There is no file `{path}` in the guest."))
}

fn full() -> Error {
    Error::new(ErrorKind::Exhausted, OPERATION, "the simulated guest's disk is full")
        .with_user_message("The guest's disk is full.")
}

fn status(content: &Bytes) -> FileStatus {
    let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
    FileStatus { kind: FileKind::File, size, mode: 0o644, uid: 0, gid: 0, modified_ms: 0, link_target: None }
}

fn folder_status() -> FileStatus {
    FileStatus { kind: FileKind::Directory, mode: 0o755, ..status(&Bytes::new()) }
}

/// What the paths of a folder's files begin with.
fn beginning(folder: &str) -> String {
    format!("{}/", folder.trim_end_matches('/'))
}

impl Files {
    pub(crate) fn read(&self, request: &ReadFileRequest) -> Result<(FileStatus, Bytes)> {
        let content = lock(&self.0).get(&request.path).cloned().ok_or_else(|| no_file(&request.path))?;
        let from = usize::try_from(request.offset).unwrap_or(usize::MAX).min(content.len());
        let most = request.length.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let part = content.slice(from..from.saturating_add(most).min(content.len()));
        Ok((status(&content), part))
    }

    pub(crate) fn write(&self, request: WriteFileRequest) -> Result<Box<dyn GuestFileWriter>> {
        if !request.overwrite && lock(&self.0).contains_key(&request.path) {
            return Err(Error::new(ErrorKind::AlreadyExists, OPERATION, "the file is there already")
                .with_user_message(format!("There is a file `{}` already.", request.path)));
        }
        Ok(Box::new(Writing { files: self.clone(), path: request.path, content: Vec::new() }))
    }

    /// What lies directly in a folder.
    pub(crate) fn list(&self, folder: &str) -> Vec<DirectoryEntry> {
        let beginning = beginning(folder);
        let files = lock(&self.0);
        let mut entries: BTreeMap<String, FileStatus> = BTreeMap::new();
        for (path, content) in files.iter() {
            let Some(rest) = path.strip_prefix(&beginning) else { continue };
            match rest.split_once('/') {
                None => entries.insert(rest.to_owned(), status(content)),
                Some((name, _)) => entries.insert(name.to_owned(), folder_status()),
            };
        }
        entries.into_iter().map(|(name, status)| DirectoryEntry { name, status }).collect()
    }

    pub(crate) fn stat(&self, path: &str) -> Result<FileStatus> {
        let files = lock(&self.0);
        if let Some(content) = files.get(path) {
            return Ok(status(content));
        }
        let beginning = beginning(path);
        let implied = beginning == "/" || files.keys().any(|other| other.starts_with(&beginning));
        implied.then(folder_status).ok_or_else(|| no_file(path))
    }

    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        lock(&self.0).remove(path).map(drop).ok_or_else(|| no_file(path))
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut files = lock(&self.0);
        let content = files.remove(from).ok_or_else(|| no_file(from))?;
        files.insert(to.to_owned(), content);
        Ok(())
    }
}

#[derive(Debug)]
struct Writing {
    files: Files,
    path: String,
    content: Vec<u8>,
}

#[async_trait]
impl GuestFileWriter for Writing {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.content.len().saturating_add(bytes.len()) > DISK {
            return Err(full());
        }
        self.content.extend_from_slice(bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<FileStatus> {
        let content = Bytes::from(self.content);
        let status = status(&content);
        let mut files = lock(&self.files.0);
        let others = files.iter().filter(|(path, _)| **path != self.path);
        let used: usize = others.map(|(_, content)| content.len()).sum();
        if used.saturating_add(content.len()) > DISK {
            return Err(full());
        }
        files.insert(self.path, content);
        Ok(status)
    }
}
