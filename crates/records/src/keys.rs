//! How keys are spelled. The table in the crate's docs is the overview.

use std::cell::RefCell;
use std::fmt::{Arguments, Write};

use flames_clock::Timestamp;
use flames_error::{Error, Result};
use flames_model::{
    ControllerId, ImageName, IncarnationId, ProjectName, SnapshotId, SnapshotName, VmId, VmName,
};
use flames_state::Key;

use crate::due::DueKey;
use crate::stored::IdempotencyKey;

thread_local! {
    /// Where keys are spelled before their length is known. Holds no more than the longest key that was asked for.
    static SCRATCH: RefCell<String> = const { RefCell::new(String::new()) };
}

fn key(text: Arguments<'_>) -> Result<Key> {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        scratch.write_fmt(text).map_err(|error| {
            Error::internal("records.key", "a part of a key cannot be spelled").with_source(error)
        })?;
        Key::new(&*scratch)
    })
}

pub(crate) fn vms(project: &ProjectName) -> Result<Key> {
    key(format_args!("{project}/vm/"))
}

pub(crate) fn vm(project: &ProjectName, vm: VmId) -> Result<Key> {
    key(format_args!("{project}/vm/{vm}"))
}

/// The last key that can belong to a VM, to continue a listing behind it.
pub(crate) fn vm_end(project: &ProjectName, vm: VmId) -> Result<Key> {
    key(format_args!("{project}/vm/{vm}/\u{7f}"))
}

pub(crate) fn incarnation(project: &ProjectName, vm: VmId, incarnation: IncarnationId) -> Result<Key> {
    key(format_args!("{project}/vm/{vm}/inc/{incarnation}"))
}

pub(crate) fn vm_name(project: &ProjectName, name: &VmName) -> Result<Key> {
    key(format_args!("{project}/vmname/{name}"))
}

pub(crate) fn label_prefix(project: &ProjectName, label: &str, value: &str) -> Result<Key> {
    key(format_args!("{project}/label/{label}\0{value}\0"))
}

pub(crate) fn label(project: &ProjectName, label: &str, value: &str, vm: VmId) -> Result<Key> {
    key(format_args!("{project}/label/{label}\0{value}\0{vm}"))
}

pub(crate) fn image_use_prefix(project: &ProjectName, image: &ImageName) -> Result<Key> {
    key(format_args!("{project}/imageuse/{image}\0"))
}

pub(crate) fn image_use(project: &ProjectName, image: &ImageName, vm: VmId) -> Result<Key> {
    key(format_args!("{project}/imageuse/{image}\0{vm}"))
}

pub(crate) fn tombstone(project: &ProjectName, vm: VmId) -> Result<Key> {
    key(format_args!("{project}/gone/{vm}"))
}

pub(crate) fn images(project: &ProjectName) -> Result<Key> {
    key(format_args!("{project}/image/"))
}

pub(crate) fn image(project: &ProjectName, name: &ImageName) -> Result<Key> {
    key(format_args!("{project}/image/{name}"))
}

pub(crate) fn snapshots(project: &ProjectName) -> Result<Key> {
    key(format_args!("{project}/snapshot/"))
}

pub(crate) fn snapshot(project: &ProjectName, snapshot: SnapshotId) -> Result<Key> {
    key(format_args!("{project}/snapshot/{snapshot}"))
}

pub(crate) fn snapshot_name(project: &ProjectName, name: &SnapshotName) -> Result<Key> {
    key(format_args!("{project}/snapshotname/{name}"))
}

pub(crate) fn snapshot_use_prefix(project: &ProjectName, snapshot: SnapshotId) -> Result<Key> {
    key(format_args!("{project}/snapshotuse/{snapshot}\0"))
}

pub(crate) fn snapshot_use(project: &ProjectName, snapshot: SnapshotId, vm: VmId) -> Result<Key> {
    key(format_args!("{project}/snapshotuse/{snapshot}\0{vm}"))
}

pub(crate) fn disk(project: &ProjectName, vm: VmId) -> Result<Key> {
    key(format_args!("{project}/disk/{vm}"))
}

pub(crate) fn idempotency(of: &IdempotencyKey) -> Result<Key> {
    key(format_args!("{}/idem/{}", of.project, of.digest))
}

pub(crate) fn events(project: Option<&ProjectName>) -> Result<Key> {
    key(format_args!("{}/events", project.map_or("system", ProjectName::as_str)))
}

pub(crate) fn controllers() -> Result<Key> {
    key(format_args!("system/controller/"))
}

pub(crate) fn controller(id: ControllerId) -> Result<Key> {
    key(format_args!("system/controller/{id}"))
}

pub(crate) fn controller_name(name: &VmName) -> Result<Key> {
    key(format_args!("system/controllername/{name}"))
}

pub(crate) fn allocations() -> Result<Key> {
    key(format_args!("system/allocation/"))
}

pub(crate) fn allocation(id: ControllerId) -> Result<Key> {
    key(format_args!("system/allocation/{id}"))
}

pub(crate) fn leases() -> Result<Key> {
    key(format_args!("system/lease/"))
}

pub(crate) fn lease(id: ControllerId) -> Result<Key> {
    key(format_args!("system/lease/{id}"))
}

pub(crate) fn credential(id: ControllerId) -> Result<Key> {
    key(format_args!("system/credential/{id}"))
}

pub(crate) fn join_tokens() -> Result<Key> {
    key(format_args!("system/jointoken/"))
}

pub(crate) fn join_token(digest: &str) -> Result<Key> {
    key(format_args!("system/jointoken/{digest}"))
}

pub(crate) fn assignments(controller: ControllerId) -> Result<Key> {
    key(format_args!("system/assignment/{controller}/"))
}

pub(crate) fn assignment(controller: ControllerId, incarnation: IncarnationId) -> Result<Key> {
    key(format_args!("system/assignment/{controller}/{incarnation}"))
}

pub(crate) fn assigned_log(controller: ControllerId) -> Result<Key> {
    key(format_args!("system/assigned/{controller}"))
}

pub(crate) fn condemned() -> Result<Key> {
    key(format_args!("system/condemned/"))
}

pub(crate) fn condemned_blob(blob: &str) -> Result<Key> {
    key(format_args!("system/condemned/{blob}"))
}

pub(crate) fn condemnations() -> Result<Key> {
    key(format_args!("system/condemnations"))
}

pub(crate) fn all_assignments() -> Result<Key> {
    key(format_args!("system/assignment/"))
}

pub(crate) fn due_prefix() -> Result<Key> {
    key(format_args!("system/due/"))
}

pub(crate) fn due_shard(shard: u8) -> Result<Key> {
    key(format_args!("system/due/{shard:02x}/"))
}

pub(crate) fn due_until(shard: u8, until: Timestamp) -> Result<Key> {
    // Just behind every entry of that millisecond.
    key(format_args!("system/due/{shard:02x}/{:015}0", until.as_millisecond().max(0)))
}

pub(crate) fn due(of: &DueKey) -> Result<Key> {
    key(format_args!("system/due/{:02x}/{of}", of.shard()))
}

pub(crate) fn expiries() -> Result<Key> {
    key(format_args!("system/expiry/"))
}

pub(crate) fn expiries_until(until: Timestamp) -> Result<Key> {
    key(format_args!("system/expiry/{:015}0", until.as_millisecond().max(0)))
}

pub(crate) fn expiry(at: Timestamp, of: &IdempotencyKey) -> Result<Key> {
    key(format_args!("system/expiry/{:015}/{}/{}", at.as_millisecond().max(0), of.project, of.digest))
}
