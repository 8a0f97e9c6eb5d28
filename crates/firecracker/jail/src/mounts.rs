//! The host's mount table.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)), as far as it is used here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountLine {
    pub(crate) point: PathBuf,
    pub(crate) options: Vec<String>,
    pub(crate) kind: String,
    pub(crate) super_options: Vec<String>,
}

/// Lines that are none are left out.
pub(crate) fn parse(text: &[u8]) -> Vec<MountLine> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut words = line.split(|byte| *byte == b' ');
    let point = words.nth(4)?;
    let options = words.next()?;
    // Optional fields, up to a lone hyphen.
    words.by_ref().find(|word| *word == b"-")?;
    let kind = words.next()?;
    let super_options = words.nth(1)?;
    let list = |word: &[u8]| String::from_utf8_lossy(word).split(',').map(str::to_owned).collect();
    Some(MountLine {
        point: PathBuf::from(OsString::from_vec(unescape(point))),
        options: list(options),
        kind: String::from_utf8_lossy(kind).into_owned(),
        super_options: list(super_options),
    })
}

/// Space, tab, newline and backslash stand there as a backslash and three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, behind)) = rest.split_first() {
        let code = (*first == b'\\')
            .then(|| behind.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &behind[3..];
            }
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    out
}

/// The mounts of our own mount namespace.
pub(crate) fn read() -> io::Result<Vec<MountLine>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount that the path is on: the last one whose point leads to it.
pub(crate) fn mount_of<'a>(mounts: &'a [MountLine], path: &Path) -> Option<&'a MountLine> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.as_os_str().as_bytes().len())
}

/// Unmounts everything at or below the path, which has no links in it: what was mounted last goes first, and what is in use goes as
/// soon as it is not. How many there were.
///
/// We mount nothing there; but a folder is only removed when nothing of another place can be reached through it.
pub(crate) fn unmount_below(path: &Path) -> io::Result<usize> {
    let mut count = 0;
    // A point may have been mounted on several times.
    for mount in read()?.iter().rev().filter(|mount| mount.point.starts_with(path)) {
        match rustix::mount::unmount(&mount.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => count += 1,
            // Gone with one below it.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let left = read()?.iter().any(|mount| mount.point.starts_with(path));
    if left { Err(io::Error::new(io::ErrorKind::ResourceBusy, "a mount is left")) } else { Ok(count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_their_optional_fields_and_escapes() {
        let text = b"36 35 98:0 /mnt1 /srv/a\\040b\\134c rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
            31 23 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
            garbage\n\
            1 2 3 4 5 6 no hyphen\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].point, Path::new("/srv/a b\\c"));
        assert_eq!(mounts[0].options, ["rw", "noatime"]);
        assert_eq!(
            (mounts[0].kind.as_str(), &mounts[0].super_options[..]),
            ("ext3", &["rw".into(), "errors=continue".to_owned()][..])
        );
        assert_eq!(mounts[1].kind, "cgroup2");
    }

    #[test]
    fn the_mount_of_a_path_is_the_nearest_above_it() {
        let line = |point: &str| MountLine {
            point: point.into(),
            options: Vec::new(),
            kind: String::new(),
            super_options: Vec::new(),
        };
        let mounts = [line("/"), line("/srv"), line("/srv/jails/x"), line("/srv/jail")];
        assert_eq!(mount_of(&mounts, Path::new("/srv/jails")).unwrap().point, Path::new("/srv"));
        assert_eq!(mount_of(&mounts, Path::new("/srv/jails/x/y")).unwrap().point, Path::new("/srv/jails/x"));
        assert_eq!(mount_of(&mounts, Path::new("/opt")).unwrap().point, Path::new("/"));
    }

    #[test]
    fn nothing_is_unmounted_where_nothing_is_mounted() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(unmount_below(folder.path()).unwrap(), 0);
    }
}
