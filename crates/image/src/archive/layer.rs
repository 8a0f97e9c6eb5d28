//! One tar stream applied to a tree: a whole root file system, or a layer of an image over the layers before it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use super::stream::{StreamSummary, Unpacked};
use super::tar::{TarEntry, TarKind, TarReader};
use crate::error::{ImageError, Result};
use crate::limits::{DeviceNodes, Limits};
use crate::spool::{Content, Spool};
use crate::tree::{Attributes, Kind, Tree};

/// The prefix of a whiteout's name, and the name of an opaque mark (OCI image specification, "Layer Filesystem Changeset").
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS_INTERNAL: &[u8] = b".wh..wh.";

/// A tree being filled, with the place of its contents and the bounds of both.
pub(crate) struct Filling {
    pub(crate) tree: Tree,
    pub(crate) spool: Spool,
    pub(crate) limits: Limits,
    pub(crate) devices: DeviceNodes,
    unpacked: u64,
}

impl Filling {
    pub(crate) fn new(spool: Spool, limits: Limits, devices: DeviceNodes) -> Self {
        Self { tree: Tree::new(limits.clone()), spool, limits, devices, unpacked: 0 }
    }

    /// The bytes of all files so far.
    pub(crate) fn unpacked(&self) -> u64 {
        self.unpacked
    }

    /// Stores a file's content, within the bound on all of them.
    pub(crate) fn store(&mut self, reader: &mut dyn Read, size: u64) -> Result<Content> {
        self.unpacked = self.unpacked.saturating_add(size);
        if self.unpacked > self.limits.unpacked_bytes {
            return Err(ImageError::too_large(format!(
                "the image unpacks to more than {} bytes",
                self.limits.unpacked_bytes
            )));
        }
        self.spool.store(reader, size)
    }

    /// Applies a tar, plain or compressed. With `whiteouts`, names of the OCI specification take away what lower layers have.
    /// `progress` is told the bytes unpacked so far, after each entry.
    pub(crate) fn apply(
        &mut self,
        file: File,
        whiteouts: bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<StreamSummary> {
        let mut reader = TarReader::new(Unpacked::new(file, &self.limits)?);
        let mut entries: u64 = 0;
        while let Some(entry) = reader.next()? {
            self.apply_entry(&entry, &mut reader, whiteouts).map_err(|error| error.at(&entry.path))?;
            entries += 1;
            progress(self.unpacked);
        }
        if entries == 0 && !whiteouts {
            return Err(ImageError::malformed("the archive is empty"));
        }
        reader.into_inner().finish()
    }

    fn apply_entry<R: Read>(
        &mut self,
        entry: &TarEntry,
        reader: &mut TarReader<R>,
        whiteouts: bool,
    ) -> Result<()> {
        if whiteouts && self.apply_whiteout(&entry.path)? {
            return Ok(());
        }
        let attributes = Attributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            modified: entry.modified,
            xattrs: kept_xattrs(&entry.xattrs),
        };
        let kind = match entry.kind {
            TarKind::HardLink => return self.tree.hard_link(&entry.path, &entry.link),
            TarKind::File => {
                // Looked at before the content is stored, so that a refused path costs no disk.
                self.tree.split(&entry.path)?;
                Kind::File(self.store(&mut reader.content(), entry.size)?)
            }
            TarKind::Symlink => Kind::Symlink(entry.link.clone()),
            TarKind::Directory => Kind::Directory(BTreeMap::new()),
            TarKind::Fifo => Kind::Fifo,
            TarKind::CharacterDevice | TarKind::BlockDevice => match self.devices {
                DeviceNodes::Skip => return Ok(()),
                DeviceNodes::Refuse => return Err(device_refused()),
                DeviceNodes::Keep if entry.kind == TarKind::CharacterDevice => {
                    Kind::CharacterDevice { major: entry.major, minor: entry.minor }
                }
                DeviceNodes::Keep => Kind::BlockDevice { major: entry.major, minor: entry.minor },
            },
        };
        self.tree.insert(&entry.path, attributes, kind)
    }

    /// Whether the entry was a whiteout, and so is done with.
    fn apply_whiteout(&mut self, path: &[u8]) -> Result<bool> {
        let names = self.tree.split(path)?;
        let Some((last, parents)) = names.split_last() else { return Ok(false) };
        if *last == OPAQUE {
            self.tree.make_opaque(parents)?;
        } else if last.starts_with(AUFS_INTERNAL) {
            // Bookkeeping of AUFS, of no meaning outside.
        } else if let Some(hidden) = last.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(ImageError::hostile("a whiteout that names no entry"));
            }
            self.tree.white_out(parents, hidden)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

pub(crate) fn device_refused() -> ImageError {
    ImageError::hostile(
        "a device node; a guest's /dev is made by its kernel. Import it with device nodes skipped, or kept (`--device-nodes skip`), if that is meant",
    )
}

/// Drops the attributes of overlayfs itself: in the lower layer of a guest's overlay they would hide files.
pub(crate) fn kept_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let internal = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    xattrs
        .iter()
        .filter(|(name, _)| !internal(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
