//! VmDriver: the virtual machine monitors of one host, as an interface.
//!
//! A driver runs *incarnations*: one try at running one VM. Everything it makes for one (process, folder, sockets, tap, jail)
//! is named after the incarnation alone, outlives the driver's own process, and is found again by [`VmDriver::adopt`].
//!
//! Guarantees, each proven by cases of `flames-vmm-conformance` (named behind each method):
//!
//! * Every call is idempotent per incarnation: repeating one that was applied, or whose answer was lost, changes nothing more.
//! * [`VmDriver::observe`] is the truth; [`VmDriver::exits`] is only a hint.
//! * After [`VmDriver::destroy`] nothing of the incarnation is left on the host.
//! * What a guest writes (console, channels) is bounded in size; it never grows the driver's memory or disk without limit.

mod cpu;
mod machine;
mod types;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flames_error::Result;
use futures::stream::BoxStream;

pub use cpu::GuestCpu;
pub use machine::{
    AddressRange, Bandwidth, BootSource, Drive, Egress, MachineSpec, NetworkPolicy, NetworkSpec, PortForward,
    SecretBytes,
};
pub use types::{
    AgentChannel, ConsoleChunk, DriverCapabilities, Exit, ExitCause, Found, IncarnationName, Observation,
    Phase, Prepared, SnapshotArtefacts, SnapshotKind, StartFrom, Stats, StopHow, Update, Usability,
};

/// The port that the agent in the guest serves, on drivers that tell ports apart (vsock).
pub const AGENT_PORT: u32 = 1024;
/// The most bytes of one [`ConsoleChunk`].
pub const MAX_CONSOLE_CHUNK: usize = 256 * 1024;

/// A byte stream in both directions.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<D: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for D {}

/// A connection to or from a guest.
pub type GuestStream = Box<dyn Duplex>;

/// The virtual machine monitors of one host. See the crate's docs for the guarantees.
///
/// A dropped call may be applied in part; calling it again, or [`VmDriver::destroy`], brings the incarnation to a known state.
#[async_trait]
pub trait VmDriver: Debug + Send + Sync + 'static {
    /// The driver's name (`simulated`, `qemu`, `firecracker`).
    fn name(&self) -> &'static str;

    /// What this driver can do on this host, and whether it works here at all. May probe (bounded by the driver's own deadline)
    /// at the first call; cheap afterwards.
    ///
    /// Cases: `the_capabilities_do_not_change`, `a_driver_that_saves_guests_tells_their_processor`.
    async fn capabilities(&self) -> Result<DriverCapabilities>;

    /// Every incarnation that is on this host, whatever process made it, each with its phase. The driver can work with each of
    /// them from then on. Does not change any guest.
    ///
    /// Errors: `Unavailable`, `Corrupt` for one that cannot be read is not an error: it is found as [`Phase::Unknown`].
    ///
    /// Cases: `a_new_driver_adopts_what_an_earlier_one_left`, `adopting_twice_finds_the_same`,
    /// `an_adopted_vm_can_be_stopped_and_destroyed`, `an_exit_while_no_driver_ran_is_found`.
    async fn adopt(&self) -> Result<Vec<Found>>;

    /// Makes everything that `start` needs and that can be made ahead. Nothing of the guest runs yet. Again with the same spec:
    /// no change; with another one: `Conflict`.
    ///
    /// Errors: `InvalidInput` when the spec cannot be (limits, a kernel that is none); `NotFound` when a file named is not there;
    /// `Exhausted`; `NotSupported`; `Conflict`.
    ///
    /// Cases: `preparing_runs_nothing`, `preparing_twice_changes_nothing`, `preparing_with_another_spec_is_a_conflict`,
    /// `a_failed_prepare_leaves_nothing`.
    async fn prepare(&self, incarnation: &IncarnationName, spec: &MachineSpec) -> Result<Prepared>;

    /// What a `prepare` that takes long waits for now, as a sentence for users; none when it is nothing worth telling. For whoever
    /// shows how far a VM is, while a `prepare` is under way.
    fn waited_for(&self) -> Option<String> {
        None
    }

    /// Starts the prepared guest; returns once it runs (its kernel, not yet its agent), or is loaded and paused when
    /// `leave_paused`. Already running or paused: no change. An incarnation runs at most once: after an exit it is `Conflict`.
    ///
    /// Errors: `NotFound` when it was not prepared; `Conflict` when it has exited; `NotSupported` (snapshot); `Corrupt` (snapshot);
    /// `Internal` with the monitor's own message when it died at once; `Exhausted`, `Unavailable` when the host lacks what it needs now.
    ///
    /// Cases: `a_started_vm_runs`, `starting_twice_runs_one_vm`, `starting_what_was_not_prepared_is_not_found`,
    /// `an_incarnation_that_exited_is_not_started_again`.
    async fn start(&self, incarnation: &IncarnationName, from: StartFrom, leave_paused: bool) -> Result<()>;

    /// Stops the guest's processors. Already paused: no change.
    ///
    /// Errors: `NotFound`; `Conflict` when it is not running; `NotSupported`.
    ///
    /// Cases: `a_paused_vm_is_observed_paused_and_resumes`, `pausing_twice_changes_nothing`, `pausing_what_does_not_run_is_a_conflict`.
    async fn pause(&self, incarnation: &IncarnationName) -> Result<()>;

    /// Lets the guest's processors run on. Already running: no change. Errors: as [`VmDriver::pause`].
    ///
    /// Cases: `a_paused_vm_is_observed_paused_and_resumes`, `resuming_twice_changes_nothing`.
    async fn resume(&self, incarnation: &IncarnationName) -> Result<()>;

    /// Changes a running or paused machine. Errors: `NotSupported` for what the driver cannot change live; `NotFound`; `Conflict`.
    ///
    /// Cases: `an_update_is_applied_or_not_supported`, `a_policy_is_replaced_while_its_guest_runs`,
    /// `a_replaced_policy_outlives_its_driver`, `a_machine_without_a_tap_takes_no_policy`,
    /// `without_the_capability_a_policy_is_not_supported`.
    async fn update(&self, incarnation: &IncarnationName, update: &Update) -> Result<()>;

    /// Saves a running or paused guest; it is in the same phase afterwards. The name is the caller's, unique per incarnation: taken
    /// again under the same name and kind it is the same snapshot.
    ///
    /// Errors: `NotSupported`; `NotFound`; `Conflict`, also for a diff of another snapshot than the last; `Exhausted`.
    ///
    /// Cases: `a_snapshot_leaves_the_vm_as_it_was`, `a_snapshot_starts_another_incarnation`.
    async fn snapshot(
        &self,
        incarnation: &IncarnationName,
        name: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts>;

    /// Removes a snapshot's files. No error when they are not there. A diff of the last snapshot can be taken all the same. Errors:
    /// `NotSupported`.
    ///
    /// Cases: `a_diff_snapshot_builds_on_another`.
    async fn delete_snapshot(&self, incarnation: &IncarnationName, name: &str) -> Result<()>;

    /// Connects to `port` in the guest ([`AGENT_PORT`] for the agent). On a driver whose channel has one opener
    /// ([`AgentChannel::Exclusive`]) only the agent's port exists, and a newer connection ends the older one.
    ///
    /// Errors: `NotFound`; `Conflict` when it is not running; `NotSupported` for another port than the agent's where that is all there is;
    /// `Unavailable` when nothing answers yet.
    ///
    /// Cases: `a_running_vm_can_be_connected_to`, `connecting_to_what_does_not_run_is_a_conflict`.
    async fn connect(&self, incarnation: &IncarnationName, port: u32) -> Result<GuestStream>;

    /// Connections that the guest makes to `port` of its host, until dropped. Errors: `NotSupported`; `NotFound`.
    async fn accept(
        &self,
        incarnation: &IncarnationName,
        port: u32,
    ) -> Result<BoxStream<'static, GuestStream>>;

    /// What the guest wrote on its serial console from offset `from` on, at most [`MAX_CONSOLE_CHUNK`] bytes. The log is bounded: what
    /// was dropped is told by [`ConsoleChunk::offset`] being larger than `from`. Nothing from beyond the end. Works after the exit, until
    /// destroyed.
    ///
    /// Errors: `NotFound`.
    ///
    /// Cases: `the_console_reads_on_from_an_offset`.
    async fn console(&self, incarnation: &IncarnationName, from: u64) -> Result<ConsoleChunk>;

    /// Resource use of a running or paused VM. Errors: `NotFound`; `Conflict` when there is no process.
    ///
    /// Cases: `a_running_vm_has_statistics`.
    async fn stats(&self, incarnation: &IncarnationName) -> Result<Stats>;

    /// Ends the guest: returns once the monitor has exited. [`StopHow::PowerOff`] presses the power button and kills after the
    /// grace; [`StopHow::Kill`] kills. (To ask the agent is the controller's part.) Prepared only, or exited: no change.
    ///
    /// Errors: `NotFound`.
    ///
    /// Cases: `a_stopped_vm_has_exited_with_its_cause`, `stopping_twice_changes_nothing`, `a_paused_vm_can_be_killed`.
    async fn stop(&self, incarnation: &IncarnationName, how: StopHow) -> Result<()>;

    /// What is true of the incarnation now.
    ///
    /// Errors: `NotFound` when this host has nothing of it.
    ///
    /// Cases: `observing_what_is_not_there_is_not_found`, `an_exit_is_observed`.
    async fn observe(&self, incarnation: &IncarnationName) -> Result<Observation>;

    /// Removes everything of the incarnation, killing what runs. No error when there is nothing.
    ///
    /// Cases: `a_destroyed_incarnation_is_gone`, `destroying_twice_is_no_error`, `destroying_a_running_vm_kills_it`.
    async fn destroy(&self, incarnation: &IncarnationName) -> Result<()>;

    /// Names incarnations that have probably exited, from now on. Lossy.
    ///
    /// Cases: `an_exit_is_hinted`.
    async fn exits(&self) -> Result<BoxStream<'static, IncarnationName>>;

    /// The controller goes, and perhaps another comes: removes what is kept for machines to come, and makes no more of it. Incarnations live
    /// on. It ends within a deadline of the driver's; what it could not remove is found by the next `adopt`. Default: nothing is kept.
    async fn close(&self) {}
}

/// Conveniences over any [`VmDriver`].
#[async_trait]
pub trait VmDriverExt: VmDriver {
    /// Ends the guest by the power button, killing after `grace`.
    async fn power_off(&self, incarnation: &IncarnationName, grace: Duration) -> Result<()> {
        self.stop(incarnation, StopHow::PowerOff { grace }).await
    }
}

impl<V: VmDriver + ?Sized> VmDriverExt for V {}

#[async_trait]
impl<V: VmDriver + ?Sized> VmDriver for Arc<V> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    async fn capabilities(&self) -> Result<DriverCapabilities> {
        (**self).capabilities().await
    }
    async fn adopt(&self) -> Result<Vec<Found>> {
        (**self).adopt().await
    }
    async fn prepare(&self, incarnation: &IncarnationName, spec: &MachineSpec) -> Result<Prepared> {
        (**self).prepare(incarnation, spec).await
    }
    fn waited_for(&self) -> Option<String> {
        (**self).waited_for()
    }
    async fn start(&self, incarnation: &IncarnationName, from: StartFrom, leave_paused: bool) -> Result<()> {
        (**self).start(incarnation, from, leave_paused).await
    }
    async fn pause(&self, incarnation: &IncarnationName) -> Result<()> {
        (**self).pause(incarnation).await
    }
    async fn resume(&self, incarnation: &IncarnationName) -> Result<()> {
        (**self).resume(incarnation).await
    }
    async fn update(&self, incarnation: &IncarnationName, update: &Update) -> Result<()> {
        (**self).update(incarnation, update).await
    }
    async fn snapshot(
        &self,
        incarnation: &IncarnationName,
        name: &str,
        kind: SnapshotKind,
    ) -> Result<SnapshotArtefacts> {
        (**self).snapshot(incarnation, name, kind).await
    }
    async fn delete_snapshot(&self, incarnation: &IncarnationName, name: &str) -> Result<()> {
        (**self).delete_snapshot(incarnation, name).await
    }
    async fn connect(&self, incarnation: &IncarnationName, port: u32) -> Result<GuestStream> {
        (**self).connect(incarnation, port).await
    }
    async fn accept(
        &self,
        incarnation: &IncarnationName,
        port: u32,
    ) -> Result<BoxStream<'static, GuestStream>> {
        (**self).accept(incarnation, port).await
    }
    async fn console(&self, incarnation: &IncarnationName, from: u64) -> Result<ConsoleChunk> {
        (**self).console(incarnation, from).await
    }
    async fn stats(&self, incarnation: &IncarnationName) -> Result<Stats> {
        (**self).stats(incarnation).await
    }
    async fn stop(&self, incarnation: &IncarnationName, how: StopHow) -> Result<()> {
        (**self).stop(incarnation, how).await
    }
    async fn observe(&self, incarnation: &IncarnationName) -> Result<Observation> {
        (**self).observe(incarnation).await
    }
    async fn destroy(&self, incarnation: &IncarnationName) -> Result<()> {
        (**self).destroy(incarnation).await
    }
    async fn exits(&self) -> Result<BoxStream<'static, IncarnationName>> {
        (**self).exits().await
    }
    async fn close(&self) {
        (**self).close().await;
    }
}
