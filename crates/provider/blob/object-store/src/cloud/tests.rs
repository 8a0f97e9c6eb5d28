//! The adapter against a cloud in memory that fails as told.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use flames_blob::BlobStoreExt;
use flames_clock::{SeededRandom, SimulatedClock};
use futures::TryStreamExt;
use futures::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartId, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions as WriteOptions, PutPayload,
    PutResult,
};

use super::failures::Place;
use super::*;

type Answer<T> = object_store::Result<T>;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It never leaves.
    NoConnection,
    /// It is done, and the answer is lost.
    AnswerLost,
    /// As before, and others replace the record meanwhile, so many times.
    ReplacedMeanwhile(u32),
}

/// A cloud in memory.
#[derive(Debug, Default)]
struct FakeCloud {
    inner: InMemory,
    ignores_conditions: bool,
    /// For the next writes of records.
    records: Mutex<VecDeque<Fault>>,
    /// How many bytes of the next bodies of data come before the connection is lost.
    bodies: Mutex<VecDeque<usize>>,
}

impl fmt::Display for FakeCloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeCloud")
    }
}

fn broken<T>(kind: HttpErrorKind) -> Answer<T> {
    let source = Box::new(HttpError::new(kind, std::io::Error::other("as the test wants")));
    Err(object_store::Error::Generic { store: "fake", source })
}

impl FakeCloud {
    /// Another process that puts the blob whose record is at `path`.
    async fn replace(&self, path: &Path) {
        let found = self.inner.get(path).await.unwrap().bytes().await.unwrap();
        let mut record: serde_json::Value = serde_json::from_slice(&found).unwrap();
        record["replaced"] = record["data"].take();
        record["data"] = format!("{}x", record["replaced"].as_str().unwrap()).into();
        self.inner.put(path, serde_json::to_vec(&record).unwrap().into()).await.unwrap();
    }
}

#[async_trait]
impl ObjectStore for FakeCloud {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        mut options: WriteOptions,
    ) -> Answer<PutResult> {
        if self.ignores_conditions {
            options.mode = PutMode::Overwrite;
        }
        let is_record = path.as_ref().starts_with("blobs/");
        let fault = is_record.then(|| self.records.lock().unwrap().pop_front()).flatten();
        if fault == Some(Fault::NoConnection) {
            return broken(HttpErrorKind::Connect);
        }
        let answer = self.inner.put_opts(path, payload, options).await;
        let Some(fault) = fault else { return answer };
        if let (Fault::ReplacedMeanwhile(times), Ok(_)) = (fault, &answer) {
            for _ in 0..times {
                self.replace(path).await;
            }
        }
        broken(HttpErrorKind::Interrupted)
    }
    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Answer<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Answer<GetResult> {
        let mut found = self.inner.get_opts(path, options).await?;
        let is_data = path.as_ref().starts_with("data/");
        if let Some(length) = is_data.then(|| self.bodies.lock().unwrap().pop_front()).flatten() {
            let (meta, range) = (found.meta.clone(), found.range.clone());
            let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
            let bytes = found.bytes().await?;
            let part = bytes.slice(..length.min(bytes.len()));
            let body = futures::stream::iter([Ok(part), broken(HttpErrorKind::Interrupted)]).boxed();
            found =
                GetResult { payload: GetResultPayload::Stream(body), meta, range, attributes, extensions };
        }
        Ok(found)
    }
    fn delete_stream(&self, paths: BoxStream<'static, Answer<Path>>) -> BoxStream<'static, Answer<Path>> {
        self.inner.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Answer<ObjectMeta>> {
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Answer<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Answer<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for FakeCloud {
    async fn create_multipart(&self, path: &Path) -> Answer<MultipartId> {
        self.inner.create_multipart(path).await
    }
    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        number: usize,
        part: PutPayload,
    ) -> Answer<PartId> {
        self.inner.put_part(path, id, number, part).await
    }
    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Answer<PutResult> {
        self.inner.complete_multipart(path, id, parts).await
    }
    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Answer<()> {
        self.inner.abort_multipart(path, id).await
    }
}

#[async_trait]
impl PaginatedListStore for FakeCloud {
    async fn list_paginated(
        &self,
        prefix: Option<&str>,
        options: PaginatedListOptions,
    ) -> Answer<PaginatedListResult> {
        let all: Vec<ObjectMeta> = self.inner.list(None).try_collect().await?;
        let after = options.page_token.or(options.offset).unwrap_or_default();
        let fits = |name: &str| name.starts_with(prefix.unwrap_or_default()) && name > after.as_str();
        let mut objects: Vec<_> = all.into_iter().filter(|found| fits(found.location.as_ref())).collect();
        objects.sort_by(|one, other| one.location.cmp(&other.location));
        let limit = options.max_keys.unwrap_or(1_000);
        let has_more = objects.len() > limit;
        objects.truncate(limit);
        let page_token = objects.last().filter(|_| has_more).map(|last| last.location.to_string());
        let result = ListResult { common_prefixes: Vec::new(), objects, extensions: Default::default() };
        Ok(PaginatedListResult { result, page_token })
    }
}

/// A store whose clock is `ahead` of the cloud's.
async fn opened(cloud: &Arc<FakeCloud>, ahead: SignedDuration) -> CloudBlobStore {
    let clock = SimulatedClock::new(Timestamp::now().checked_add(ahead).unwrap());
    let place = Place {
        provider: "fake",
        bucket: "bucket".into(),
        bucket_setting: "bucket",
        endpoint: "nowhere".into(),
        credential_settings: "`key`",
    };
    let connected = Connected {
        objects: Arc::<FakeCloud>::clone(cloud),
        place,
        root: String::new(),
        uploads: Uploads::GoByThemselves,
    };
    let random = Arc::new(SeededRandom::new(ahead.as_secs().unsigned_abs() + 7));
    CloudBlobStore::open(connected, CloudLimits::default(), Arc::new(clock), random).await.unwrap()
}

async fn store() -> (Arc<FakeCloud>, CloudBlobStore) {
    let cloud = Arc::<FakeCloud>::default();
    let store = opened(&cloud, SignedDuration::ZERO).await;
    (cloud, store)
}

fn key(text: &str) -> BlobKey {
    BlobKey::new(text).unwrap()
}

async fn put(store: &CloudBlobStore, name: &str, bytes: &'static [u8]) -> Result<BlobInfo> {
    store.put_bytes(&key(name), Bytes::from_static(bytes), PutOptions::default()).await
}

async fn read(store: &CloudBlobStore, name: &str) -> Bytes {
    store.get_bytes(&key(name), 1 << 20).await.unwrap()
}

async fn count(cloud: &FakeCloud, prefix: &str) -> usize {
    cloud.inner.list(Some(&Path::from(prefix))).count().await
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ignores_conditions_is_found_out_and_used_all_the_same() {
    let (cloud, strict) = store().await;
    assert!(strict.capabilities().conditional_put);
    assert_eq!(count(&cloud, "probe").await, 0, "the probe is removed");
    let cloud = Arc::new(FakeCloud { ignores_conditions: true, ..FakeCloud::default() });
    let lenient = opened(&cloud, SignedDuration::ZERO).await;
    assert!(!lenient.capabilities().conditional_put);
    cloud.records.lock().unwrap().push_back(Fault::AnswerLost);
    for bytes in [b"one", b"two"] {
        put(&lenient, "a", bytes).await.unwrap();
        assert_eq!(read(&lenient, "a").await, *bytes.as_slice());
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_whose_answer_was_lost_is_found_to_be_there() {
    let (cloud, store) = store().await;
    for bytes in [b"first", b"later"] {
        cloud.records.lock().unwrap().extend([Fault::NoConnection, Fault::AnswerLost]);
        put(&store, "a", bytes).await.unwrap();
        assert_eq!(read(&store, "a").await, *bytes.as_slice());
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_whose_answer_was_lost_never_undoes_that_of_another() {
    let (cloud, store) = store().await;
    let path = Path::from("blobs/a");
    // Replaced once: the other one's record tells that ours was there.
    cloud.records.lock().unwrap().push_back(Fault::ReplacedMeanwhile(1));
    put(&store, "a", b"ours").await.unwrap();
    // Replaced twice: nobody can tell any more.
    cloud.records.lock().unwrap().push_back(Fault::ReplacedMeanwhile(2));
    let error = put(&store, "a", b"ours again").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    let record = cloud.inner.get(&path).await.unwrap().bytes().await.unwrap();
    assert!(String::from_utf8_lossy(&record).contains("xx\""), "the other one's record was overwritten");
}

#[tokio::test(start_paused = true)]
async fn a_put_that_never_reached_the_server_changed_nothing_and_says_so() {
    let (cloud, store) = store().await;
    put(&store, "a", b"old").await.unwrap();
    cloud.records.lock().unwrap().extend([Fault::NoConnection; 4]);
    assert_eq!(put(&store, "a", b"new").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(read(&store, "a").await, "old");
    assert_eq!(count(&cloud, "data").await, 1, "the bytes of the failed put stayed");
    put(&store, "a", b"new").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_read_goes_on_where_its_connection_was_lost_and_gives_up_in_the_end() {
    let (cloud, store) = store().await;
    put(&store, "a", b"0123456789").await.unwrap();
    cloud.bodies.lock().unwrap().extend([4, 0, 3]);
    assert_eq!(read(&store, "a").await, "0123456789");
    cloud.bodies.lock().unwrap().extend([1; 9]);
    let error = store.get_bytes(&key("a"), 100).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_goes_on_never_takes_the_bytes_of_another_version() {
    let (cloud, store) = store().await;
    put(&store, "a", b"0123456789").await.unwrap();
    cloud.bodies.lock().unwrap().push_back(4);
    let mut read = store.get(&key("a"), Some(0..9)).await.unwrap();
    assert_eq!(read.stream.next().await.unwrap().unwrap(), "0123");
    let data: Vec<ObjectMeta> = cloud.inner.list(Some(&Path::from("data"))).try_collect().await.unwrap();
    cloud.inner.put(&data[0].location, "abcdefghij".into()).await.unwrap();
    assert_eq!(read.stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn damage_is_corrupt_and_never_read_as_a_blob() {
    let (cloud, store) = store().await;
    put(&store, "a", b"0123456789").await.unwrap();
    let data: Vec<ObjectMeta> = cloud.inner.list(Some(&Path::from("data"))).try_collect().await.unwrap();
    cloud.inner.put(&data[0].location, "0123456780".into()).await.unwrap();
    let kind = async || store.get_bytes(&key("a"), 100).await.unwrap_err().kind();
    assert_eq!(kind().await, ErrorKind::Corrupt, "another byte");
    cloud.inner.delete(&data[0].location).await.unwrap();
    assert_eq!(kind().await, ErrorKind::Corrupt, "no bytes");
    for record in ["no JSON", r#"{"schema":2}"#, r#"{"schema":1,"key":"b"}"#] {
        cloud.inner.put(&Path::from("blobs/a"), record.into()).await.unwrap();
        assert_eq!(store.head(&key("a")).await.unwrap_err().kind(), ErrorKind::Corrupt, "{record}");
        assert_eq!(kind().await, ErrorKind::Corrupt, "{record}");
    }
    put(&store, "a", b"again").await.unwrap();
    assert_eq!(read(&store, "a").await, "again", "what is damaged can be replaced");
    cloud.inner.put(&Path::from("blobs/a"), "no JSON".into()).await.unwrap();
    store.delete(&key("a")).await.unwrap();
    assert!(!store.exists(&key("a")).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_sweep_removes_what_no_blob_needs_and_only_that() {
    let (cloud, young) = store().await;
    for bytes in [b"one", b"two", b"six"] {
        put(&young, "replaced", bytes).await.unwrap();
    }
    put(&young, "deleted", b"gone").await.unwrap();
    young.delete(&key("deleted")).await.unwrap();
    for name in ["a", "m/n", "z"] {
        put(&young, name, b"stays").await.unwrap();
    }
    cloud.inner.put(&Path::from("data/never!shown"), "half".into()).await.unwrap();
    cloud.inner.put(&Path::from("data/notes of an operator"), "not ours".into()).await.unwrap();
    let patience = CloudLimits::default().put * 2;
    assert_eq!(young.sweep_abandoned(patience).await.unwrap(), Swept::default(), "all of it is young");
    let early = young.sweep_abandoned(patience / 2).await.unwrap_err();
    assert_eq!((early.kind(), early.field()), (ErrorKind::InvalidInput, Some("older_than")));
    let old = opened(&cloud, SignedDuration::from_hours(13)).await;
    let swept = old.sweep_abandoned(patience).await.unwrap();
    assert_eq!((swept.objects, swept.bytes), (4, 3 + 3 + 4 + 4));
    assert_eq!(read(&old, "replaced").await, "six");
    for name in ["a", "m/n", "z"] {
        assert_eq!(read(&old, name).await, "stays");
    }
    assert_eq!(count(&cloud, "data").await, 5, "the live ones, and the object that is not ours");
    assert_eq!(old.sweep_abandoned(patience).await.unwrap(), Swept::default());
}

#[tokio::test(start_paused = true)]
async fn a_put_that_takes_longer_than_a_put_may_is_refused() {
    let (cloud, store) = store().await;
    let slow = futures::stream::once(async {
        tokio::time::sleep(CloudLimits::default().put + Duration::from_secs(1)).await;
        Ok(Bytes::from_static(b"late"))
    });
    let error = store.put(&key("a"), slow.boxed(), PutOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!((count(&cloud, "blobs").await, count(&cloud, "data").await), (0, 0));
}
