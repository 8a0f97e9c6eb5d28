//! Reads.

use flames_clock::Timestamp;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    Assignment, Controller, ControllerAllocation, ControllerId, ControllerLease, Disk, Event, Image,
    ImageName, Incarnation, IncarnationId, Labels, ProjectName, Vm, VmId, VmName, VmState, observed_state,
};
use flames_state::{Entry, Key, KeyRange, PageRequest, Position};

use crate::codec::{Record, Versioned, decode, decode_payload};
use crate::due::{DueEntry, DueKey};
use crate::keys;
use crate::stored::{
    Condemnations, Condemned, ControllerCredential, Expiry, Idempotency, IdempotencyKey, JoinToken, Tombstone,
};
use crate::{MAX_PAGE, Records};

/// A VM with its current incarnation: one consistent cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmEntry {
    /// The VM.
    pub vm: Versioned<Vm>,
    /// Its current incarnation.
    pub incarnation: Option<Versioned<Incarnation>>,
}

impl VmEntry {
    /// How the VM looks from outside.
    pub fn state(&self) -> VmState {
        observed_state(&self.vm, self.incarnation.as_deref())
    }
}

/// Which VMs to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmFilter {
    /// Those that have all these labels.
    pub labels: Labels,
    /// Those that look so.
    pub state: Option<VmState>,
    /// Those whose current incarnation is on this controller.
    pub controller: Option<ControllerId>,
}

impl VmFilter {
    fn takes(&self, entry: &VmEntry) -> bool {
        entry.vm.labels.contain(&self.labels)
            && self.state.is_none_or(|state| state == entry.state())
            && self.controller.is_none_or(|controller| {
                entry.incarnation.as_ref().is_some_and(|incarnation| incarnation.controller == controller)
            })
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage<T, C> {
    /// What was found. May be fewer than asked though there are more, when a filter dropped most of what was read.
    pub items: Vec<T>,
    /// Where to continue behind; none when the list is read to its end.
    pub next: Option<C>,
}

/// A change of one of a controller's assignments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignmentChange {
    /// Its place in the log.
    pub position: Position,
    /// Which assignment changed.
    pub incarnation: IncarnationId,
}

/// An event with its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventEntry {
    /// Where a follower that has seen this event resumes.
    pub position: Position,
    /// The event.
    pub event: Event,
}

pub(crate) fn last_segment<T: std::str::FromStr<Err = Error>>(key: &Key, separator: char) -> Result<T> {
    let text = std::str::from_utf8(key.as_bytes()).ok();
    let segment = text.and_then(|text| text.rsplit(separator).next());
    segment.and_then(|segment| segment.parse().ok()).ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, "records.read", "a key does not end as its kind does")
            .with_resource("key", key.to_string())
    })
}

impl Records {
    fn decode<T: Record>(&self, entry: &Entry) -> Result<Versioned<T>> {
        if let Some(known) = self.decoded.get(entry) {
            return Ok(known);
        }
        let read = decode(entry)?;
        self.decoded.keep(&entry.key, &read);
        Ok(read)
    }

    /// A VM that nobody has just written is read to be listed, or to be placed, which writes another version of it: it is not kept.
    fn decode_vm(&self, entry: &Entry) -> Result<Versioned<Vm>> {
        self.decoded.get(entry).map_or_else(|| decode(entry), Ok)
    }

    /// Puts each VM together with its current incarnation.
    fn group(&self, entries: &[Entry]) -> Result<Vec<VmEntry>> {
        let mut vms: Vec<VmEntry> = Vec::new();
        for entry in entries {
            if entry.key.as_bytes().iter().filter(|byte| **byte == b'/').count() == 2 {
                vms.push(VmEntry { vm: self.decode_vm(entry)?, incarnation: None });
            } else if let Some(owner) = vms.last_mut() {
                let incarnation: Versioned<Incarnation> = self.decode(entry)?;
                if incarnation.vm == owner.vm.id && owner.vm.incarnation == Some(incarnation.id) {
                    owner.incarnation = Some(incarnation);
                }
            }
        }
        Ok(vms)
    }

    pub(crate) async fn read<T: Record>(&self, key: Key) -> Result<Option<Versioned<T>>> {
        self.store().get(&key).await?.map(|entry| self.decode(&entry)).transpose()
    }

    pub(crate) async fn read_id<T: std::str::FromStr<Err = Error>>(&self, key: Key) -> Result<Option<T>> {
        let Some(entry) = self.store().get(&key).await? else { return Ok(None) };
        let id = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok());
        id.map(Some).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "records.read", "an index does not hold an id")
                .with_resource("key", key.to_string())
        })
    }

    pub(crate) async fn read_page<T: Record>(
        &self,
        prefix: Key,
        after: Option<Key>,
        limit: usize,
    ) -> Result<ListPage<Versioned<T>, Key>> {
        let request = PageRequest { after, limit: limit.clamp(1, MAX_PAGE) };
        let page = self.store().scan(&KeyRange::prefix(&prefix), request).await?;
        let items = page.entries.iter().map(|entry| self.decode(entry)).collect::<Result<_>>()?;
        Ok(ListPage { items, next: page.next })
    }

    /// A VM with its current incarnation, or none. A deleted VM has a [`Tombstone`] instead.
    pub async fn vm(&self, project: &ProjectName, id: VmId) -> Result<Option<VmEntry>> {
        let range = KeyRange::prefix(&keys::vm(project, id)?);
        let page = self.store().scan(&range, PageRequest::first(8)).await?;
        Ok(self.group(&page.entries)?.pop())
    }

    /// The id of the VM that has this name.
    pub async fn vm_named(&self, project: &ProjectName, name: &VmName) -> Result<Option<VmId>> {
        self.read_id(keys::vm_name(project, name)?).await
    }

    /// What is left of a deleted VM.
    pub async fn tombstone(&self, project: &ProjectName, id: VmId) -> Result<Option<Versioned<Tombstone>>> {
        self.read(keys::tombstone(project, id)?).await
    }

    /// A page of VMs, by id. With a label among the filters, that label's index is read, else the VMs themselves; either way at
    /// most [`MAX_PAGE`] entries.
    pub async fn list_vms(
        &self,
        project: &ProjectName,
        filter: &VmFilter,
        after: Option<VmId>,
        limit: usize,
    ) -> Result<ListPage<VmEntry, VmId>> {
        let limit = limit.clamp(1, MAX_PAGE);
        match filter.labels.pairs().iter().next() {
            Some((label, value)) => self.list_labelled(project, (label, value), filter, after, limit).await,
            None => self.list_all(project, filter, after, limit).await,
        }
    }

    async fn list_all(
        &self,
        project: &ProjectName,
        filter: &VmFilter,
        after: Option<VmId>,
        limit: usize,
    ) -> Result<ListPage<VmEntry, VmId>> {
        let after = after.map(|vm| keys::vm_end(project, vm)).transpose()?;
        let unfiltered = *filter == VmFilter::default();
        // A VM is one or two entries; its last one tells that the VM is whole, so one more is read than could be needed.
        let read = if unfiltered { (limit * 2 + 1).min(MAX_PAGE) } else { MAX_PAGE };
        let range = KeyRange::prefix(&keys::vms(project)?);
        let page = self.store().scan(&range, PageRequest { after, limit: read }).await?;
        let mut entries = self.group(&page.entries)?;
        if page.next.is_some() && entries.len() > 1 {
            // The last VM's incarnation may lie on the next page.
            entries.pop();
        }
        let last_read = entries.last().map(|entry| entry.vm.id);
        let mut items: Vec<_> = entries.into_iter().filter(|entry| filter.takes(entry)).collect();
        let cut = items.len() > limit;
        items.truncate(limit);
        let next = if cut { items.last().map(|entry| entry.vm.id) } else { page.next.and(last_read) };
        Ok(ListPage { items, next })
    }

    async fn list_labelled(
        &self,
        project: &ProjectName,
        (label, value): (&str, &str),
        filter: &VmFilter,
        after: Option<VmId>,
        limit: usize,
    ) -> Result<ListPage<VmEntry, VmId>> {
        let after = after.map(|vm| keys::label(project, label, value, vm)).transpose()?;
        let range = KeyRange::prefix(&keys::label_prefix(project, label, value)?);
        let page = self.store().scan(&range, PageRequest { after, limit: limit.min(100) }).await?;
        let mut items = Vec::new();
        let mut last = None;
        for entry in &page.entries {
            let id: VmId = last_segment(&entry.key, '\0')?;
            last = Some(id);
            items.extend(self.vm(project, id).await?.filter(|entry| filter.takes(entry)));
        }
        Ok(ListPage { items, next: page.next.and(last) })
    }

    /// An assignment.
    pub async fn assignment(
        &self,
        controller: ControllerId,
        id: IncarnationId,
    ) -> Result<Option<Versioned<Assignment>>> {
        self.read(keys::assignment(controller, id)?).await
    }

    /// A page of a controller's assignments, by incarnation.
    pub async fn assignments(
        &self,
        controller: ControllerId,
        after: Option<IncarnationId>,
        limit: usize,
    ) -> Result<ListPage<Versioned<Assignment>, IncarnationId>> {
        let after = after.map(|id| keys::assignment(controller, id)).transpose()?;
        let page = self.read_page::<Assignment>(keys::assignments(controller)?, after, limit).await?;
        let next = page.next.as_ref().map(|key| last_segment(key, '/')).transpose()?;
        Ok(ListPage { items: page.items, next })
    }

    /// Which of a controller's assignments changed behind `after`, oldest first.
    pub async fn assignment_changes(
        &self,
        controller: ControllerId,
        after: Position,
        limit: usize,
    ) -> Result<Vec<AssignmentChange>> {
        let log = keys::assigned_log(controller)?;
        let entries = self.store().read_log(&log, after, limit.clamp(1, MAX_PAGE)).await?;
        let parse = |entry: flames_state::LogEntry| {
            let id = std::str::from_utf8(&entry.payload).ok().and_then(|text| text.parse().ok());
            let corrupt =
                || Error::new(ErrorKind::Corrupt, "records.read", "a log of assignments does not hold an id");
            Ok(AssignmentChange { position: entry.position, incarnation: id.ok_or_else(corrupt)? })
        };
        entries.into_iter().map(parse).collect()
    }

    /// A VM's persistent disk.
    pub async fn disk(&self, project: &ProjectName, vm: VmId) -> Result<Option<Versioned<Disk>>> {
        self.read(keys::disk(project, vm)?).await
    }

    /// A controller.
    pub async fn controller(&self, id: ControllerId) -> Result<Option<Versioned<Controller>>> {
        self.read(keys::controller(id)?).await
    }

    /// The id of the controller that has this name.
    pub async fn controller_named(&self, name: &VmName) -> Result<Option<ControllerId>> {
        self.read_id(keys::controller_name(name)?).await
    }

    /// A page of controllers, by id.
    pub async fn controllers(
        &self,
        after: Option<ControllerId>,
        limit: usize,
    ) -> Result<ListPage<Versioned<Controller>, ControllerId>> {
        let after = after.map(keys::controller).transpose()?;
        let page = self.read_page::<Controller>(keys::controllers()?, after, limit).await?;
        let next = page.next.and(page.items.last().map(|controller| controller.id));
        Ok(ListPage { items: page.items, next })
    }

    /// What is reserved on a controller.
    pub async fn allocation(&self, id: ControllerId) -> Result<Option<Versioned<ControllerAllocation>>> {
        self.read(keys::allocation(id)?).await
    }

    /// What is reserved on each controller: at most [`MAX_PAGE`] of them behind `after`.
    pub async fn allocations(
        &self,
        after: Option<ControllerId>,
    ) -> Result<ListPage<Versioned<ControllerAllocation>, ControllerId>> {
        let after = after.map(keys::allocation).transpose()?;
        let page = self.read_page::<ControllerAllocation>(keys::allocations()?, after, MAX_PAGE).await?;
        let next = page.next.and(page.items.last().map(|allocation| allocation.controller));
        Ok(ListPage { items: page.items, next })
    }

    /// A controller's lease.
    pub async fn lease(&self, id: ControllerId) -> Result<Option<Versioned<ControllerLease>>> {
        self.read(keys::lease(id)?).await
    }

    /// What a controller proves itself with; none: it never registered over a network.
    pub async fn credential(&self, id: ControllerId) -> Result<Option<Versioned<ControllerCredential>>> {
        self.read(keys::credential(id)?).await
    }

    /// A join token, by its digest.
    pub async fn join_token(&self, digest: &str) -> Result<Option<Versioned<JoinToken>>> {
        self.read(keys::join_token(digest)?).await
    }

    /// All join tokens, at most [`MAX_PAGE`] of them.
    pub async fn join_tokens(&self) -> Result<Vec<Versioned<JoinToken>>> {
        Ok(self.read_page::<JoinToken>(keys::join_tokens()?, None, MAX_PAGE).await?.items)
    }

    /// The leases of all controllers: at most [`MAX_PAGE`] of them behind `after`.
    pub async fn leases(
        &self,
        after: Option<ControllerId>,
    ) -> Result<ListPage<Versioned<ControllerLease>, ControllerId>> {
        let after = after.map(keys::lease).transpose()?;
        let page = self.read_page::<ControllerLease>(keys::leases()?, after, MAX_PAGE).await?;
        let next = page.next.and(page.items.last().map(|lease| lease.controller));
        Ok(ListPage { items: page.items, next })
    }

    /// An image.
    pub async fn image(&self, project: &ProjectName, name: &ImageName) -> Result<Option<Versioned<Image>>> {
        self.read(keys::image(project, name)?).await
    }

    /// A page of images, by name.
    pub async fn images(
        &self,
        project: &ProjectName,
        after: Option<&ImageName>,
        limit: usize,
    ) -> Result<ListPage<Versioned<Image>, ImageName>> {
        let after = after.map(|name| keys::image(project, name)).transpose()?;
        let page = self.read_page::<Image>(keys::images(project)?, after, limit).await?;
        let next = page.next.and(page.items.last().map(|image| image.name.clone()));
        Ok(ListPage { items: page.items, next })
    }

    /// Some VM that uses an image, if any does.
    pub async fn image_user(&self, project: &ProjectName, name: &ImageName) -> Result<Option<VmId>> {
        let range = KeyRange::prefix(&keys::image_use_prefix(project, name)?);
        let page = self.store().scan(&range, PageRequest::first(1)).await?;
        page.entries.first().map(|entry| last_segment(&entry.key, '\0')).transpose()
    }

    /// A page of all assignments, of whichever controller.
    pub async fn all_assignments(
        &self,
        after: Option<Key>,
        limit: usize,
    ) -> Result<ListPage<Versioned<Assignment>, Key>> {
        self.read_page(keys::all_assignments()?, after, limit).await
    }

    /// Whether a blob is condemned.
    pub async fn condemned(&self, blob: &str) -> Result<Option<Versioned<Condemned>>> {
        self.read(keys::condemned_blob(blob)?).await
    }

    /// A page of the blobs that are condemned, by key.
    pub async fn all_condemned(
        &self,
        after: Option<Key>,
        limit: usize,
    ) -> Result<ListPage<Versioned<Condemned>, Key>> {
        self.read_page(keys::condemned()?, after, limit).await
    }

    /// How often blobs were condemned up to now: for [`Change::keep_blob`](crate::Change::keep_blob).
    pub async fn condemnations(&self) -> Result<Condemnations> {
        Ok(Condemnations(self.store().get(&keys::condemnations()?).await?.map(|entry| entry.version)))
    }

    /// What came of a request, if it was carried out.
    pub async fn idempotency(&self, key: &IdempotencyKey) -> Result<Option<Versioned<Idempotency>>> {
        self.read(keys::idempotency(key)?).await
    }

    /// Idempotency records whose time is up at `now`: at most `limit`.
    pub async fn expired_idempotency(&self, now: Timestamp, limit: usize) -> Result<Vec<Expiry>> {
        let range = KeyRange::between(&keys::expiries()?, &keys::expiries_until(now)?);
        let page = self.store().scan(&range, PageRequest::first(limit.clamp(1, MAX_PAGE))).await?;
        let parse = |entry: &Entry| {
            let text = std::str::from_utf8(entry.key.as_bytes()).ok()?;
            let mut parts = text.strip_prefix("system/expiry/")?.split('/');
            let at = Timestamp::from_millisecond(parts.next()?.parse().ok()?).ok()?;
            let project = ProjectName::new(parts.next()?).ok()?;
            Some(Expiry { at, key: IdempotencyKey { project, digest: parts.next()?.to_owned() } })
        };
        let corrupt = || Error::new(ErrorKind::Corrupt, "records.read", "an expiry key cannot be read");
        page.entries.iter().map(|entry| parse(entry).ok_or_else(corrupt)).collect()
    }

    /// One due entry.
    pub async fn due(&self, key: &DueKey) -> Result<Option<DueEntry>> {
        let entry = self.store().get(&keys::due(key)?).await?;
        Ok(entry.map(|entry| DueEntry { key: key.clone(), version: entry.version }))
    }

    /// The due entries of one shard up to `now`, oldest first, behind `after`: at most `limit`.
    pub async fn due_entries(
        &self,
        shard: u8,
        now: Timestamp,
        after: Option<&DueKey>,
        limit: usize,
    ) -> Result<ListPage<DueEntry, DueKey>> {
        let range = KeyRange::between(&keys::due_shard(shard)?, &keys::due_until(shard, now)?);
        let after = after.map(keys::due).transpose()?;
        let page = self.store().scan(&range, PageRequest { after, limit: limit.clamp(1, MAX_PAGE) }).await?;
        let parse = |entry: &Entry| Ok(DueEntry { key: due_key(&entry.key)?, version: entry.version });
        let items: Vec<_> = page.entries.iter().map(parse).collect::<Result<_>>()?;
        let next = page.next.and(items.last().map(|entry| entry.key.clone()));
        Ok(ListPage { items, next })
    }

    /// The due entry that a store key names; none when it names something else. For hints.
    pub fn due_key_of(key: &Key) -> Option<DueKey> {
        due_key(key).ok()
    }

    /// Events of a project's log (none: the system's) behind `after`, oldest first: at most `limit`.
    pub async fn events(
        &self,
        project: Option<&ProjectName>,
        after: Position,
        limit: usize,
    ) -> Result<Vec<EventEntry>> {
        let entries = self.store().read_log(&keys::events(project)?, after, limit.clamp(1, MAX_PAGE)).await?;
        let parse = |entry: flames_state::LogEntry| {
            Ok(EventEntry { position: entry.position, event: decode_payload(&entry.payload)? })
        };
        entries.into_iter().map(parse).collect()
    }
}

fn due_key(key: &Key) -> Result<DueKey> {
    let text = std::str::from_utf8(key.as_bytes()).ok();
    let entry = text.and_then(|text| text.strip_prefix("system/due/")).and_then(|rest| rest.split_once('/'));
    let corrupt = || {
        Error::new(ErrorKind::Corrupt, "records.due", "not a due entry").with_resource("key", key.to_string())
    };
    entry.ok_or_else(corrupt)?.1.parse()
}
