//! Drivers that break one promise each, and the case that catches each. Every case of the suite catches at least one.

mod broken;
#[path = "../../simulated/tests/harness/mod.rs"]
mod harness;

use std::process::ExitCode;
use std::sync::Arc;

use broken::{Broken, Fault};
use flames_conformance_runner::{Caught, WrongProviders, caught};
use flames_vmm::AgentChannel;
use flames_vmm_simulated::{SimulatedConfig, SimulatedTimings};
use harness::Simulated;

const CAUGHT: &Caught<Fault> = caught![Fault:
    CapabilitiesChangeAfterAStart => the_capabilities_do_not_change;
    SaysExclusive => a_newer_connection_ends_the_older;
    SaysMultiplexed => many_connections_are_open_at_once;
    PausesThoughItSaysNot => without_the_capability_pausing_is_not_supported;
    SavesThoughItSaysNot => without_the_capability_a_snapshot_is_not_supported;
    AdoptForgetsWhatIsPrepared => a_new_driver_adopts_what_an_earlier_one_left;
    AdoptFindsTwice => a_new_driver_adopts_what_an_earlier_one_left;
    AdoptFindsAGhost => an_empty_host_has_nothing_to_adopt;
    AdoptFindsOnlyOnce => adopting_twice_finds_the_same;
    AdoptKills => a_new_driver_adopts_what_an_earlier_one_left;
    AdoptBelievesThatAllRuns => an_exit_while_no_driver_ran_is_found;
    GuestsDieWithTheDriver => a_new_driver_adopts_what_an_earlier_one_left;
    AdoptedIsNotStopped => an_adopted_vm_can_be_stopped_and_destroyed;
    AdoptedIsNotStarted => an_adopted_incarnation_can_still_be_started;
    AdoptedIsNotConnected => a_guest_answers_the_next_driver;
    AdoptedForgetsItsSpec => an_adopted_incarnation_keeps_its_spec;
    AdoptedNeverExits => an_exit_of_an_adopted_vm_is_observed;
    PrepareStarts => preparing_runs_nothing;
    PrepareTwiceFails => preparing_twice_changes_nothing;
    PrepareIgnoresAnotherSpec => preparing_with_another_spec_is_a_conflict;
    PrepareLeavesHalfOnFailure => a_failed_prepare_leaves_nothing;
    PrepareTakesAnyKernel => a_kernel_that_is_none_is_refused;
    PrepareRefusesWhatIsHalfMade => a_prepare_given_up_can_be_repeated;
    PrepareChoosesPortsAnew => a_forwarded_port_is_chosen_once_and_kept;
    StartAnswersEarly => a_started_vm_runs;
    StartTwiceRunsTwo => starting_twice_runs_one_vm;
    StartAtOnceRunsTwo => starting_at_the_same_time_runs_one_vm;
    StartGivenUpRunsTwo => a_start_given_up_never_runs_twice;
    StartMakesUpWhatWasNotPrepared => starting_what_was_not_prepared_is_not_found;
    StartRunsTheExitedAgain => an_incarnation_that_exited_is_not_started_again;
    StartIgnoresLeavePaused => a_vm_started_paused_waits_until_it_is_resumed;
    StartDoesNotRestore => a_snapshot_starts_another_incarnation;
    StartBootsWithoutItsSnapshot => a_snapshot_starts_another_incarnation, a_snapshot_that_is_not_there_starts_nothing;
    StatsStandStill => a_running_vm_has_statistics;
    StatsOfWhatIsGone => what_does_not_run_has_no_statistics;
    UpdateTakesAnyDrive => an_update_is_applied_or_not_supported;
    UpdateTakesWhatDoesNotRun => updating_what_does_not_run_is_a_conflict;
    ReplacesPoliciesThoughItSaysNot => without_the_capability_a_policy_is_not_supported;
    PolicyOnlySaysSo => a_policy_is_replaced_while_its_guest_runs;
    PolicyEndsWithItsDriver => a_replaced_policy_outlives_its_driver;
    PolicyOfNoTapIsTaken => a_machine_without_a_tap_takes_no_policy;
    PauseDoesNothing => a_paused_vm_is_observed_paused_and_resumes;
    PauseOnlySaysSo => a_paused_guest_does_not_answer;
    PauseTwiceResumes => pausing_twice_changes_nothing;
    ResumeTwiceFails => resuming_twice_changes_nothing;
    PauseTakesWhatDoesNotRun => pausing_what_does_not_run_is_a_conflict;
    PauseAnswersConflictForNothing => nothing_can_be_done_to_what_is_not_there;
    SavesOnAProcessorUntold => a_driver_that_saves_guests_tells_their_processor;
    SnapshotLeavesPaused => a_snapshot_leaves_the_vm_as_it_was;
    SnapshotsAreNotDeleted => deleting_a_snapshot_that_is_not_there_is_no_error;
    DiffOfNothingIsTaken => a_diff_snapshot_builds_on_another;
    ConnectsToWhatDoesNotRun => connecting_to_what_does_not_run_is_a_conflict;
    ConnectionsAreDeaf => a_running_vm_can_be_connected_to;
    ConnectionsOutliveTheVm => a_connection_ends_with_its_vm;
    ConsoleIgnoresTheOffset => the_console_reads_on_from_an_offset;
    ConsoleEndsWithTheVm => the_console_is_read_after_the_exit;
    ConsoleOfNothingIsEmpty => the_console_of_what_is_not_there_is_not_found;
    StopAnswersEarly => a_stopped_vm_has_exited_with_its_cause;
    StopWaitsForTheButton => a_vm_that_ignores_its_power_button_is_killed_after_the_grace;
    StopTwiceFails => stopping_twice_changes_nothing;
    StopForgetsWhatIsPrepared => stopping_what_was_only_prepared_changes_nothing;
    StopSparesThePaused => a_paused_vm_can_be_killed;
    StopEndsAll => stopping_one_vm_leaves_another_running;
    ObserveMakesUpWhatIsNotThere => observing_what_is_not_there_is_not_found;
    ObserveSaysRunningAfterACrash => an_exit_is_observed;
    ObserveBlamesACrash => a_guest_that_powers_itself_off_has_exited_by_itself, a_stopped_vm_has_exited_with_its_cause;
    HintsAreLost => an_exit_is_hinted;
    DestroyOnlyStops => a_destroyed_incarnation_is_gone;
    DestroyOfNothingFails => destroying_twice_is_no_error;
    DestroyLeavesSomething => destroying_a_running_vm_kills_it;
    DestroyRemovesAll => destroying_one_incarnation_leaves_another;
];

fn harness_of(fault: Fault) -> Simulated {
    let agent_channel = match fault {
        Fault::SaysExclusive => AgentChannel::Multiplexed,
        _ => AgentChannel::Exclusive,
    };
    let timings = SimulatedTimings::realistic();
    let config = SimulatedConfig { agent_channel, timings, ..SimulatedConfig::default() };
    let mut harness = Simulated::new(config);
    match fault {
        Fault::SaysExclusive => harness.told.agent_channel = AgentChannel::Exclusive,
        Fault::SaysMultiplexed => harness.told.agent_channel = AgentChannel::Multiplexed,
        Fault::PausesThoughItSaysNot => harness.told.pause = false,
        Fault::ReplacesPoliciesThoughItSaysNot => harness.told.live_network_policy = false,
        Fault::SavesThoughItSaysNot => (harness.told.snapshot, harness.told.diff_snapshot) = (false, false),
        _ => {}
    }
    harness.wrap = Arc::new(move |driver| Arc::new(Broken::new(driver, fault)));
    harness
}

fn main() -> ExitCode {
    WrongProviders::new().add("driver", |fault| harness_of(fault).suite(), &[Fault::None], CAUGHT).run()
}
