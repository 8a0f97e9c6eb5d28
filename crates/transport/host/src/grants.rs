//! Which controller may do what with which blob.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flames_clock::Monotonic;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{ControllerId, SessionToken, SnapshotManifest};
use flames_service::blob::BlobKey;
use flames_service::{HostBlobs, HostSession, Service, codes};
use http::HeaderMap;

use crate::input::session_of;

/// For how long what a controller may do is known without looking again.
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// Of how many controllers it is known.
const KNOWN: usize = 64;

/// What is to be done with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobAccess {
    /// Read it.
    Read,
    /// Ask what it is.
    Describe,
    /// Store it.
    Store,
}

/// Says who may do what with which blob.
#[async_trait]
pub trait BlobGate: Debug + Send + Sync + 'static {
    /// Errors: `PermissionDenied` when the caller that these headers name may not do that; `LeaseLost`; `NotFound`; `Unavailable`.
    async fn admit(&self, headers: &HeaderMap, key: &BlobKey, access: BlobAccess) -> Result<()>;
}

/// Lets controllers do what their assignments ask for.
#[derive(Debug)]
pub(crate) struct ByAssignment {
    service: Service,
    known: Mutex<BTreeMap<ControllerId, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    session: SessionToken,
    since: Monotonic,
    blobs: Arc<HostBlobs>,
}

impl ByAssignment {
    pub(crate) fn new(service: Service) -> Self {
        Self { service, known: Mutex::default() }
    }

    fn known(&self, session: &HostSession) -> Option<Arc<HostBlobs>> {
        let now = self.service.clock().monotonic();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&session.controller)?;
        let is_fresh = known.session == session.session && now.saturating_since(known.since) < KNOWN_FOR;
        is_fresh.then(|| Arc::clone(&known.blobs))
    }

    async fn read(&self, session: &HostSession) -> Result<Arc<HostBlobs>> {
        let since = self.service.clock().monotonic();
        let blobs = Arc::new(self.service.host_blobs(session).await?);
        let entry = Known { session: session.session, since, blobs: Arc::clone(&blobs) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(session.controller, entry);
        if known.len() > KNOWN {
            let oldest = known.iter().min_by_key(|(_, known)| known.since).map(|(id, _)| *id);
            oldest.map(|id| known.remove(&id));
        }
        Ok(blobs)
    }
}

fn permits(blobs: &HostBlobs, key: &BlobKey, access: BlobAccess) -> bool {
    let is_piece = Piece::of(key).is_some();
    match access {
        BlobAccess::Read => blobs.readable.contains(key.as_str()),
        BlobAccess::Describe => blobs.readable.contains(key.as_str()) || (blobs.stores && is_piece),
        BlobAccess::Store => blobs.stores && is_piece,
    }
}

#[async_trait]
impl BlobGate for ByAssignment {
    async fn admit(&self, headers: &HeaderMap, key: &BlobKey, access: BlobAccess) -> Result<()> {
        let session = session_of(headers)?;
        if self.known(&session).is_some_and(|blobs| permits(&blobs, key, access)) {
            return Ok(());
        }
        // It may have been assigned since.
        if permits(self.read(&session).await?.as_ref(), key, access) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::PermissionDenied, "host.blob", "no assignment of the controller names it")
            .with_resource("blob", key.as_str())
            .with_code(codes::FORBIDDEN)
            .with_user_message("A controller reads only the blobs that its assignments name, and stores only pieces of snapshots that it is to take."))
    }
}

/// A blob whose name tells what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A packed part of a file, by the digest of what it unpacks to.
    Chunk(&'a str),
    /// A list of parts, by its own digest.
    List(&'a str),
}

impl<'a> Piece<'a> {
    pub(crate) fn of(key: &'a BlobKey) -> Option<Self> {
        let rest = key.as_str().strip_prefix(SnapshotManifest::BLOB_PREFIX)?;
        let (kind, digest) = rest.split_once('/')?;
        let is_digest =
            digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match kind {
            "chunks" if is_digest => Some(Self::Chunk(digest)),
            "manifests" if is_digest => Some(Self::List(digest)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> BlobKey {
        BlobKey::new(text).unwrap()
    }

    #[test]
    fn a_controller_reads_what_its_assignments_name_and_stores_only_pieces_while_it_takes_a_snapshot() {
        let piece = format!("snapshots/chunks/{}", "a".repeat(64));
        let idle = HostBlobs { readable: ["images/rootfs/1".to_owned()].into(), stores: false };
        let saving = HostBlobs { stores: true, ..idle.clone() };
        for (blobs, name, access, expected) in [
            (&idle, "images/rootfs/1", BlobAccess::Read, true),
            (&idle, "images/rootfs/2", BlobAccess::Read, false),
            (&idle, "images/rootfs/2", BlobAccess::Describe, false),
            (&idle, "images/rootfs/1", BlobAccess::Store, false),
            (&idle, piece.as_str(), BlobAccess::Describe, false),
            (&idle, piece.as_str(), BlobAccess::Store, false),
            (&saving, piece.as_str(), BlobAccess::Describe, true),
            (&saving, piece.as_str(), BlobAccess::Store, true),
            (&saving, piece.as_str(), BlobAccess::Read, false),
            (&saving, "images/rootfs/1", BlobAccess::Store, false),
            (&saving, "snapshots/chunks/short", BlobAccess::Store, false),
        ] {
            assert_eq!(permits(blobs, &key(name), access), expected, "{name} {access:?}");
        }
    }
}
