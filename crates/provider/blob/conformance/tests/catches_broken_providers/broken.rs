//! A small store with one flaw of choice.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flames_blob::{
    BlobInfo, BlobKey, BlobPage, BlobRead, BlobStore, ByteStream, Digest, MAX_CHUNK, MAX_PAGE, PutOptions,
};
use flames_blob_conformance::async_trait;
use flames_conformance_runner::SimulatedNetwork;
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::network::{Connection, Lost, reached, told};

mod reading;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[rustfmt::skip]
pub(crate) enum Flaw {
    None,
    LosesTheLastByte, KeepsWhatCameBeforeAFailure, RemovesTheOldBlobFirst, RenamesTheStreamsError,
    ShowsBlobsBeforeTheyAreWhole, GoesOnWhenAbandoned, IgnoresTheDigest, IgnoresTheSize, ChecksTheSizeAtTheEnd,
    StoresWhatItRefuses, IgnoresTheLimitsOfOptions, ChecksOptionsAtTheEnd, RefusesEmptyBlobs, StoresInTwoSteps,
    KeepsTheOldMetadata, GivesAllInOneChunk, ReadsWhatIsThereNow, TakesRangesAsInclusive, IgnoresRanges,
    RefusesRangesPastTheEnd, TellsRangesUncut, TakesStartsPastTheEnd, TakesReversedRanges, CallsTheAbsentUnavailable,
    ForgetsMetadata, MakesUpTheType, MakesUpTheSize, FoldsTheCaseOfKeys, DeletesByPrefix, DeletesNothing,
    WantsABlobToDelete, SaysThatAllExists, ListsBackwards, StartsPagesWithTheLastBlob, KnowsOnlyOnePage, LosesItsPlace,
    IgnoresThePrefix, TakesPrefixesAsFolders, CountsInsteadOfComparing, ListsWithoutMetadata, TakesAnyLimit,
    ForgetsAtARestart, UndoesDeletesAtARestart, RefusesTheLongestKeys, PromisesAPageMore, ListsTheFirstThousand,
    DescribesWhatIsThereLater, DeletesLate, RemembersTheMetadataOfTheDeleted, CallsLostAnswersUnavailable,
    CallsLostRequestsDone, CallsLostDeletesDone, EndsCutReads, StitchesReplacedBlobs, EndsCutListings, WaitsForEver,
    StaysStalled, ForgetsWhenTheServerIsKilled,
}

#[derive(Debug, Clone)]
struct Stored {
    info: BlobInfo,
    bytes: Bytes,
}

#[derive(Debug, Clone)]
pub(crate) struct BrokenStore {
    flaw: Flaw,
    blobs: Arc<Mutex<BTreeMap<BlobKey, Stored>>>,
    /// What was deleted, for the store that brings it back.
    deleted: Arc<Mutex<BTreeMap<BlobKey, Stored>>>,
    /// How many blobs were listed up to a page's end, for the store that counts.
    counts: Arc<Mutex<HashMap<BlobKey, usize>>>,
    network: SimulatedNetwork,
    /// For the store that a stall breaks for good.
    was_stalled: Arc<AtomicBool>,
}

impl BrokenStore {
    pub(crate) fn new(flaw: Flaw) -> Self {
        Self {
            flaw,
            blobs: Arc::default(),
            deleted: Arc::default(),
            counts: Arc::default(),
            network: SimulatedNetwork::default(),
            was_stalled: Arc::default(),
        }
    }

    pub(crate) fn network(&self) -> &SimulatedNetwork {
        &self.network
    }

    pub(crate) fn kill_the_server(&self) {
        if self.has(Flaw::ForgetsWhenTheServerIsKilled) {
            self.blobs.lock().unwrap().clear();
        }
    }

    /// A connection for one call, or none for ever.
    async fn connect(&self) -> Result<Connection> {
        if self.network.is_stalled() {
            self.was_stalled.store(true, Ordering::SeqCst);
        } else if self.has(Flaw::StaysStalled) && self.was_stalled.load(Ordering::SeqCst) {
            return Err(Error::unavailable("blob.call", "broken for good"));
        }
        Ok(Connection::over(&self.network, self.has(Flaw::WaitsForEver)))
    }

    pub(crate) fn reopened(&self) -> Self {
        let blobs = match self.flaw {
            Flaw::ForgetsAtARestart => BTreeMap::new(),
            Flaw::UndoesDeletesAtARestart => {
                let mut blobs = self.deleted.lock().unwrap().clone();
                blobs.extend(self.blobs.lock().unwrap().clone());
                blobs
            }
            _ => self.blobs.lock().unwrap().clone(),
        };
        Self { blobs: Arc::new(Mutex::new(blobs)), network: self.network.clone(), ..Self::new(self.flaw) }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn place(&self, key: &BlobKey) -> BlobKey {
        if self.has(Flaw::FoldsTheCaseOfKeys) {
            BlobKey::new(key.as_str().to_lowercase()).unwrap()
        } else {
            key.clone()
        }
    }

    fn find(&self, key: &BlobKey) -> Result<Stored> {
        self.blobs.lock().unwrap().get(&self.place(key)).cloned().ok_or_else(|| {
            let error = Error::not_found("blob.get", "blob", key.as_str());
            if self.has(Flaw::CallsTheAbsentUnavailable) {
                error.with_kind(ErrorKind::Unavailable)
            } else {
                error
            }
        })
    }

    fn insert(&self, key: &BlobKey, bytes: &[u8], options: &PutOptions) -> BlobInfo {
        let mut blobs = self.blobs.lock().unwrap();
        let mut metadata = options.metadata.clone();
        let place = self.place(key);
        if let Some(old) = blobs.get(&place).filter(|_| self.has(Flaw::KeepsTheOldMetadata)) {
            metadata.extend(old.info.metadata.clone());
        }
        if let Some(old) = self.deleted.lock().unwrap().get(key)
            && self.has(Flaw::RemembersTheMetadataOfTheDeleted)
        {
            metadata.extend(old.info.metadata.clone());
        }
        let info = BlobInfo { metadata, ..self.described(key, bytes, options) };
        let kept = bytes.len() - usize::from(self.has(Flaw::LosesTheLastByte) && !bytes.is_empty());
        let stored = Stored { info: info.clone(), bytes: Bytes::copy_from_slice(&bytes[..kept]) };
        blobs.insert(place, stored);
        info
    }

    fn check(&self, bytes: &[u8], options: &PutOptions) -> Result<()> {
        let wrong_size = options.expected_size.is_some_and(|size| size != bytes.len() as u64);
        if wrong_size && !self.has(Flaw::IgnoresTheSize) {
            return Err(Error::invalid("blob.put", "expected_size", "wrong size"));
        }
        let digest = Digest::from_bytes(Sha256::digest(bytes).into());
        let wrong_digest = options.expected_digest.is_some_and(|expected| expected != digest);
        if wrong_digest && !self.has(Flaw::IgnoresTheDigest) {
            return Err(Error::invalid("blob.put", "expected_digest", "wrong digest"));
        }
        if bytes.is_empty() && self.has(Flaw::RefusesEmptyBlobs) {
            return Err(Error::invalid("blob.put", "stream", "empty"));
        }
        Ok(())
    }

    async fn receive(&self, key: &BlobKey, mut stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        if !self.has(Flaw::IgnoresTheLimitsOfOptions) && !self.has(Flaw::ChecksOptionsAtTheEnd) {
            options.validate()?;
        }
        if key.as_str().len() == BlobKey::MAX_LENGTH && self.has(Flaw::RefusesTheLongestKeys) {
            return Err(Error::invalid("blob.put", "key", "too long"));
        }
        let mut connection = self.connect().await?;
        if self.has(Flaw::RemovesTheOldBlobFirst) {
            self.blobs.lock().unwrap().remove(key);
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(error) => {
                    if self.has(Flaw::KeepsWhatCameBeforeAFailure) {
                        self.insert(key, &bytes, &options);
                    }
                    let renamed = self.has(Flaw::RenamesTheStreamsError);
                    return Err(if renamed { error.with_kind(ErrorKind::Internal) } else { error });
                }
            }
            let is_too_long = options.expected_size.is_some_and(|size| size < bytes.len() as u64);
            let checks_late = [Flaw::ChecksTheSizeAtTheEnd, Flaw::IgnoresTheSize, Flaw::StoresWhatItRefuses];
            if is_too_long && !checks_late.into_iter().any(|flaw| self.has(flaw)) {
                return Err(Error::invalid("blob.put", "expected_size", "too long"));
            }
            if self.has(Flaw::ShowsBlobsBeforeTheyAreWhole) {
                self.insert(key, &bytes, &options);
            }
        }
        if self.has(Flaw::ChecksOptionsAtTheEnd) {
            options.validate()?;
        }
        if let Err(error) = self.check(&bytes, &options) {
            if self.has(Flaw::StoresWhatItRefuses) {
                self.insert(key, &bytes, &options);
            }
            return Err(error);
        }
        if let Err(lost) = connection.request(bytes.len()).await {
            if self.has(Flaw::CallsLostRequestsDone) {
                return Ok(self.described(key, &bytes, &options));
            }
            return Err(told("blob.put", lost));
        }
        if self.has(Flaw::StoresInTwoSteps) {
            self.insert(key, &bytes, &PutOptions::default());
            tokio::time::sleep(Duration::from_millis(1)).await;
            let whole = self.insert(key, &bytes, &options);
            // The bytes first, of the one; the description after, of whoever comes last.
            let first = bytes.split_off(bytes.len() / 2);
            if let Some(stored) = self.blobs.lock().unwrap().get_mut(key) {
                stored.bytes = first.into();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut blobs = self.blobs.lock().unwrap();
            if let Some(stored) = blobs.get_mut(key) {
                stored.bytes = [&bytes[..], &stored.bytes[..]].concat().into();
                stored.info = whole.clone();
            }
            return Ok(whole);
        }
        let info = self.insert(key, &bytes, &options);
        match connection.answer(0).await {
            Err(_) if self.has(Flaw::CallsLostAnswersUnavailable) => Err(told("blob.put", Lost::Request)),
            Err(lost) => Err(told("blob.put", lost)),
            Ok(_) => Ok(info),
        }
    }

    fn described(&self, key: &BlobKey, bytes: &[u8], options: &PutOptions) -> BlobInfo {
        BlobInfo {
            key: key.clone(),
            size: bytes.len() as u64,
            digest: Digest::from_bytes(Sha256::digest(bytes).into()),
            content_type: options.content_type.clone().unwrap_or("application/octet-stream".into()),
            metadata: options.metadata.clone(),
            stored_at: Timestamp::UNIX_EPOCH,
        }
    }
}

#[async_trait]
impl BlobStore for BrokenStore {
    fn name(&self) -> &'static str {
        "broken"
    }

    async fn put(&self, key: &BlobKey, stream: ByteStream, options: PutOptions) -> Result<BlobInfo> {
        if self.has(Flaw::GoesOnWhenAbandoned) {
            let (store, key) = (self.clone(), key.clone());
            return tokio::spawn(async move { store.receive(&key, stream, options).await }).await.unwrap();
        }
        self.receive(key, stream, options).await
    }

    async fn get(&self, key: &BlobKey, range: Option<Range<u64>>) -> Result<BlobRead> {
        let mut connection = self.connect().await?;
        reached("blob.get", connection.request(0).await.and(connection.answer(0).await))?;
        let Stored { mut info, bytes } = self.find(key)?;
        if self.has(Flaw::DescribesWhatIsThereLater) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            info = self.find(key)?.info;
        }
        let wanted = range.clone();
        let range = self.range(range, bytes.len() as u64)?;
        let part = bytes.slice(range.start as usize..range.end as usize);
        let longest = if self.has(Flaw::GivesAllInOneChunk) { usize::MAX } else { MAX_CHUNK };
        let stream = if self.has(Flaw::ReadsWhatIsThereNow) {
            let (blobs, key) = (Arc::clone(&self.blobs), key.clone());
            futures::stream::unfold(0, move |at| {
                let bytes =
                    blobs.lock().unwrap().get(&key).map(|stored| stored.bytes.clone()).unwrap_or_default();
                let chunk = bytes.slice(at.min(bytes.len())..(at + 100_000).min(bytes.len()));
                async move { (!chunk.is_empty()).then(|| (Ok(chunk.clone()), at + chunk.len())) }
            })
            .boxed()
        } else if longest == MAX_CHUNK {
            self.over_the_network(info.clone(), part, range.start as usize)
        } else {
            let chunks: Vec<_> =
                part.chunks(longest).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
            futures::stream::iter(chunks).boxed()
        };
        let range = wanted.filter(|_| self.has(Flaw::TellsRangesUncut)).unwrap_or(range);
        Ok(BlobRead { info, range, stream })
    }

    async fn head(&self, key: &BlobKey) -> Result<BlobInfo> {
        let mut connection = self.connect().await?;
        reached("blob.head", connection.request(0).await.and(connection.answer(0).await))?;
        let mut info = self.find(key)?.info;
        match self.flaw {
            Flaw::ForgetsMetadata => info.metadata.clear(),
            Flaw::MakesUpTheType => info.content_type = "application/octet-stream".into(),
            Flaw::MakesUpTheSize => info.size += 1,
            _ => {}
        }
        Ok(info)
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        if self.has(Flaw::DeletesNothing) {
            return Ok(());
        }
        let mut connection = self.connect().await?;
        if let Err(lost) = connection.request(0).await {
            return if self.has(Flaw::CallsLostDeletesDone) {
                Ok(())
            } else {
                Err(told("blob.delete", lost))
            };
        }
        if self.has(Flaw::DeletesLate) {
            let (blobs, place) = (Arc::clone(&self.blobs), self.place(key));
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                blobs.lock().unwrap().remove(&place);
            });
            return Ok(());
        }
        if self.has(Flaw::WantsABlobToDelete) {
            self.find(key)?;
        }
        if self.has(Flaw::DeletesByPrefix) {
            self.blobs.lock().unwrap().retain(|other, _| !other.as_str().starts_with(key.as_str()));
        }
        if let Some(stored) = self.blobs.lock().unwrap().remove(&self.place(key)) {
            self.deleted.lock().unwrap().insert(key.clone(), stored);
        }
        connection.answer(0).await.map(|_| ()).map_err(|lost| told("blob.delete", lost))
    }

    async fn list(&self, prefix: &str, after: Option<&BlobKey>, limit: usize) -> Result<BlobPage> {
        let takes_any = self.has(Flaw::TakesAnyLimit);
        if !takes_any && !(1..=MAX_PAGE).contains(&limit) {
            return Err(Error::invalid("blob.list", "limit", "wrong limit"));
        }
        let limit = limit.clamp(1, MAX_PAGE);
        let mut connection = self.connect().await?;
        reached("blob.list", connection.request(0).await.map(|()| 0))?;
        let entries = self.blobs.lock().unwrap().len();
        let arrived = reached("blob.list", connection.answer(100 * entries).await)? / 100;
        if arrived < entries && !self.has(Flaw::EndsCutListings) {
            return Err(told("blob.list", Lost::Answer).with_kind(ErrorKind::Unavailable));
        }
        let matches = |key: &BlobKey| match self.flaw {
            Flaw::IgnoresThePrefix => true,
            Flaw::TakesPrefixesAsFolders => {
                let folder = prefix.trim_end_matches('/');
                folder.is_empty()
                    || key.as_str().strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
            }
            _ => key.as_str().starts_with(prefix),
        };
        let blobs = self.blobs.lock().unwrap();
        let mut all: Vec<_> =
            blobs.values().map(|stored| stored.info.clone()).filter(|info| matches(&info.key)).collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all.truncate(arrived);
        if self.has(Flaw::ListsTheFirstThousand) {
            all.truncate(1_000);
        }
        let counted = self
            .has(Flaw::CountsInsteadOfComparing)
            .then(|| after.and_then(|key| self.counts.lock().unwrap().get(key).copied()));
        let skipped = match (counted.flatten(), after) {
            (Some(count), _) => count,
            (None, None) => 0,
            (None, Some(after)) => match self.flaw {
                Flaw::StartsPagesWithTheLastBlob => all.iter().take_while(|info| info.key < *after).count(),
                Flaw::LosesItsPlace => {
                    all.iter().position(|info| info.key == *after).map_or(all.len(), |at| at + 1)
                }
                _ => all.iter().take_while(|info| info.key <= *after).count(),
            },
        };
        let rest = all.split_off(skipped.min(all.len()));
        let promises = self.has(Flaw::PromisesAPageMore) && rest.len() == limit;
        let has_more = (rest.len() > limit || promises) && !self.has(Flaw::KnowsOnlyOnePage);
        let mut page: Vec<_> = rest.into_iter().take(limit).collect();
        let next = page.last().filter(|_| has_more).map(|info| info.key.clone());
        if let Some(next) = &next {
            self.counts.lock().unwrap().insert(next.clone(), skipped + page.len());
        }
        if self.has(Flaw::ListsBackwards) {
            page.reverse();
        }
        if self.has(Flaw::ListsWithoutMetadata) {
            page.iter_mut().for_each(|info| info.metadata.clear());
        }
        Ok(BlobPage { blobs: page, next })
    }

    async fn exists(&self, key: &BlobKey) -> Result<bool> {
        let mut connection = self.connect().await?;
        reached("blob.exists", connection.request(0).await.and(connection.answer(0).await))?;
        Ok(self.has(Flaw::SaysThatAllExists) || self.blobs.lock().unwrap().contains_key(&self.place(key)))
    }
}
