//! A folder of the host as the content of an image.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::archive::layer::{Filling, device_refused, kept_xattrs};
use crate::error::{ImageError, Result};
use crate::limits::DeviceNodes;
use crate::tree::{Attributes, Kind, Moment};

/// The longest value and list of extended attributes that Linux allows (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const LONGEST_XATTR: usize = 65_536;

/// Copies the folder `root` into the tree: never follows a link, keeps owners, modes, times, hard links and extended attributes.
pub(crate) fn fill_from_directory(
    filling: &mut Filling,
    root: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let metadata = fs::metadata(root).map_err(|error| ImageError::from(error).at_path(root))?;
    if !metadata.is_dir() {
        return Err(ImageError::unsupported("not a folder").at_path(root));
    }
    filling.tree.insert(b".", attributes_of(root, &metadata)?, Kind::Directory(BTreeMap::new()))?;
    let mut first_names: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        let here = root.join(std::ffi::OsStr::from_bytes(&folder));
        let listing = fs::read_dir(&here).map_err(|error| ImageError::from(error).at(&folder))?;
        let mut names: Vec<Vec<u8>> = Vec::new();
        for item in listing {
            names.push(item?.file_name().as_bytes().to_vec());
        }
        names.sort();
        for name in names {
            let inner = if folder.is_empty() { name } else { [folder.as_slice(), b"/", &name].concat() };
            if add(filling, root, &inner, &mut first_names).map_err(|error| error.at(&inner))? {
                folders.push(inner);
            }
            progress(filling.unpacked());
        }
    }
    Ok(())
}

/// Adds one entry; whether it is a folder to go through.
fn add(
    filling: &mut Filling,
    root: &Path,
    inner: &[u8],
    first_names: &mut HashMap<(u64, u64), Vec<u8>>,
) -> Result<bool> {
    let path = root.join(std::ffi::OsStr::from_bytes(inner));
    let metadata = fs::symlink_metadata(&path)?;
    let kind = metadata.file_type();
    if !kind.is_dir() && metadata.nlink() > 1 {
        match first_names.get(&(metadata.dev(), metadata.ino())) {
            Some(first) => {
                let first = first.clone();
                filling.tree.hard_link(inner, &first)?;
                return Ok(false);
            }
            None => {
                first_names.insert((metadata.dev(), metadata.ino()), inner.to_vec());
            }
        }
    }
    let attributes = attributes_of(&path, &metadata)?;
    let is_folder = kind.is_dir();
    let kind = if is_folder {
        Kind::Directory(BTreeMap::new())
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(&path)?.as_os_str().as_bytes().to_vec())
    } else if kind.is_file() {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mut file = fs::File::from(rustix::fs::open(&path, flags, Mode::empty())?);
        Kind::File(filling.store(&mut file, metadata.size())?)
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else {
        let device = metadata.rdev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        match filling.devices {
            DeviceNodes::Skip => return Ok(false),
            DeviceNodes::Refuse => return Err(device_refused()),
            DeviceNodes::Keep if kind.is_char_device() => Kind::CharacterDevice { major, minor },
            DeviceNodes::Keep => Kind::BlockDevice { major, minor },
        }
    };
    filling.tree.insert(inner, attributes, kind)?;
    Ok(is_folder)
}

fn attributes_of(path: &Path, metadata: &fs::Metadata) -> Result<Attributes> {
    Ok(Attributes {
        mode: (metadata.mode() & 0o7777) as u16,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified: Moment { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 },
        xattrs: kept_xattrs(&read_xattrs(path)?),
    })
}

fn read_xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0u8; LONGEST_XATTR];
    let length = match rustix::fs::llistxattr(path, &mut list) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut found = BTreeMap::new();
    let mut value = Vec::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let key = CString::new(name).map_err(|_| ImageError::internal("an attribute's name holds NUL"))?;
        value.resize(LONGEST_XATTR, 0);
        match rustix::fs::lgetxattr(path, key.as_c_str(), &mut value) {
            Ok(length) => {
                found.insert(name.to_vec(), value[..length].to_vec());
            }
            // Gone since it was listed.
            Err(rustix::io::Errno::NODATA) => {}
            Err(errno) if std::io::Error::from(errno).kind() == ErrorKind::PermissionDenied => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(found)
}
