//! From a prepared jail to a guest that runs, or is loaded and paused.
//!
//! Every point at which the driver may be killed:
//!
//! * until the jail has its process on record: what the jail's own `launch` says; nothing has run.
//! * from then until `let-go` is written: a Firecracker that is not configured, or is in part. Nothing has run. The next `start`, `stop` or
//!   `destroy` ends it; `start` then begins anew.
//! * between `let-go`, which is written while Firecracker is told of its machine, and the call that lets the guest run: the same, when
//!   Firecracker says `Not started`. One that has loaded a snapshot is then found paused, which `resume` ends; one that is gone counts
//!   as one whose guest has run.
//! * after that: the guest may have run, so the incarnation is never started again.

use std::sync::Arc;

use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_api::SnapshotLoad;
use flames_firecracker_jail::{Jail, Launch};
use flames_vmm::IncarnationName;
use flames_vmm_local::{Folder, Monitor};

use crate::attached::Attached;
use crate::config::{Milestone, Milestones};
use crate::context::Context;
use crate::folder::SpecRecord;
use crate::machine::{API, SERIAL, VSOCK, arguments, check_loaded, configure, configure_output, inside};
use crate::network::{Placement, bring_up, limits_after_load};
use crate::saved::Saved;

const OPERATION: &str = "vmm.start";

/// What is started.
pub(crate) struct Launching<'a> {
    pub(crate) name: &'a IncarnationName,
    pub(crate) folder: &'a Folder,
    pub(crate) jail: &'a Jail,
    pub(crate) record: &'a SpecRecord,
    /// What is loaded; none to boot.
    pub(crate) saved: Option<Saved>,
    pub(crate) leave_paused: bool,
    /// The network is known to be whole.
    pub(crate) has_network: bool,
}

/// Starts Firecracker behind its jailer, and the guest in it.
///
/// After an error that has written no exit, nothing of the guest has run; what is left of the start is the caller's to clear away.
pub(crate) async fn launch(context: &Arc<Context>, launching: Launching<'_>) -> Result<Arc<Attached>> {
    let Launching { folder, jail, record, .. } = &launching;
    let (folder, jail) = (*folder, *jail);
    let placement = place(context, &launching).await?;
    let loaded = match &launching.saved {
        Some(saved) => Some(saved.put_into(jail).await?),
        None => None,
    };
    // Of a start before, that came to nothing.
    jail.remove_file(&inside(VSOCK)?)?;
    // Made before the VMM could put something else in its place.
    drop(jail.pipe(&inside(SERIAL)?)?);
    let launch = Launch { network_namespace: Some(placement.path()), arguments: arguments() };
    let vmm = jail.start(launch).await?;
    drop(jail.answering(&vmm, &inside(API)?, context.config.deadlines.start).await?);
    drop(placement);
    let attached = Arc::new(Attached::new(context, folder.clone(), jail.clone(), vmm));
    attached.listen(context, false)?;
    let ready = async {
        let version = attached.client.version().await?;
        version.check()?;
        configure_output(context, &attached.client, version).await?;
        match &loaded {
            None => configure(context, &attached.client, record).await,
            Some(load) => {
                jail.fall_in_line()?;
                reached(context, launching.name, Milestone::Load);
                load_paused(context, &attached, load, record).await
            }
        }
    };
    // At the same time, since a disk takes its time; to their ends, since a note that comes later than its removal would stay.
    let (ready, noted) = tokio::join!(ready, attached.note_let_go());
    if let Err(error) = ready.and(noted).and_then(|()| jail.fall_in_line()) {
        return Err(given_up(&attached, loaded.is_some(), error).await);
    }
    attached.let_go();
    reached(context, launching.name, Milestone::Run);
    let runs = match (&loaded, launching.leave_paused) {
        (Some(_), true) => Ok(()),
        (Some(_), false) => attached.client.resume().await,
        (None, false) => attached.client.start().await,
        // Firecracker boots running: the guest has run a few instructions before it is paused.
        (None, true) => match attached.client.start().await {
            Ok(()) => {
                attached.client.pause().await.map_err(|error| error.with_kind(ErrorKind::OutcomeUnknown))
            }
            refused => refused,
        },
    };
    match runs {
        Ok(()) => {}
        // Whether the guest has run cannot be known, so the monitor ends and the incarnation with it.
        Err(error) if matches!(error.kind(), ErrorKind::OutcomeUnknown | ErrorKind::Unavailable) => {
            attached.kill().await;
            attached.exit().await?;
            return Err(Error::internal(OPERATION, "the monitor ended as its guest was started")
                .with_user_message("Firecracker ended as it started the machine.")
                .with_source(error));
        }
        Err(error) => return Err(given_up(&attached, loaded.is_some(), error).await),
    }
    Ok(attached)
}

fn reached(context: &Context, name: &IncarnationName, milestone: Milestone) {
    if let Some(Milestones(tell)) = &context.config.milestones {
        tell(name, milestone);
    }
}

/// Where the monitor's process is put.
async fn place(context: &Arc<Context>, launching: &Launching<'_>) -> Result<Placement> {
    let request = launching.record.network.as_ref();
    if launching.has_network
        && let Some(request) = request
        && let Some(networks) = &context.host().await?.networks
    {
        return networks.attachment(request).map(|attachment| Placement::Own(attachment.namespace));
    }
    bring_up(context, request).await
}

/// Loads a snapshot, paused, and makes sure that it is of the machine.
async fn load_paused(
    context: &Context,
    attached: &Attached,
    load: &SnapshotLoad,
    record: &SpecRecord,
) -> Result<()> {
    let mut load = load.clone();
    load.track_dirty_pages = context.config.track_dirty_pages;
    attached.client.load_snapshot(&load).await?;
    check_loaded(&attached.client.config().await?, record)?;
    match limits_after_load(&record.spec.network)? {
        Some(limits) => attached.client.patch_network_interface(&limits).await,
        None => Ok(()),
    }
}

/// Ends a monitor whose guest has run nothing, and says why it could not.
async fn given_up(attached: &Attached, loads: bool, error: Error) -> Error {
    attached.kill().await;
    let words = attached.last_words().await;
    let said = words.as_deref().unwrap_or("nothing");
    let (kind, sentence) = match error.kind() {
        // What waiting or making room mends, or what is said already.
        ErrorKind::Exhausted | ErrorKind::NotSupported | ErrorKind::NotFound => (error.kind(), None),
        // Of what is told to Firecracker only the files are not ours.
        _ if loads => (
            ErrorKind::Corrupt,
            Some(
                "The snapshot cannot be loaded: it is damaged, or was taken on another kind of host. Take a new one.",
            ),
        ),
        ErrorKind::InvalidInput => (
            ErrorKind::InvalidInput,
            Some("Firecracker does not take this machine: see its kernel, its disks and its memory."),
        ),
        ErrorKind::OutcomeUnknown | ErrorKind::Unavailable => {
            (ErrorKind::Internal, Some("Firecracker ended as it made the machine."))
        }
        kind => (kind, None),
    };
    let told = Error::new(kind, OPERATION, format!("{}; it said: {said}", error.message()));
    let told = match sentence.or(error.user_message()) {
        Some(sentence) => told.with_user_message(sentence),
        None => told,
    };
    told.with_source(error)
}
