//! `flames cp`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flames_client::{ByteStream, Client};
use flames_error::ErrorKind;
use flames_wire::{FileInfo, FileKind, FileList, FileStat, FileWrite, MakeDirectory};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

use super::Context;
use crate::args::{CopyArgs, Place};
use crate::attached::pieces;
use crate::exit::{Failure, NOT_FOUND, Outcome};
use crate::output;

/// How deep directories may lie in one another: a guest's own links cannot make this endless.
const DEEPEST: usize = 128;
/// Permission bits (chmod(2)).
const PERMISSIONS: u32 = 0o7777;

/// Copies files to or from a VM.
pub(super) async fn copy(context: &Context, arguments: CopyArgs) -> Outcome {
    let CopyArgs { recursive, source, target } = arguments;
    let copier = Copier { client: &context.api.client, recursive, skipped: 0 };
    let skipped = match (source, target) {
        (Place::Vm { vm, path }, Place::Here(target)) => copier.download(&vm, &path, target).await?,
        (Place::Vm { vm, path }, Place::Standard) => {
            let mut content = copier.client.read_file(&vm, &path).await?;
            while let Some(piece) = content.next().await {
                output::write(&piece?)?;
            }
            0
        }
        (Place::Here(source), Place::Vm { vm, path }) => copier.upload(&source, &vm, &path).await?,
        (Place::Standard, Place::Vm { vm, path }) => {
            write(copier.client, &vm, &path, None, pieces(tokio::io::stdin()).boxed()).await?;
            0
        }
        (Place::Vm { .. }, Place::Vm { .. }) => {
            return Err(Failure::usage("Files are copied to or from a VM, not between two.")
                .advise("Copy them here first, or pipe: `flames cp A:/x - | flames cp - B:/x`."));
        }
        (Place::Here(_) | Place::Standard, Place::Here(_) | Place::Standard) => {
            return Err(Failure::usage("One of both must be in a VM: `VM:/path`."));
        }
    };
    if skipped > 0 {
        context.output.say(format!("Links and special files were left out: {skipped}."));
    }
    Ok(ExitCode::SUCCESS)
}

struct Copier<'a> {
    client: &'a Client,
    recursive: bool,
    skipped: u64,
}

fn needs_recursive(path: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{path} is a directory."))
        .advise("Copy it with all that is in it: `flames cp -r`.")
}

fn too_deep() -> Failure {
    Failure::failed(format!("The directories lie more than {DEEPEST} deep in one another."))
}

fn guest_join(folder: &str, name: &str) -> String {
    format!("{}/{name}", folder.trim_end_matches('/'))
}

impl Copier<'_> {
    async fn download(mut self, vm: &str, path: &str, target: PathBuf) -> Result<u64, Failure> {
        let info = self.client.stat_file(vm, &FileStat { path: path.to_owned(), follow: true }).await?;
        let name =
            path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty() && *name != "..");
        let target = match name {
            Some(name) if target.is_dir() => target.join(name),
            _ => target,
        };
        match info.kind {
            FileKind::Directory if self.recursive => {
                self.download_directory(vm, path.to_owned(), target).await?
            }
            FileKind::Directory => return Err(needs_recursive(path)),
            _ => self.download_file(vm, path, &target, &info).await?,
        }
        Ok(self.skipped)
    }

    async fn download_directory(&mut self, vm: &str, path: String, target: PathBuf) -> Result<(), Failure> {
        let mut folders = vec![(path, target, 0)];
        while let Some((path, target, depth)) = folders.pop() {
            if depth > DEEPEST {
                return Err(too_deep());
            }
            tokio::fs::create_dir_all(&target)
                .await
                .map_err(|error| Failure::io(format!("{} cannot be made", target.display()), &error))?;
            let mut cursor = None;
            loop {
                let list = FileList { path: path.clone(), cursor, limit: None };
                let page = self.client.list_files(vm, &list).await?;
                for entry in page.items {
                    // A guest that names `..` or `a/b` would write outside of the target.
                    if entry.name.is_empty()
                        || entry.name == "."
                        || entry.name == ".."
                        || entry.name.contains('/')
                    {
                        return Err(Failure::failed(format!(
                            "The guest names a file `{}`, which is no name.",
                            output::printable(&entry.name)
                        )));
                    }
                    let (inside, outside) = (guest_join(&path, &entry.name), target.join(&entry.name));
                    match entry.info.kind {
                        FileKind::Directory => folders.push((inside, outside, depth + 1)),
                        FileKind::File => self.download_file(vm, &inside, &outside, &entry.info).await?,
                        FileKind::Symlink | FileKind::Other => self.skipped += 1,
                    }
                }
                cursor = page.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whole or not at all: the content stands under another name until all of it is here.
    async fn download_file(
        &self,
        vm: &str,
        path: &str,
        target: &Path,
        info: &FileInfo,
    ) -> Result<(), Failure> {
        let cannot =
            |error: std::io::Error| Failure::io(format!("{} cannot be written", target.display()), &error);
        let folder =
            target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut content = self.client.read_file(vm, path).await?;
        let temporary = tempfile::NamedTempFile::new_in(folder).map_err(cannot)?;
        let mut file = tokio::fs::File::from_std(temporary.as_file().try_clone().map_err(cannot)?);
        while let Some(piece) = content.next().await {
            file.write_all(&piece?).await.map_err(cannot)?;
        }
        file.flush().await.map_err(cannot)?;
        // Without set-uid and set-gid: the file belongs to whoever copies it.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(info.mode & 0o777);
        temporary.as_file().set_permissions(mode).map_err(cannot)?;
        temporary.persist(target).map_err(|error| cannot(error.error))?;
        Ok(())
    }

    async fn upload(mut self, source: &Path, vm: &str, path: &str) -> Result<u64, Failure> {
        let cannot =
            |error: std::io::Error| Failure::io(format!("{} cannot be read", source.display()), &error);
        let metadata = tokio::fs::metadata(source).await.map_err(cannot)?;
        if metadata.is_dir() && !self.recursive {
            return Err(needs_recursive(source.display()));
        }
        let target = match self.client.stat_file(vm, &FileStat { path: path.to_owned(), follow: true }).await
        {
            Ok(info) if info.kind == FileKind::Directory => {
                let whole = tokio::fs::canonicalize(source).await.map_err(cannot)?;
                let name = whole.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
                    Failure::usage(format!("{} has no name that can be used in the VM.", source.display()))
                })?;
                guest_join(path, name)
            }
            Ok(_) => path.to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound && error.code() != Some("VM_NOT_FOUND") => {
                if path.ends_with('/') && !metadata.is_dir() {
                    return Err(Failure::new(NOT_FOUND, format!("There is no directory {path} in the VM.")));
                }
                path.trim_end_matches('/').to_owned()
            }
            Err(error) => return Err(error.into()),
        };
        if metadata.is_dir() {
            self.upload_directory(source.to_owned(), vm, target).await?;
        } else {
            self.upload_file(source, vm, &target).await?;
        }
        Ok(self.skipped)
    }

    async fn upload_directory(&mut self, source: PathBuf, vm: &str, target: String) -> Result<(), Failure> {
        use std::os::unix::fs::MetadataExt;
        let mut folders = vec![(source, target, 0)];
        while let Some((source, target, depth)) = folders.pop() {
            if depth > DEEPEST {
                return Err(too_deep());
            }
            let cannot =
                |error: std::io::Error| Failure::io(format!("{} cannot be read", source.display()), &error);
            let mode = tokio::fs::metadata(&source).await.map_err(cannot)?.mode() & PERMISSIONS;
            let make = MakeDirectory { path: target.clone(), parents: true, mode: Some(mode) };
            self.client.make_directory(vm, &make).await?;
            let mut entries = tokio::fs::read_dir(&source).await.map_err(cannot)?;
            while let Some(entry) = entries.next_entry().await.map_err(cannot)? {
                let kind = entry.file_type().await.map_err(cannot)?;
                let name = entry.file_name();
                let Some(name) = name.to_str() else {
                    return Err(Failure::usage(format!("{} is not UTF-8.", entry.path().display())));
                };
                let inside = guest_join(&target, name);
                if kind.is_dir() {
                    folders.push((entry.path(), inside, depth + 1));
                } else if kind.is_file() {
                    self.upload_file(&entry.path(), vm, &inside).await?;
                } else {
                    self.skipped += 1;
                }
            }
        }
        Ok(())
    }

    async fn upload_file(&self, source: &Path, vm: &str, path: &str) -> Result<(), Failure> {
        use std::os::unix::fs::MetadataExt;
        let cannot =
            |error: std::io::Error| Failure::io(format!("{} cannot be read", source.display()), &error);
        let file = tokio::fs::File::open(source).await.map_err(cannot)?;
        let mode = file.metadata().await.map_err(cannot)?.mode() & PERMISSIONS;
        write(self.client, vm, path, Some(mode), pieces(file).boxed()).await
    }
}

async fn write(
    client: &Client,
    vm: &str,
    path: &str,
    mode: Option<u32>,
    content: ByteStream,
) -> Result<(), Failure> {
    let write = FileWrite { path: path.to_owned(), mode, keep_existing: false };
    client.write_file(vm, &write, content).await?;
    Ok(())
}
