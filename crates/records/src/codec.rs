//! How records become bytes.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    Assignment, Controller, ControllerAllocation, ControllerLease, Disk, Event, Image, Incarnation, Snapshot,
    Vm,
};
use flames_state::{Entry, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::stored::{Condemned, ControllerCredential, Idempotency, JoinToken, Tombstone};

/// A type that is stored.
pub trait Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// Its name, for errors.
    const KIND: &'static str;
    /// The schema that this version writes. Grows by one with each change that an older reader would misread.
    const SCHEMA: u32;
}

macro_rules! record {
    ($($type:ty => $kind:literal, $schema:literal);* $(;)?) => {
        $(impl Record for $type {
            const KIND: &'static str = $kind;
            const SCHEMA: u32 = $schema;
        })*
    };
}

// Schema 2: networks. Who rewrote one of these without knowing them would drop a VM's policy, or free an address that is in use.
// Schema 3: networks that change, and snapshots that are differences. Who rewrote one of these without knowing them would drop which
// network is wanted, or in force, or what a snapshot is a difference from.
record! {
    Vm => "vm", 3;
    Incarnation => "incarnation", 3;
    Assignment => "assignment", 3;
    Controller => "controller", 3;
    ControllerAllocation => "allocation", 2;
    ControllerLease => "lease", 1;
    Disk => "disk", 1;
    Image => "image", 1;
    Snapshot => "snapshot", 3;
    Event => "event", 1;
    Tombstone => "tombstone", 3;
    Idempotency => "idempotency", 1;
    Condemned => "condemned", 1;
    ControllerCredential => "credential", 1;
    JoinToken => "join token", 1;
}

#[derive(Serialize)]
struct EnvelopeOut<'a, T> {
    schema: u32,
    record: &'a T,
}

#[derive(Deserialize)]
struct EnvelopeIn<T> {
    schema: u32,
    record: T,
}

/// A record with what is needed to replace it safely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The record, shared with whoever read or wrote it a moment ago.
    pub record: Arc<T>,
    /// When it was last written.
    pub version: Version,
    /// The schema it was written with.
    pub(crate) schema: u32,
}

impl<T> std::ops::Deref for Versioned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.record
    }
}

impl<T: Clone> Versioned<T> {
    /// The record as the caller's own.
    pub fn into_record(self) -> T {
        Arc::unwrap_or_clone(self.record)
    }
}

/// A record that can be shared: one's own or a shared one as it is, a borrowed one as a copy.
pub trait IntoShared<T> {
    /// The shared record.
    fn into_shared(self) -> Arc<T>;
}

impl<T: Record> IntoShared<T> for T {
    fn into_shared(self) -> Arc<T> {
        Arc::new(self)
    }
}

impl<T> IntoShared<T> for Arc<T> {
    fn into_shared(self) -> Self {
        self
    }
}

impl<T: Record> IntoShared<T> for &T {
    fn into_shared(self) -> Arc<T> {
        Arc::new(self.clone())
    }
}

impl<T: Record> Versioned<T> {
    /// `NotSupported` when a newer version wrote the record: rewriting it would drop what this version does not know.
    pub(crate) fn ensure_rewritable(&self) -> Result<()> {
        if self.schema > T::SCHEMA {
            return Err(Error::new(
                ErrorKind::NotSupported,
                "records.write",
                "the record was written by a newer version of Flames; upgrade before changing it",
            )
            .with_context("record", T::KIND)
            .with_context("schema", self.schema));
        }
        Ok(())
    }
}

/// A scratch buffer beyond this is given back rather than kept by its thread.
const SCRATCH_KEPT: usize = 64 * 1024;

thread_local! {
    /// What records are written into before their length is known: the bytes that are kept are then allocated once, and no longer than
    /// they are.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn encode<T: Record>(record: &T) -> Result<Bytes> {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        let written = serde_json::to_writer(&mut *scratch, &EnvelopeOut { schema: T::SCHEMA, record });
        let bytes = Bytes::copy_from_slice(scratch);
        if scratch.capacity() > SCRATCH_KEPT {
            *scratch = Vec::new();
        }
        written.map(|()| bytes).map_err(|error| {
            Error::internal("records.encode", "a record cannot be written as JSON").with_source(error)
        })
    })
}

fn decode_envelope<T: Record>(bytes: &[u8]) -> Result<EnvelopeIn<T>> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "records.decode", "a stored record cannot be read")
            .with_context("record", T::KIND)
            .with_source(error)
    })
}

pub(crate) fn decode<T: Record>(entry: &Entry) -> Result<Versioned<T>> {
    let envelope = decode_envelope::<T>(&entry.value)
        .map_err(|error| error.with_resource("key", entry.key.to_string()))?;
    Ok(Versioned { record: Arc::new(envelope.record), version: entry.version, schema: envelope.schema })
}

pub(crate) fn decode_payload<T: Record>(payload: &[u8]) -> Result<T> {
    decode_envelope(payload).map(|envelope| envelope.record)
}
