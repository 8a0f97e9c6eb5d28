//! Users and groups from the guest's own files. There is no name service in a static binary, nor should there be.

use std::io::Read;
use std::path::Path;

use flames_guest_protocol::{Error, ErrorKind, Result};

// Larger files than any distribution's; what is behind it is not looked at.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
// Linux: NGROUPS_MAX.
const MAX_GROUPS: usize = 65_536;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Looks up `name`, `name:group`, `uid` or `uid:gid` in `root`'s `/etc/passwd` and `/etc/group`. A number that is
/// in no file is taken as it is.
///
/// Errors: `NotFound` for a name that is in no file, `InvalidInput` for what is neither name nor number.
pub(crate) fn look_up(root: &Path, text: &str) -> Result<User> {
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    if name.is_empty() || group == Some("") || text.contains(['\n', '\0']) {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{text:?} is no user")));
    }
    let passwd = read(&root.join("etc/passwd"));
    let groups = read(&root.join("etc/group"));

    let by_name = passwd.lines().map(fields).find(|line| line.first() == Some(&name));
    let number = name.parse::<u32>().ok();
    let line = by_name.or_else(|| {
        let number = number?;
        passwd.lines().map(fields).find(|line| line.get(2).and_then(|uid| uid.parse().ok()) == Some(number))
    });
    let (uid, mut gid, home, login) = match (&line, number) {
        (Some(line), _) => {
            let part = |at: usize| line.get(at).and_then(|text| text.parse::<u32>().ok());
            let (Some(uid), Some(gid)) = (part(2), part(3)) else {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("the image's /etc/passwd has a damaged line for {name:?}"),
                ));
            };
            (uid, gid, line.get(5).copied().unwrap_or("/"), line.first().copied())
        }
        (None, Some(uid)) => (uid, 0, "/", None),
        (None, None) => {
            return Err(Error::new(ErrorKind::NotFound, format!("the image has no user {name:?}")));
        }
    };
    let mut members = Vec::new();
    if let Some(group) = group {
        gid = look_up_group(&groups, group)?;
    } else if let Some(login) = login {
        members = groups
            .lines()
            .map(fields)
            .filter(|line| line.get(3).is_some_and(|names| names.split(',').any(|name| name == login)))
            .filter_map(|line| line.get(2)?.parse().ok())
            .take(MAX_GROUPS - 1)
            .collect();
    }
    members.push(gid);
    members.sort_unstable();
    members.dedup();
    let home = if home.is_empty() { "/" } else { home };
    Ok(User { uid, gid, groups: members, home: home.to_owned() })
}

fn look_up_group(groups: &str, name: &str) -> Result<u32> {
    let line = groups.lines().map(fields).find(|line| line.first() == Some(&name));
    line.and_then(|line| line.get(2)?.parse().ok())
        .or_else(|| name.parse().ok())
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("the image has no group {name:?}")))
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

// An image without these files has no names, only numbers.
fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MAX_FILE_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(
            root.path().join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nbad:x:y:z\n7:x:70:70::/seven:\n",
        )
        .unwrap();
        std::fs::write(root.path().join("etc/group"), "www:x:34:\nlogs:x:4:adm,web\n").unwrap();
        root
    }

    #[test]
    fn a_name_gets_its_numbers_groups_and_home() {
        let user = look_up(root().path(), "web").unwrap();
        assert_eq!(user, User { uid: 33, gid: 34, groups: vec![4, 34], home: "/srv".into() });
        assert_eq!(look_up(root().path(), "33").unwrap(), user);
    }

    #[test]
    fn a_named_group_takes_the_place_of_the_others() {
        let user = look_up(root().path(), "web:logs").unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (33, 4, vec![4]));
        assert_eq!(look_up(root().path(), "1000:2000").unwrap().gid, 2000);
    }

    #[test]
    fn a_name_of_digits_wins_over_the_number() {
        assert_eq!(look_up(root().path(), "7").unwrap().uid, 70);
    }

    #[test]
    fn unknown_names_and_damaged_lines_are_told_apart() {
        let kind = |text: &str| look_up(root().path(), text).unwrap_err().kind;
        assert_eq!(kind("nobody"), ErrorKind::NotFound);
        assert_eq!(kind("web:nogroup"), ErrorKind::NotFound);
        assert_eq!(kind("bad"), ErrorKind::InvalidInput);
        assert_eq!(kind(":x"), ErrorKind::InvalidInput);
        assert_eq!(look_up(Path::new("/nowhere"), "0").unwrap().home, "/");
    }
}
