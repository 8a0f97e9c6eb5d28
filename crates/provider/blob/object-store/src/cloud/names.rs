//! Names of objects.
//!
//! * `<prefix>blobs/<key>`: a blob's record. It is there exactly while the blob is.
//! * `<prefix>data/<key>!<id>`: the bytes of one put. Written once, never changed.
//!
//! Keys stand there re-spelled: `-` as `,`, `.` as `-` and `/` as `.`. So a name has no folders, which keeps keys such as `a` and
//! `a/b` apart on servers that keep objects in folders, and the names sort as the keys do, which listing needs. A longer key is cut
//! into pieces of [`PIECE`] bytes, all but the last with a `_` behind them, as folders in each other: servers that keep objects in files
//! of their names take 255 bytes for each.

use flames_blob::BlobKey;
use object_store::path::Path;

/// Between the key and the id of data: below all that a key has, so that data sorts as its key.
const BEFORE_ID: char = '!';
/// How much of a key is in one segment of a name. With `!` and an id it stays below 255 bytes.
const PIECE: usize = 200;
/// Between two pieces: a folder has a longer name than any object.
const BETWEEN: &str = "_/";

#[derive(Debug, Clone)]
pub(super) struct Names {
    root: String,
}

impl Names {
    pub(super) fn new(root: String) -> Self {
        Self { root }
    }

    /// Where the record of a key is.
    pub(super) fn record(&self, key: &BlobKey) -> Path {
        Path::from(format!("{}blobs/{}", self.root, spelled(key.as_str())))
    }

    /// Where the bytes of a put are, as a record tells it: relative to the prefix, so that a bucket can be copied elsewhere.
    pub(super) fn new_data(key: &BlobKey, id: &str) -> String {
        format!("{}{BEFORE_ID}{id}", spelled(key.as_str()))
    }

    pub(super) fn data(&self, name: &str) -> Path {
        Path::from(format!("{}data/{name}", self.root))
    }

    pub(super) fn probe(&self, id: &str) -> Path {
        Path::from(format!("{}probe/{id}", self.root))
    }

    /// What the names of all records begin with.
    pub(super) fn records(&self) -> String {
        format!("{}blobs/", self.root)
    }

    /// What the names of all data begin with.
    pub(super) fn all_data(&self) -> String {
        format!("{}data/", self.root)
    }

    /// What the names of the records begin with whose keys begin with `prefix`.
    pub(super) fn records_under(&self, prefix: &str) -> String {
        format!("{}{}", self.records(), spelled(prefix))
    }

    /// The key of a record; none when the object is not one of ours.
    pub(super) fn key_of_record(&self, name: &str) -> Option<BlobKey> {
        key(name.strip_prefix(self.records().as_str())?)
    }

    /// The key and the relative name of data; none when the object is not one of ours.
    pub(super) fn key_of_data<'n>(&self, name: &'n str) -> Option<(BlobKey, &'n str)> {
        let name = name.strip_prefix(self.all_data().as_str())?;
        let (spelled, _) = name.split_once(BEFORE_ID)?;
        Some((key(spelled)?, name))
    }
}

fn spelled(key: &str) -> String {
    let mut spelled = String::with_capacity(key.len() + 2 * BETWEEN.len());
    for (index, letter) in key.chars().enumerate() {
        if index > 0 && index % PIECE == 0 {
            spelled.push_str(BETWEEN);
        }
        spelled.push(match letter {
            '-' => ',',
            '.' => '-',
            '/' => '.',
            letter => letter,
        });
    }
    spelled
}

fn key(spelled: &str) -> Option<BlobKey> {
    let (folders, last) = spelled.rsplit_once('/').map_or(("", spelled), |(folders, last)| (folders, last));
    let mut pieces = Vec::new();
    for folder in folders.split('/').filter(|folder| !folder.is_empty()) {
        pieces.push(folder.strip_suffix('_').filter(|piece| piece.len() == PIECE)?);
    }
    pieces.push(last);
    let key: String = pieces
        .concat()
        .chars()
        .map(|letter| match letter {
            ',' => '-',
            '-' => '.',
            '.' => '/',
            letter => letter,
        })
        .collect();
    BlobKey::new(key).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_keys_do_and_tell_them() {
        let names = Names::new("some/place/".to_owned());
        let mut keys: Vec<_> = [
            "a",
            "a/b",
            "a-b",
            "a.b",
            "a:b",
            "a=b",
            "a_b",
            "A",
            ".a",
            "a/.b",
            "...",
            "sha256:00ff",
            "a/b/c",
            "a0",
        ]
        .map(|key| BlobKey::new(key).unwrap())
        .into();
        let piece = "k".repeat(PIECE);
        for end in ["", "-", "k", "z", "/k", "_", "_/k"] {
            keys.push(BlobKey::new(format!("{piece}{end}")).unwrap());
            keys.push(BlobKey::new(format!("{piece}{piece}{end}")).unwrap());
        }
        keys.sort();
        let records: Vec<_> = keys.iter().map(|key| names.record(key).to_string()).collect();
        assert!(records.is_sorted(), "{records:?}");
        let data: Vec<_> =
            keys.iter().map(|key| names.data(&Names::new_data(key, "f0")).to_string()).collect();
        assert!(data.is_sorted(), "{data:?}");
        for ((key, record), data) in keys.iter().zip(&records).zip(&data) {
            assert_eq!(names.key_of_record(record).as_ref(), Some(key));
            assert_eq!(names.key_of_data(data).unwrap().0, *key);
            assert!(record.split('/').chain(data.split('/')).all(|segment| segment.len() <= 255));
            for end in 1..=key.as_str().len() {
                assert!(record.starts_with(&names.records_under(&key.as_str()[..end])), "{key} {end}");
            }
        }
    }

    #[test]
    fn objects_of_others_have_no_key() {
        let names = Names::new(String::new());
        for name in ["other/a", "blobs/a b", "blobs/", "data/a", "data/!id", "blobs/a!b", "blobs/a/b"] {
            assert!(names.key_of_record(name).is_none() && names.key_of_data(name).is_none(), "{name}");
        }
    }
}
