//! The writable layer of a VM: an empty ext4 file system in a sparse file, the upper layer over an image.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{ImageError, ImageErrorKind, Result};
use crate::ext4;
use crate::limits::Limits;
use crate::tree::Tree;

/// The smallest and largest writable layer, in bytes.
pub const LEAST_BYTES: u64 = 32 << 20;
/// See [`LEAST_BYTES`]: what 32-bit block numbers reach.
pub const MOST_BYTES: u64 = 15 << 40;

/// Makes sure that an empty ext4 file system of exactly `size` bytes is at `path`, or that one made before is still there.
///
/// The file appears whole, or not at all: it is written beside, fsynced and renamed, and the folder is fsynced. It is sparse (under 1 MB
/// for 10 GiB, in milliseconds), has a journal, and its UUID is derived from `path`. What a VM wrote to it is never touched.
///
/// Errors: `Unsupported` when `size` is out of range or no multiple of 4096; `Conflict` when a file of another size is there;
/// `NoSpace`, `Io`.
pub fn ensure(path: &Path, size: u64) -> Result<()> {
    if !(LEAST_BYTES..=MOST_BYTES).contains(&size) || !size.is_multiple_of(4096) {
        return Err(ImageError::unsupported(format!(
            "a writable disk has {LEAST_BYTES} to {MOST_BYTES} bytes, in multiples of 4096; {size} was asked for"
        )));
    }
    if is_there(path, size)? {
        return Ok(());
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staging = tempfile::Builder::new().prefix(".disk-").tempdir_in(folder)?;
    let made = staging.path().join("disk");
    let options = ext4::Options {
        least_bytes: size,
        free_bytes: 0,
        journal_blocks: journal_blocks(size),
        identity: Some(path.as_os_str().as_encoded_bytes().to_vec()),
    };
    ext4::write(&Tree::new(Limits::default()), None, &options, &made, &mut |_| {})?;
    // Of two calls at once, the later must not replace what a VM may be using already.
    match renameat_with(CWD, &made, CWD, path, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) if is_there(path, size)? => return Ok(()),
        renamed => renamed?,
    }
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// Whether a disk of this size is there; `Conflict` when there is something else.
fn is_there(path: &Path, size: u64) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() == size => Ok(true),
        Ok(metadata) => Err(ImageError::new(
            ImageErrorKind::Conflict,
            format!("there is a file of {} bytes already, and {size} were asked for", metadata.len()),
        )
        .at_path(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(ImageError::from(error).at_path(path)),
    }
}

/// 4 MiB, the least that jbd2 takes (1,024 blocks), for small disks; 16 MiB for others. mke2fs gives more, which a single guest does
/// not need, and which the host pays for once the log went round.
fn journal_blocks(size: u64) -> u32 {
    if size < 1 << 30 { 1024 } else { 4096 }
}
