//! The suite that every VmDriver must pass.
//!
//! Each case is a sentence that the contract (`flames-vmm`) promises; the docs there name the cases that prove each guarantee. An
//! adapter implements [`Harness`] and [`Fixture`] in its `tests/conformance.rs` (`harness = false`) and calls [`run`] from `main`.
//!
//! The cases assume nothing of how fast a machine is: they poll until [`Limits`] say that it is too late. Most need only a monitor that
//! runs, not a guest that has booted.

// A case fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod adoption;
mod ending;
mod guest;
mod lab;
mod network;
mod pausing;
mod preparing;
mod snapshots;
mod starting;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

pub use flames_conformance_runner::{Harness, Time, Unavailable, async_trait, failures};
use flames_conformance_runner::{Interface, Row, Suite, table};
use flames_vmm::{
    AgentChannel, DriverCapabilities, GuestStream, IncarnationName, MachineSpec, NetworkPolicy, NetworkSpec,
    StartFrom, VmDriver,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What the driver, and the guest of [`Fixture::spec`], can do: known without starting anything. A case checks that the driver says
/// the same of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// How the agent's channel behaves.
    pub agent_channel: AgentChannel,
    /// Whether pause and resume work.
    pub pause: bool,
    /// Whether full snapshots work.
    pub snapshot: bool,
    /// Whether diff snapshots work.
    pub diff_snapshot: bool,
    /// Whether user-mode networking works.
    pub user_network: bool,
    /// Whether the policy of a tap can be replaced while its guest lives; then the fixture has [`Fixture::tap`] and
    /// [`Fixture::policy_in_place`].
    pub live_network_policy: bool,
    /// Whether the guest writes on its console while it boots.
    pub guest_writes_console: bool,
    /// Whether something in the guest answers [`Fixture::converse`].
    pub guest_answers: bool,
    /// Whether [`Fixture::power_off_guest`] is implemented.
    pub guest_powers_off: bool,
}

impl Capabilities {
    /// What `told` says, with a guest that does everything.
    pub fn with_able_guest(told: &DriverCapabilities) -> Self {
        Self {
            agent_channel: told.agent_channel,
            pause: told.pause,
            snapshot: told.snapshot,
            diff_snapshot: told.diff_snapshot,
            user_network: told.user_network,
            live_network_policy: told.live_network_policy,
            guest_writes_console: true,
            guest_answers: true,
            guest_powers_off: true,
        }
    }

    fn lacks(self, capability: &str) -> Option<String> {
        let exclusive = self.agent_channel == AgentChannel::Exclusive;
        let (has, otherwise) = match capability {
            "pause" => (self.pause, "it cannot pause"),
            "no_pause" => (!self.pause, "it can pause"),
            "snapshot" => (self.snapshot, "it has no snapshots"),
            "no_snapshot" => (!self.snapshot, "it has snapshots"),
            "diff_snapshot" => (self.diff_snapshot, "it has no diff snapshots"),
            "user_network" => (self.user_network, "it has no user-mode network"),
            "live_network_policy" => (self.live_network_policy, "it replaces no policy of a live machine"),
            "no_live_network_policy" => (!self.live_network_policy, "it replaces policies of live machines"),
            "guest_writes_console" => (self.guest_writes_console, "the guest writes nothing on its console"),
            "guest_answers" => (self.guest_answers, "nothing in the guest answers"),
            "guest_powers_off" => (self.guest_powers_off, "the guest does not power itself off"),
            "exclusive_channel" => {
                (exclusive && self.guest_answers, "its channel has many openers, or nothing answers")
            }
            "multiplexed_channel" => {
                (!exclusive && self.guest_answers, "its channel has one opener, or nothing answers")
            }
            "pause_and_answers" => {
                (self.pause && self.guest_answers, "it cannot pause, or nothing in the guest answers")
            }
            unknown => panic!("the table names a capability that does not exist: {unknown}"),
        };
        (!has).then(|| otherwise.to_owned())
    }
}

/// How long the cases wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For one call of the driver, and for what a call caused to be seen.
    pub call: Duration,
    /// From `start` until the guest writes or answers.
    pub boot: Duration,
    /// Between two looks at what is waited for.
    pub poll: Duration,
    /// How long a guest is given for its power button. The cases may be held up for as long, where the guest has none.
    pub grace: Duration,
    /// How long nothing must happen, where a case waits for nothing: longer than a guest takes to answer.
    pub quiet: Duration,
}

impl Default for Limits {
    /// For real machines, also under emulation on a busy host.
    fn default() -> Self {
        Self {
            call: Duration::from_secs(20),
            boot: Duration::from_secs(45),
            poll: Duration::from_millis(20),
            grace: Duration::from_secs(1),
            quiet: Duration::from_secs(1),
        }
    }
}

/// One host under test, with nothing on it and apart from all others. Dropping it must end and remove whatever a failed case left.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The driver opened last.
    fn driver(&self) -> Arc<dyn VmDriver>;

    /// Drops the driver as `kill -9` of its process would: without telling it first. Guests run on. Nobody calls
    /// [`Fixture::driver`] until [`Fixture::reopen`].
    async fn close(&self);

    /// Makes a new driver over the same host, in place of the one that may be there.
    async fn reopen(&self);

    /// A machine that this driver can really boot. Each call gives the same.
    async fn spec(&self) -> MachineSpec;

    /// What the cases start their guests from: the kernel, or a snapshot of a guest of [`Fixture::spec`] that has booted, where a boot
    /// takes too long for a case.
    async fn start_from(&self) -> StartFrom {
        StartFrom::Boot
    }

    /// How long the cases wait.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Lets time pass.
    async fn settle(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Kills the incarnation's monitor from outside the driver.
    async fn crash(&self, incarnation: &IncarnationName);

    /// Makes the guest power itself off, without the driver. Waits until it has booted, if it must.
    async fn power_off_guest(&self, _incarnation: &IncarnationName) {
        panic!("the harness says that the guest powers itself off, but its fixture has no `power_off_guest`");
    }

    /// Whether the running guest was restored and not booted, where that can be seen from outside the driver; none where it cannot.
    async fn was_restored(&self, _incarnation: &IncarnationName) -> Option<bool> {
        None
    }

    /// As [`Fixture::start_from`], for the machine of [`Fixture::spec`] on the [`Fixture::tap`].
    async fn start_on_tap_from(&self) -> StartFrom {
        self.start_from().await
    }

    /// A tap for the machine of [`Fixture::spec`], with a policy that admits nothing; none where the driver has no taps.
    async fn tap(&self) -> Option<NetworkSpec> {
        None
    }

    /// The policy that the machine's tap is under, as seen from outside the driver.
    async fn policy_in_place(&self, _incarnation: &IncarnationName) -> Option<NetworkPolicy> {
        panic!("the harness says that policies are replaced, but its fixture has no `policy_in_place`");
    }

    /// How many monitors run on this host, as seen from outside the driver.
    async fn monitors(&self) -> usize;

    /// What there is on this host that was made for incarnations (files, processes, devices), in words.
    async fn residue(&self) -> Vec<String>;

    /// Says something to the guest over a fresh connection to the agent's port and waits for its answer. As it stands: the guest echoes.
    async fn converse(&self, stream: &mut GuestStream) -> io::Result<()> {
        const WORDS: &[u8] = b"are you there?\n";
        stream.write_all(WORDS).await?;
        stream.flush().await?;
        let mut answer = [0; WORDS.len()];
        stream.read_exact(&mut answer).await?;
        if answer == WORDS { Ok(()) } else { Err(io::Error::other("the guest answered something else")) }
    }
}

/// Runs the suite as the test binary that it is in.
pub fn run(harness: impl Harness<dyn Fixture>, told: Capabilities) -> ExitCode {
    flames_conformance_runner::run(suite(harness, told))
}

/// The suite for one adapter, whose driver and test guest can do what is `told`.
pub fn suite(harness: impl Harness<dyn Fixture>, told: Capabilities) -> Suite {
    let name = harness.name();
    let lacks = |capability: &str| told.lacks(capability);
    interface().suite_with(harness, lacks, async move |fixture| told_the_truth(name, told, fixture).await)
}

/// What is skipped hangs on what the harness says: so it must be what the driver says.
async fn told_the_truth(name: &str, told: Capabilities, fixture: &dyn Fixture) {
    let driver = fixture.driver();
    let truth = driver.capabilities().await.expect("the driver tells its capabilities");
    assert_eq!(driver.name(), name);
    let guest = |of: Capabilities| Capabilities {
        guest_writes_console: told.guest_writes_console,
        guest_answers: told.guest_answers,
        guest_powers_off: told.guest_powers_off,
        ..of
    };
    assert_eq!(told, guest(Capabilities::with_able_guest(&truth)), "the harness tells the truth");
}

fn interface() -> Interface<dyn Fixture> {
    let rows: Vec<Row<Box<dyn Fixture>>> = table![
        preparing:
            the_capabilities_do_not_change,
            preparing_runs_nothing,
            preparing_twice_changes_nothing,
            preparing_with_another_spec_is_a_conflict,
            a_failed_prepare_leaves_nothing,
            a_kernel_that_is_none_is_refused,
            a_prepare_given_up_can_be_repeated,
            a_forwarded_port_is_chosen_once_and_kept if user_network;
        starting:
            a_started_vm_runs,
            starting_twice_runs_one_vm,
            starting_at_the_same_time_runs_one_vm,
            starting_what_was_not_prepared_is_not_found,
            an_incarnation_that_exited_is_not_started_again,
            a_start_given_up_never_runs_twice,
            a_vm_started_paused_waits_until_it_is_resumed if pause,
            a_running_vm_has_statistics,
            what_does_not_run_has_no_statistics,
            an_update_is_applied_or_not_supported,
            updating_what_does_not_run_is_a_conflict;
        pausing:
            a_paused_vm_is_observed_paused_and_resumes if pause,
            pausing_twice_changes_nothing if pause,
            resuming_twice_changes_nothing if pause,
            pausing_what_does_not_run_is_a_conflict if pause,
            a_paused_guest_does_not_answer if pause_and_answers,
            a_paused_vm_can_be_killed if pause,
            without_the_capability_pausing_is_not_supported if no_pause;
        snapshots:
            a_driver_that_saves_guests_tells_their_processor if snapshot,
            a_snapshot_leaves_the_vm_as_it_was if snapshot,
            a_snapshot_starts_another_incarnation if snapshot,
            a_snapshot_that_is_not_there_starts_nothing if snapshot,
            deleting_a_snapshot_that_is_not_there_is_no_error if snapshot,
            a_diff_snapshot_builds_on_another if diff_snapshot,
            without_the_capability_a_snapshot_is_not_supported if no_snapshot;
        network:
            a_policy_is_replaced_while_its_guest_runs if live_network_policy,
            a_replaced_policy_outlives_its_driver if live_network_policy,
            a_machine_without_a_tap_takes_no_policy if live_network_policy,
            without_the_capability_a_policy_is_not_supported if no_live_network_policy;
        guest:
            a_running_vm_can_be_connected_to if guest_answers,
            connecting_to_what_does_not_run_is_a_conflict,
            a_newer_connection_ends_the_older if exclusive_channel,
            many_connections_are_open_at_once if multiplexed_channel,
            a_connection_ends_with_its_vm if guest_answers,
            a_guest_answers_the_next_driver if guest_answers,
            the_console_reads_on_from_an_offset if guest_writes_console,
            the_console_is_read_after_the_exit if guest_writes_console,
            the_console_of_what_is_not_there_is_not_found;
        adoption:
            an_empty_host_has_nothing_to_adopt,
            a_new_driver_adopts_what_an_earlier_one_left,
            adopting_twice_finds_the_same,
            an_adopted_vm_can_be_stopped_and_destroyed,
            an_adopted_incarnation_can_still_be_started,
            an_adopted_incarnation_keeps_its_spec,
            an_exit_while_no_driver_ran_is_found,
            an_exit_of_an_adopted_vm_is_observed;
        ending:
            a_stopped_vm_has_exited_with_its_cause,
            a_vm_that_ignores_its_power_button_is_killed_after_the_grace,
            stopping_twice_changes_nothing,
            stopping_what_was_only_prepared_changes_nothing,
            stopping_one_vm_leaves_another_running,
            observing_what_is_not_there_is_not_found,
            nothing_can_be_done_to_what_is_not_there,
            an_exit_is_observed,
            an_exit_is_hinted,
            a_guest_that_powers_itself_off_has_exited_by_itself if guest_powers_off,
            a_destroyed_incarnation_is_gone,
            destroying_twice_is_no_error,
            destroying_a_running_vm_kills_it,
            destroying_one_incarnation_leaves_another,
    ];
    Interface { name: "vmm", noun: "driver", rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_every_case_written_and_every_case_promised() {
        flames_conformance_runner::assert_table_is_complete(
            &interface().rows.iter().map(|row| row.name).collect::<Vec<_>>(),
            &[
                include_str!("adoption.rs"),
                include_str!("ending.rs"),
                include_str!("guest.rs"),
                include_str!("network.rs"),
                include_str!("pausing.rs"),
                include_str!("preparing.rs"),
                include_str!("snapshots.rs"),
                include_str!("starting.rs"),
            ],
            &[include_str!("../../src/lib.rs")],
        );
    }

    #[test]
    fn every_capability_that_the_table_names_exists() {
        let all = |agent_channel, able: bool| Capabilities {
            agent_channel,
            pause: able,
            snapshot: able,
            diff_snapshot: able,
            user_network: able,
            live_network_policy: able,
            guest_writes_console: able,
            guest_answers: able,
            guest_powers_off: able,
        };
        let skipped = |capabilities: Capabilities| {
            let rows = interface().rows;
            let lacks = |row: &&Row<_>| row.needs.is_some_and(|needs| capabilities.lacks(needs).is_some());
            rows.iter().filter(lacks).map(|row| row.name).collect::<Vec<_>>()
        };
        assert_eq!(
            skipped(all(AgentChannel::Exclusive, true)),
            [
                "without_the_capability_pausing_is_not_supported",
                "without_the_capability_a_snapshot_is_not_supported",
                "without_the_capability_a_policy_is_not_supported",
                "many_connections_are_open_at_once",
            ]
        );
        let least = skipped(all(AgentChannel::Multiplexed, false));
        assert!(least.len() > 15 && !least.contains(&"without_the_capability_pausing_is_not_supported"));
    }
}
