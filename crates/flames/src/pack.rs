//! A folder as an archive, for an upload.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::exit::Failure;

/// The files of an OCI image layout that come first, so that whoever reads the archive knows at once what it is.
const FIRST: [&str; 2] = ["oci-layout", "index.json"];

/// Packs a folder with owners, modes and links as they are, into a temporary file.
pub(crate) async fn folder(path: &Path) -> Result<NamedTempFile, Failure> {
    let folder = path.to_owned();
    let shown = path.display().to_string();
    let packed = tokio::task::spawn_blocking(move || pack(&folder)).await;
    match packed {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(error)) => Err(Failure::io(format!("{shown} cannot be packed"), &error)),
        Err(_) => Err(Failure::failed(format!("{shown} cannot be packed: the work was interrupted."))),
    }
}

fn pack(folder: &Path) -> io::Result<NamedTempFile> {
    let file = NamedTempFile::new()?;
    let mut archive = tar::Builder::new(BufWriter::new(file.as_file().try_clone()?));
    archive.follow_symlinks(false);
    let mut names: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| PathBuf::from(entry.file_name())))
        .collect::<io::Result<_>>()?;
    names.sort_by_key(|name| {
        let place = FIRST.iter().position(|first| Path::new(first) == name);
        (place.unwrap_or(FIRST.len()), name.clone())
    });
    for name in names {
        let path = folder.join(&name);
        if fs::symlink_metadata(&path)?.is_dir() {
            archive.append_dir_all(&name, &path)?;
        } else {
            archive.append_path_with_name(&path, &name)?;
        }
    }
    archive.into_inner()?.flush()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_packed_with_its_links_and_a_layout_s_mark_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("blobs")).unwrap();
        fs::write(folder.path().join("blobs/a"), "content").unwrap();
        fs::write(folder.path().join("oci-layout"), "{}").unwrap();
        std::os::unix::fs::symlink("/nowhere", folder.path().join("link")).unwrap();
        let packed = pack(folder.path()).unwrap();
        let mut archive = tar::Archive::new(fs::File::open(packed.path()).unwrap());
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names[0], "oci-layout");
        assert!(names.contains(&"blobs/a".to_owned()) && names.contains(&"link".to_owned()), "{names:?}");
    }
}
