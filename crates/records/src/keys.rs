//! How keys are spelled. The table in the crate's docs is the overview.

use flames_clock::Timestamp;
use flames_error::Result;
use flames_model::{ControllerId, ImageName, IncarnationId, ProjectName, VmId, VmName};
use flames_state::Key;

use crate::due::DueKey;
use crate::stored::IdempotencyKey;

fn key(text: String) -> Result<Key> {
    Key::new(text)
}

pub(crate) fn vms(project: &ProjectName) -> Result<Key> {
    key(format!("{project}/vm/"))
}

pub(crate) fn vm(project: &ProjectName, vm: VmId) -> Result<Key> {
    key(format!("{project}/vm/{vm}"))
}

/// The last key that can belong to a VM, to continue a listing behind it.
pub(crate) fn vm_end(project: &ProjectName, vm: VmId) -> Result<Key> {
    key(format!("{project}/vm/{vm}/\u{7f}"))
}

pub(crate) fn incarnation(project: &ProjectName, vm: VmId, incarnation: IncarnationId) -> Result<Key> {
    key(format!("{project}/vm/{vm}/inc/{incarnation}"))
}

pub(crate) fn vm_name(project: &ProjectName, name: &VmName) -> Result<Key> {
    key(format!("{project}/vmname/{name}"))
}

pub(crate) fn label_prefix(project: &ProjectName, label: &str, value: &str) -> Result<Key> {
    key(format!("{project}/label/{label}\0{value}\0"))
}

pub(crate) fn label(project: &ProjectName, label: &str, value: &str, vm: VmId) -> Result<Key> {
    key(format!("{project}/label/{label}\0{value}\0{vm}"))
}

pub(crate) fn image_use_prefix(project: &ProjectName, image: &ImageName) -> Result<Key> {
    key(format!("{project}/imageuse/{image}\0"))
}

pub(crate) fn image_use(project: &ProjectName, image: &ImageName, vm: VmId) -> Result<Key> {
    key(format!("{project}/imageuse/{image}\0{vm}"))
}

pub(crate) fn tombstone(project: &ProjectName, vm: VmId) -> Result<Key> {
    key(format!("{project}/gone/{vm}"))
}

pub(crate) fn images(project: &ProjectName) -> Result<Key> {
    key(format!("{project}/image/"))
}

pub(crate) fn image(project: &ProjectName, name: &ImageName) -> Result<Key> {
    key(format!("{project}/image/{name}"))
}

pub(crate) fn disk(project: &ProjectName, vm: VmId) -> Result<Key> {
    key(format!("{project}/disk/{vm}"))
}

pub(crate) fn idempotency(of: &IdempotencyKey) -> Result<Key> {
    key(format!("{}/idem/{}", of.project, of.digest))
}

pub(crate) fn events(project: Option<&ProjectName>) -> Result<Key> {
    key(format!("{}/events", project.map_or("system", ProjectName::as_str)))
}

pub(crate) fn controllers() -> Result<Key> {
    key("system/controller/".to_owned())
}

pub(crate) fn controller(id: ControllerId) -> Result<Key> {
    key(format!("system/controller/{id}"))
}

pub(crate) fn controller_name(name: &VmName) -> Result<Key> {
    key(format!("system/controllername/{name}"))
}

pub(crate) fn allocations() -> Result<Key> {
    key("system/allocation/".to_owned())
}

pub(crate) fn allocation(id: ControllerId) -> Result<Key> {
    key(format!("system/allocation/{id}"))
}

pub(crate) fn leases() -> Result<Key> {
    key("system/lease/".to_owned())
}

pub(crate) fn lease(id: ControllerId) -> Result<Key> {
    key(format!("system/lease/{id}"))
}

pub(crate) fn assignments(controller: ControllerId) -> Result<Key> {
    key(format!("system/assignment/{controller}/"))
}

pub(crate) fn assignment(controller: ControllerId, incarnation: IncarnationId) -> Result<Key> {
    key(format!("system/assignment/{controller}/{incarnation}"))
}

pub(crate) fn assigned_log(controller: ControllerId) -> Result<Key> {
    key(format!("system/assigned/{controller}"))
}

pub(crate) fn condemned() -> Result<Key> {
    key("system/condemned/".to_owned())
}

pub(crate) fn condemned_blob(blob: &str) -> Result<Key> {
    key(format!("system/condemned/{blob}"))
}

pub(crate) fn condemnations() -> Result<Key> {
    key("system/condemnations".to_owned())
}

pub(crate) fn all_assignments() -> Result<Key> {
    key("system/assignment/".to_owned())
}

pub(crate) fn due_prefix() -> Result<Key> {
    key("system/due/".to_owned())
}

pub(crate) fn due_shard(shard: u8) -> Result<Key> {
    key(format!("system/due/{shard:02x}/"))
}

pub(crate) fn due_until(shard: u8, until: Timestamp) -> Result<Key> {
    // Just behind every entry of that millisecond.
    key(format!("system/due/{shard:02x}/{:015}0", until.as_millisecond().max(0)))
}

pub(crate) fn due(of: &DueKey) -> Result<Key> {
    key(format!("system/due/{:02x}/{of}", of.shard()))
}

pub(crate) fn expiries() -> Result<Key> {
    key("system/expiry/".to_owned())
}

pub(crate) fn expiries_until(until: Timestamp) -> Result<Key> {
    key(format!("system/expiry/{:015}0", until.as_millisecond().max(0)))
}

pub(crate) fn expiry(at: Timestamp, of: &IdempotencyKey) -> Result<Key> {
    key(format!("system/expiry/{:015}/{}/{}", at.as_millisecond().max(0), of.project, of.digest))
}
