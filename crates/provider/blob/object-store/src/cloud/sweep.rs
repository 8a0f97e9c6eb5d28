//! Removing what no blob needs: uploads that were never completed, and data that no record names.

use std::sync::Arc;
use std::time::Duration;

use flames_blob::BlobKey;
use flames_error::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use object_store::ObjectMeta;
use object_store::path::Path;

use super::calls::Calls;
use super::uploads::Uploads;

const OPERATION: &str = "blob.sweep";
/// How much of one key's data is looked at together.
const MAX_GROUP: usize = 1_000;

/// What a sweep removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Uploads that were begun and never completed.
    pub uploads: u64,
    /// Objects with the bytes of blobs that were replaced, deleted, or never became visible.
    pub objects: u64,
    /// How many bytes those objects had.
    pub bytes: u64,
}

pub(super) async fn sweep(calls: &Arc<Calls>, uploads: &Uploads, older_than: Duration) -> Result<Swept> {
    let least = calls.limits.put.saturating_mul(2);
    if older_than < least {
        return Err(Error::invalid(
            OPERATION,
            "older_than",
            format!("What is younger than {least:?} (twice the longest put) may still be under way."),
        ));
    }
    let age = SignedDuration::try_from(older_than).unwrap_or(SignedDuration::MAX);
    let cutoff = calls.clock.now().saturating_sub(age).unwrap_or(Timestamp::MIN);
    let mut swept = Swept::default();
    for (path, id) in uploads.begun_before(calls, cutoff).await? {
        let aborted = calls.repeat(OPERATION, || calls.objects.abort_multipart(&path, &id)).await;
        match aborted {
            Ok(()) => swept.uploads += 1,
            // Completed or aborted meanwhile.
            Err(super::failures::Failure::Missing) => {}
            Err(failure) => return Err(failure.into_error(OPERATION)),
        }
    }
    sweep_data(calls, cutoff, &mut swept).await?;
    Ok(swept)
}

/// The data of one key.
#[derive(Debug)]
struct Group {
    key: BlobKey,
    /// How many objects there are.
    count: usize,
    /// Those that are old enough to go: relative name, path, size.
    old: Vec<(String, Path, u64)>,
}

/// Walks records and data side by side, both in the order of keys. A key with one piece of data and a record is whole and costs
/// nothing; of all others the record is read.
async fn sweep_data(calls: &Arc<Calls>, cutoff: Timestamp, swept: &mut Swept) -> Result<()> {
    let mut data = Walk::new(calls, calls.names.all_data());
    let mut records =
        Records { walk: Walk::new(calls, calls.names.records()), current: None, is_over: false };
    let mut group: Option<Group> = None;
    while let Some(object) = data.next().await? {
        let Some((key, name)) = calls.names.key_of_data(object.location.as_ref()) else { continue };
        let belongs = group.as_ref().is_some_and(|group| group.key == key && group.old.len() < MAX_GROUP);
        if !belongs && let Some(done) = group.take() {
            settle(calls, &mut records, done, swept).await?;
        }
        let group = group.get_or_insert_with(|| Group { key: key.clone(), count: 0, old: Vec::new() });
        group.count += 1;
        let stored_at = Timestamp::from_millisecond(object.last_modified.timestamp_millis());
        if stored_at.is_ok_and(|stored_at| stored_at < cutoff) {
            group.old.push((name.to_owned(), object.location.clone(), object.size));
        }
    }
    match group {
        Some(done) => settle(calls, &mut records, done, swept).await,
        None => Ok(()),
    }
}

async fn settle(calls: &Arc<Calls>, records: &mut Records, group: Group, swept: &mut Swept) -> Result<()> {
    if group.old.is_empty() || (group.count == 1 && records.has(&group.key).await?) {
        return Ok(());
    }
    // Read only now, after the data was listed: a put that is older than the cutoff cannot become visible any more.
    let live = calls.record(OPERATION, &group.key).await?.and_then(|(described, _)| described.data);
    for (name, path, size) in group.old {
        if live.as_deref() == Some(name.as_str()) {
            continue;
        }
        calls.delete(OPERATION, &path).await.map_err(|failure| failure.into_error(OPERATION))?;
        swept.objects += 1;
        swept.bytes += size;
    }
    Ok(())
}

/// The records, followed as far as asked.
struct Records {
    walk: Walk,
    current: Option<BlobKey>,
    is_over: bool,
}

impl Records {
    /// Whether there is a record of `key`. Keys must be asked for in their order.
    async fn has(&mut self, key: &BlobKey) -> Result<bool> {
        while !self.is_over && self.current.as_ref().is_none_or(|current| current < key) {
            match self.walk.next().await? {
                Some(object) => {
                    if let Some(found) = self.walk.calls.names.key_of_record(object.location.as_ref()) {
                        self.current = Some(found);
                    }
                }
                None => self.is_over = true,
            }
        }
        Ok(self.current.as_ref() == Some(key))
    }
}

/// All objects of a prefix, page by page, in the order of their names.
struct Walk {
    calls: Arc<Calls>,
    prefix: String,
    page: std::vec::IntoIter<ObjectMeta>,
    token: Option<String>,
    is_last: bool,
    last: Option<Path>,
}

impl Walk {
    fn new(calls: &Arc<Calls>, prefix: String) -> Self {
        let page = Vec::new().into_iter();
        Self { calls: Arc::clone(calls), prefix, page, token: None, is_last: false, last: None }
    }

    async fn next(&mut self) -> Result<Option<ObjectMeta>> {
        loop {
            if let Some(object) = self.page.next() {
                if self.last.as_ref().is_some_and(|last| *last >= object.location) {
                    return Err(Error::internal(OPERATION, "the server does not list objects in order"));
                }
                self.last = Some(object.location.clone());
                return Ok(Some(object));
            }
            if self.is_last {
                return Ok(None);
            }
            let page = self.calls.page(OPERATION, &self.prefix, None, self.token.as_deref(), None).await?;
            self.is_last = page.token.is_none();
            self.token = page.token;
            self.page = page.objects.into_iter();
        }
    }
}
