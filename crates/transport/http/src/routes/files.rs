//! Files of a guest: what is answered in one piece.

use axum::Json as JsonAnswer;
use axum::extract::State;
use flames_error::{Error, ErrorKind, Result};
use flames_wire::stream::{FileAnswer, FileRequest};
use flames_wire::{DirectoryListing, FileInfo, FileList, FileMove, FileRemove, FileStat, MakeDirectory};
use http::StatusCode;

use super::guest::Guest;
use crate::access::By;
use crate::api::Api;
use crate::failure::{Answer, Failure, invalid};
use crate::input::{Change, NoBody, QueryOf, VmPath};

/// Linux's `PATH_MAX`.
const MAX_PATH: usize = 4_096;
const DEFAULT_ENTRIES: u32 = 1_000;
const MAX_ENTRIES: u32 = 10_000;

pub(super) fn unexpected() -> Error {
    Error::new(ErrorKind::Corrupt, "http.files", "an answer that does not belong here")
}

pub(super) fn absolute(path: String, field: &str) -> Answer<String> {
    if path.starts_with('/') && path.len() <= MAX_PATH && !path.contains('\0') {
        Ok(path)
    } else {
        Err(invalid(field, "A path is absolute, at most 4096 bytes, and has no NUL."))
    }
}

pub(super) fn permissions(mode: Option<u32>) -> Answer<Option<u32>> {
    match mode {
        Some(mode) if mode > 0o7777 => Err(invalid("mode", "Permission bits are 0 to 4095 (octal 7777).")),
        mode => Ok(mode),
    }
}

async fn done(mut guest: Guest) -> Result<()> {
    match guest.file_answer().await? {
        FileAnswer::Done => Ok(()),
        _ => Err(unexpected()),
    }
}

/// What a path in the guest is
#[utoipa::path(get, path = "/v1/vms/{vm}/files/stat", tag = "files", params(FileStat), responses(
    (status = 200, description = "What it is.", body = FileInfo),
))]
pub(crate) async fn stat_file(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<FileStat>,
) -> Answer<JsonAnswer<FileInfo>> {
    let request = FileRequest::Stat { path: absolute(query.path, "path")?, follow: query.follow };
    let mut guest = Guest::files(&api, &caller, &vm, request).await?;
    match guest.file_answer().await? {
        FileAnswer::Info(info) => Ok(JsonAnswer(info)),
        _ => Err(unexpected().into()),
    }
}

/// List a directory of the guest
#[utoipa::path(get, path = "/v1/vms/{vm}/files/list", tag = "files", params(FileList), responses(
    (status = 200, description = "A page of its entries, by name.", body = DirectoryListing),
))]
pub(crate) async fn list_files(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<FileList>,
) -> Answer<JsonAnswer<DirectoryListing>> {
    let limit = crate::input::limit(query.limit, DEFAULT_ENTRIES, MAX_ENTRIES)?;
    if query.cursor.as_ref().is_some_and(|name| name.is_empty() || name.len() > 255 || name.contains('\0')) {
        return Err(invalid("cursor", "A cursor is the `next_cursor` of the page before."));
    }
    let request = FileRequest::List {
        path: absolute(query.path, "path")?,
        after: query.cursor,
        limit: u32::try_from(limit).ok(),
    };
    let mut guest = Guest::files(&api, &caller, &vm, request).await?;
    let (mut items, mut more) = (Vec::new(), false);
    while let Some(answer) = guest.more_file_answers().await? {
        let FileAnswer::Entries { entries, more: follow } = answer else { return Err(unexpected().into()) };
        more = follow;
        items.extend(entries);
        if items.len() > limit {
            // More than asked for: whoever sends it does not keep to the protocol.
            return Err(Failure(unexpected()));
        }
    }
    let next_cursor = items.last().filter(|_| more).map(|entry| entry.name.clone());
    Ok(JsonAnswer(DirectoryListing { items, next_cursor }))
}

/// Remove a file or directory of the guest
#[utoipa::path(delete, path = "/v1/vms/{vm}/files", tag = "files", params(FileRemove), responses(
    (status = 204, description = "It is gone."),
))]
pub(crate) async fn remove_file(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<FileRemove>,
    change: Change,
    NoBody: NoBody,
) -> Answer<StatusCode> {
    change.refuse_key()?;
    let request = FileRequest::Remove { path: absolute(query.path, "path")?, recursive: query.recursive };
    done(Guest::files(&api, &caller, &vm, request).await?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Rename within one file system of the guest
#[utoipa::path(post, path = "/v1/vms/{vm}/files/rename", tag = "files", params(FileMove), responses(
    (status = 204, description = "It has the new path."),
))]
pub(crate) async fn rename_file(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<FileMove>,
    change: Change,
    NoBody: NoBody,
) -> Answer<StatusCode> {
    change.refuse_key()?;
    let request = FileRequest::Rename { from: absolute(query.from, "from")?, to: absolute(query.to, "to")? };
    done(Guest::files(&api, &caller, &vm, request).await?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a directory in the guest
#[utoipa::path(post, path = "/v1/vms/{vm}/files/directory", tag = "files", params(MakeDirectory), responses(
    (status = 204, description = "It is there."),
))]
pub(crate) async fn make_directory(
    State(api): State<Api>,
    By(caller): By,
    VmPath(vm): VmPath,
    QueryOf(query): QueryOf<MakeDirectory>,
    change: Change,
    NoBody: NoBody,
) -> Answer<StatusCode> {
    change.refuse_key()?;
    let request = FileRequest::MakeDirectory {
        path: absolute(query.path, "path")?,
        parents: query.parents,
        mode: permissions(query.mode)?,
    };
    done(Guest::files(&api, &caller, &vm, request).await?).await?;
    Ok(StatusCode::NO_CONTENT)
}
