//! The files of an image that is not unpacked: a layout's folder, or the members of an archive put aside under numbers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, copy};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::archive::stream::Unpacked;
use crate::archive::tar::{TarKind, TarReader};
use crate::error::{ImageError, ImageErrorKind, Result};
use crate::limits::Limits;

/// The most members of an image's archive.
const MOST_MEMBERS: usize = 4096;

/// Where an image's documents and layers lie.
pub(crate) enum Bundle {
    Folder(PathBuf),
    Members(HashMap<String, Member>),
}

pub(crate) enum Member {
    File(PathBuf),
    /// Old `docker save` archives name a layer that occurs twice by a link.
    Link(String),
}

/// Whether a name can be a member of an image's archive.
fn is_member(name: &str) -> bool {
    let hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match name.split('/').collect::<Vec<_>>().as_slice() {
        ["oci-layout" | "index.json" | "manifest.json" | "repositories"] => true,
        [file] => file.strip_suffix(".json").is_some_and(hex),
        ["blobs", "sha256", digest] => hex(digest),
        [id, "layer.tar" | "json" | "VERSION"] => hex(id),
        _ => false,
    }
}

/// Whether a folder is one that only leads to members.
fn is_member_folder(name: &str) -> bool {
    matches!(name, "" | "blobs" | "blobs/sha256")
        || (name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn plain(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.trim_start_matches("./").trim_end_matches('/').to_owned()
}

/// Whether the first file in a tar shows it to be an image's archive rather than a root file system.
pub(crate) fn looks_like_image_archive(file: File, limits: &Limits) -> Result<bool> {
    let mut reader = TarReader::new(Unpacked::new(file, limits)?);
    while let Some(entry) = reader.next()? {
        let name = plain(&entry.path);
        if entry.kind != TarKind::Directory {
            return Ok(is_member(&name));
        }
        if name != "." && !is_member_folder(&name) {
            return Ok(false);
        }
    }
    Ok(false)
}

impl Bundle {
    /// Puts an archive's members aside in `folder`, which is the conversion's own. Members that belong to no known form are refused.
    pub(crate) fn unpack(
        file: File,
        folder: &Path,
        limits: &Limits,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let mut reader = TarReader::new(Unpacked::new(file, limits)?);
        let mut members = HashMap::new();
        let mut bytes: u64 = 0;
        while let Some(entry) = reader.next()? {
            let name = plain(&entry.path);
            let named = |error: ImageError| error.at(&entry.path);
            if members.len() >= MOST_MEMBERS {
                return Err(named(ImageError::too_large(format!(
                    "the archive has more than {MOST_MEMBERS} members"
                ))));
            }
            let member = match entry.kind {
                TarKind::Directory if name == "." || is_member_folder(&name) => continue,
                TarKind::File if is_member(&name) => {
                    bytes = bytes.saturating_add(entry.size);
                    if bytes > limits.unpacked_bytes {
                        return Err(named(ImageError::too_large(format!(
                            "the archive unpacks to more than {} bytes",
                            limits.unpacked_bytes
                        ))));
                    }
                    let path = folder.join(format!("member-{}", members.len()));
                    let mut target = File::create_new(&path)?;
                    if copy(&mut reader.content(), &mut target)? != entry.size {
                        return Err(named(ImageError::malformed(
                            "the archive ends in the middle of an entry",
                        )));
                    }
                    Member::File(path)
                }
                TarKind::Symlink | TarKind::HardLink if is_member(&name) => {
                    let target = plain(&entry.link);
                    let target = target.strip_prefix("../").unwrap_or(&target);
                    if !is_member(target) {
                        return Err(named(ImageError::hostile(
                            "a link that leads out of the image's archive",
                        )));
                    }
                    Member::Link(target.to_owned())
                }
                _ => {
                    let message =
                        "this does not belong into an image's archive (OCI layout or `docker save`)";
                    return Err(named(ImageError::hostile(message)));
                }
            };
            members.insert(name, member);
            progress(bytes);
        }
        reader.into_inner().finish()?;
        Ok(Self::Members(members))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).is_file(),
            Self::Members(members) => members.contains_key(name),
        }
    }

    /// Opens a member by its name in the image.
    pub(crate) fn open(&self, name: &str) -> Result<File> {
        let missing = || {
            ImageError::new(ImageErrorKind::NotFound, "the image names this file, and it is not there")
                .at(name.as_bytes())
        };
        if !is_member(name) {
            return Err(
                ImageError::hostile("the image names a file that cannot be part of it").at(name.as_bytes())
            );
        }
        let path = match self {
            Self::Folder(folder) => folder.join(name),
            Self::Members(members) => match members.get(name).ok_or_else(missing)? {
                Member::File(path) => path.clone(),
                Member::Link(target) => match members.get(target).ok_or_else(missing)? {
                    Member::File(path) => path.clone(),
                    Member::Link(_) => {
                        return Err(ImageError::hostile("a link to a link").at(name.as_bytes()));
                    }
                },
            },
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                if file.metadata()?.is_file() {
                    Ok(file)
                } else {
                    Err(ImageError::hostile("not a regular file").at(name.as_bytes()))
                }
            }
            Err(rustix::io::Errno::LOOP) => Err(ImageError::hostile("a link").at(name.as_bytes())),
            Err(rustix::io::Errno::NOENT) => Err(missing()),
            Err(errno) => Err(ImageError::from(errno).at(name.as_bytes())),
        }
    }

    /// Reads a whole member of at most `limit` bytes.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(name)?.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(ImageError::too_large(format!("the document is longer than {limit} bytes"))
                .at(name.as_bytes()));
        }
        Ok(bytes)
    }
}
