//! Requests to the cloud: each with a deadline, repeated where that can help.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flames_blob::BlobKey;
use flames_clock::{Clock, ClockExt, Random, RandomExt};
use flames_error::{Error, ErrorKind, Result};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    UpdateVersion,
};

use super::config::CloudLimits;
use super::failures::{Failure, Place};
use super::names::Names;
use crate::record::{self, Described, MAX_JSON};

/// What we use of a cloud.
pub(super) trait Objects: ObjectStore + MultipartStore + PaginatedListStore {}

impl<O: ObjectStore + MultipartStore + PaginatedListStore> Objects for O {}

/// The body of an object, as it comes.
pub(super) type Body = BoxStream<'static, object_store::Result<Bytes>>;

#[derive(Debug)]
pub(super) struct Calls {
    pub(super) objects: Arc<dyn Objects>,
    pub(super) place: Place,
    pub(super) names: Names,
    pub(super) limits: CloudLimits,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<dyn Random>,
}

/// A page of names.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<ObjectMeta>,
    pub(super) token: Option<String>,
}

impl Calls {
    /// One try.
    pub(super) async fn once<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = object_store::Result<T>> + Send,
    ) -> Result<T, Failure> {
        match self.clock.timeout(self.limits.call, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.place.failure(operation, error)),
            Err(deadline) => Err(self.place.too_slow(operation, deadline)),
        }
    }

    /// So many tries as are allowed, of a request that may be done twice. When it failed and one of the tries may be done, the
    /// failure says so.
    pub(super) async fn repeat<T, F>(
        &self,
        operation: &'static str,
        mut request: impl FnMut() -> F + Send,
    ) -> Result<T, Failure>
    where
        F: Future<Output = object_store::Result<T>> + Send,
    {
        let mut may_be_done = false;
        for attempt in 1.. {
            match self.once(operation, request()).await {
                Err(Failure::Passing { may_be_done: this_may, error }) => {
                    may_be_done |= this_may;
                    if attempt >= self.limits.attempts {
                        return Err(Failure::Passing { may_be_done, error });
                    }
                    self.pause(attempt).await;
                }
                answer => return answer,
            }
        }
        Err(Failure::Final(Error::internal(operation, "the tries ran out")))
    }

    /// The pause after the failed try of this number, counted from 1.
    pub(super) async fn pause(&self, attempt: u32) {
        let doubled = self.limits.first_pause.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        let whole = u64::try_from(doubled.min(self.limits.longest_pause).as_micros()).unwrap_or(u64::MAX);
        let half = whole / 2;
        self.clock.sleep(Duration::from_micros(half + self.random.below(half + 1))).await;
    }

    pub(super) async fn put(
        &self,
        operation: &'static str,
        path: &Path,
        payload: PutPayload,
    ) -> Result<(), Failure> {
        self.repeat(operation, || self.objects.put_opts(path, payload.clone(), PutOptions::default()))
            .await?;
        Ok(())
    }

    pub(super) async fn put_once(
        &self,
        operation: &'static str,
        path: &Path,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<UpdateVersion, Failure> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.once(operation, self.objects.put_opts(path, bytes.into(), options)).await.map(Into::into)
    }

    pub(super) async fn head(&self, operation: &'static str, path: &Path) -> Result<Option<ObjectMeta>> {
        match self.repeat(operation, || self.objects.head(path)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure.into_error(operation)),
        }
    }

    /// No failure when the object is not there.
    pub(super) async fn delete(&self, operation: &'static str, path: &Path) -> Result<(), Failure> {
        match self.repeat(operation, || self.objects.delete(path)).await {
            Ok(()) | Err(Failure::Missing) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Opens the body of an object, or of a part of it; one try. With a tag, only of that version of it.
    pub(super) async fn open(
        &self,
        operation: &'static str,
        path: &Path,
        part: Option<Range<u64>>,
        tag: Option<String>,
    ) -> Result<(Body, Option<String>), Failure> {
        let options =
            GetOptions { range: part.map(GetRange::Bounded), if_match: tag, ..GetOptions::default() };
        let found = self.once(operation, self.objects.get_opts(path, options)).await?;
        let tag = found.meta.e_tag.clone();
        Ok((found.into_stream(), tag))
    }

    /// The record of a key, and its version; none when there is none.
    pub(super) async fn record(
        &self,
        operation: &'static str,
        key: &BlobKey,
    ) -> Result<Option<(Described, UpdateVersion)>> {
        let path = self.names.record(key);
        let read = || async {
            let found = self.objects.get_opts(&path, GetOptions::default()).await?;
            let version =
                UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
            let mut body = found.into_stream();
            let mut json = Vec::new();
            while let Some(chunk) = body.next().await {
                json.extend_from_slice(&chunk?);
                if json.len() > MAX_JSON {
                    break;
                }
            }
            Ok((json, version))
        };
        let (json, version) = match self.repeat(operation, read).await {
            Ok(found) => found,
            Err(Failure::Missing) => return Ok(None),
            Err(failure) => return Err(failure.into_error(operation).with_resource("blob", key.as_str())),
        };
        let described = record::read(operation, &json)
            .map_err(|error| error.with_resource("blob", key.as_str()).with_context("object", &path))?;
        if described.info.key != *key || described.data.is_none() {
            return Err(Error::new(ErrorKind::Corrupt, operation, "the blob's record is that of another")
                .with_resource("blob", key.as_str())
                .with_context("object", &path));
        }
        Ok(Some((described, version)))
    }

    /// A page of the objects whose names begin with `prefix`, in the order of their names.
    pub(super) async fn page(
        &self,
        operation: &'static str,
        prefix: &str,
        offset: Option<&str>,
        token: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Page> {
        let request = || {
            let options = PaginatedListOptions {
                offset: offset.map(str::to_owned),
                max_keys: limit,
                page_token: token.map(str::to_owned),
                ..PaginatedListOptions::default()
            };
            self.objects.list_paginated(Some(prefix), options)
        };
        let page = self.repeat(operation, request).await.map_err(|failure| failure.into_error(operation))?;
        Ok(Page { objects: page.result.objects, token: page.page_token })
    }
}
