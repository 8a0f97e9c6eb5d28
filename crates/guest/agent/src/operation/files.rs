use std::fs::Metadata;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use flames_guest_protocol::frame::{FrameKind, write_frame};
use flames_guest_protocol::limits::{
    CONTENT_LENGTH, MAX_DIRECTORY_ENTRIES, MAX_FRAME_LENGTH, MAX_PATH_LENGTH,
};
use flames_guest_protocol::message::{
    DirectoryEntry, DirectoryListed, FileKind, FileStatus, ListDirectoryRequest, MakeDirectoryRequest,
    ReadFileRequest, RemoveRequest, RenameRequest,
};
use flames_guest_protocol::{Error, ErrorKind, MuxStream, Result};
use rustix::fs::OFlags;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::respond;

// A directory with more names is listed in their order only up to here.
const MAX_NAMES: usize = 1_000_000;
// Read from the disk at once; sent in frames of the protocol's size.
const READ_BYTES: usize = 8 * CONTENT_LENGTH;

/// Runs file work apart from the tasks. Work whose stream is gone still ends by itself.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| Error::new(ErrorKind::Internal, format!("file work failed: {error}")))?
}

/// Errors: `InvalidInput` unless it is an absolute path of a possible length.
pub(super) fn absolute(path: &str) -> Result<&Path> {
    if path.len() > MAX_PATH_LENGTH || !path.starts_with('/') || path.contains('\0') {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("a path is absolute and has at most {MAX_PATH_LENGTH} bytes"),
        ));
    }
    Ok(Path::new(path))
}

pub(super) fn about(operation: &str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    let shown: String = path.to_string_lossy().chars().take(300).collect();
    let operation = operation.to_owned();
    move |error| Error::from_io(&format!("{operation} {shown:?}"), &error)
}

pub(super) fn status(metadata: &Metadata, link_target: Option<PathBuf>) -> FileStatus {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_file() => FileKind::File,
        () if kind.is_dir() => FileKind::Directory,
        () if kind.is_symlink() => FileKind::Symlink,
        () => FileKind::Other,
    };
    let seconds = u64::try_from(metadata.mtime()).unwrap_or(0);
    let milliseconds = u64::try_from(metadata.mtime_nsec()).unwrap_or(0) / 1_000_000;
    FileStatus {
        kind,
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_ms: seconds.saturating_mul(1000).saturating_add(milliseconds),
        link_target: link_target.map(|target| target.to_string_lossy().into_owned()),
    }
}

pub(super) fn stat(path: &str, follow: bool) -> Result<FileStatus> {
    let path = absolute(path)?;
    let metadata = if follow { path.metadata() } else { path.symlink_metadata() };
    let metadata = metadata.map_err(about("look at", path))?;
    let target = metadata.is_symlink().then(|| path.read_link().ok()).flatten();
    Ok(status(&metadata, target))
}

pub(super) async fn read(stream: &mut MuxStream, request: ReadFileRequest) -> Result<()> {
    let path = absolute(&request.path)?.to_owned();
    let failed = about("read", &path);
    let mut options = tokio::fs::OpenOptions::new();
    // Without waiting: the path may be a pipe that nobody writes.
    options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let mut file = options.open(&path).await.map_err(&failed)?;
    let metadata = file.metadata().await.map_err(&failed)?;
    if !metadata.is_file() {
        let kind = if metadata.file_type().is_fifo() { "a pipe" } else { "no regular file" };
        return Err(Error::new(ErrorKind::InvalidInput, format!("{:?} is {kind}", request.path)));
    }
    if request.offset > 0 {
        file.seek(std::io::SeekFrom::Start(request.offset)).await.map_err(&failed)?;
    }
    respond(stream, &status(&metadata, None)).await?;
    let mut remaining = request.length.unwrap_or(u64::MAX);
    let mut buffer = vec![0; READ_BYTES];
    while remaining > 0 {
        let wanted = usize::try_from(remaining).unwrap_or(usize::MAX).min(buffer.len());
        let count = file.read(&mut buffer[..wanted]).await.map_err(&failed)?;
        if count == 0 {
            break;
        }
        remaining -= count as u64;
        for piece in buffer[..count].chunks(CONTENT_LENGTH) {
            write_frame(stream, FrameKind::Data, piece).await?;
        }
    }
    write_frame(stream, FrameKind::End, &[]).await
}

pub(super) async fn list(stream: &mut MuxStream, request: ListDirectoryRequest) -> Result<()> {
    let (frames, listed) = blocking(move || list_now(&request)).await?;
    for frame in frames {
        write_frame(stream, FrameKind::Entries, &frame).await?;
    }
    respond(stream, &listed).await
}

/// The entries as the JSON of whole frames.
fn list_now(request: &ListDirectoryRequest) -> Result<(Vec<Vec<u8>>, DirectoryListed)> {
    let path = absolute(&request.path)?;
    let failed = about("list", path);
    let limit = request.limit.unwrap_or(MAX_DIRECTORY_ENTRIES).min(MAX_DIRECTORY_ENTRIES) as usize;
    let mut names = Vec::new();
    for entry in path.read_dir().map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name();
        if request.after.as_ref().is_none_or(|after| name.to_string_lossy().as_ref() > after.as_str()) {
            names.push(name);
        }
        if names.len() >= MAX_NAMES {
            return Err(Error::new(ErrorKind::Exhausted, format!("more than {MAX_NAMES} names")));
        }
    }
    // In the order of the names as they are told, which is also what `after` is compared with.
    names.sort_unstable_by(|a, b| a.to_string_lossy().cmp(&b.to_string_lossy()));
    let more = names.len() > limit;
    names.truncate(limit);

    let mut frames = Vec::new();
    let mut frame = Vec::new();
    for name in names {
        let file = path.join(&name);
        // It may be gone by now.
        let Ok(metadata) = file.symlink_metadata() else { continue };
        let target = metadata.is_symlink().then(|| file.read_link().ok()).flatten();
        let entry =
            DirectoryEntry { name: name.to_string_lossy().into_owned(), status: status(&metadata, target) };
        let json = serde_json::to_vec(&entry)
            .map_err(|error| Error::new(ErrorKind::Internal, format!("encode an entry: {error}")))?;
        if frame.len() + json.len() + 2 > MAX_FRAME_LENGTH {
            frame.push(b']');
            frames.push(std::mem::take(&mut frame));
        }
        frame.push(if frame.is_empty() { b'[' } else { b',' });
        frame.extend_from_slice(&json);
    }
    if !frame.is_empty() {
        frame.push(b']');
        frames.push(frame);
    }
    Ok((frames, DirectoryListed { more }))
}

pub(super) fn remove(request: &RemoveRequest) -> Result<()> {
    let path = absolute(&request.path)?;
    if !path.components().any(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::new(ErrorKind::InvalidInput, "the root directory stays"));
    }
    let failed = about("remove", path);
    let metadata = path.symlink_metadata().map_err(&failed)?;
    let removed = match (metadata.is_dir(), request.recursive) {
        (true, true) => std::fs::remove_dir_all(path),
        (true, false) => std::fs::remove_dir(path),
        (false, _) => std::fs::remove_file(path),
    };
    removed.map_err(&failed)
}

pub(super) fn rename(request: &RenameRequest) -> Result<()> {
    let (from, to) = (absolute(&request.from)?, absolute(&request.to)?);
    std::fs::rename(from, to).map_err(about("rename", from))
}

pub(super) fn make_directory(request: &MakeDirectoryRequest) -> Result<()> {
    let path = absolute(&request.path)?;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(request.parents).mode(request.mode.unwrap_or(0o755) & 0o7777);
    builder.create(path).map_err(about("make", path))
}
