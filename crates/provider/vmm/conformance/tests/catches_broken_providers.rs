//! Drivers that break one promise each, and the case that catches each. Every case of the suite catches at least one.

mod broken;
#[path = "../../simulated/tests/harness/mod.rs"]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use broken::{Broken, Fault};
use flames_vmm::AgentChannel;
use flames_vmm_conformance::{Time, failures, suite};
use flames_vmm_simulated::{SimulatedConfig, SimulatedTimings};
use harness::Simulated;

const CAUGHT: &[(Fault, &str)] = &[
    (Fault::CapabilitiesChangeAfterAStart, "the_capabilities_do_not_change"),
    (Fault::SaysExclusive, "a_newer_connection_ends_the_older"),
    (Fault::SaysMultiplexed, "many_connections_are_open_at_once"),
    (Fault::PausesThoughItSaysNot, "without_the_capability_pausing_is_not_supported"),
    (Fault::SavesThoughItSaysNot, "without_the_capability_a_snapshot_is_not_supported"),
    (Fault::AdoptForgetsWhatIsPrepared, "a_new_driver_adopts_what_an_earlier_one_left"),
    (Fault::AdoptFindsTwice, "a_new_driver_adopts_what_an_earlier_one_left"),
    (Fault::AdoptFindsAGhost, "an_empty_host_has_nothing_to_adopt"),
    (Fault::AdoptFindsOnlyOnce, "adopting_twice_finds_the_same"),
    (Fault::AdoptKills, "a_new_driver_adopts_what_an_earlier_one_left"),
    (Fault::AdoptBelievesThatAllRuns, "an_exit_while_no_driver_ran_is_found"),
    (Fault::GuestsDieWithTheDriver, "a_new_driver_adopts_what_an_earlier_one_left"),
    (Fault::AdoptedIsNotStopped, "an_adopted_vm_can_be_stopped_and_destroyed"),
    (Fault::AdoptedIsNotStarted, "an_adopted_incarnation_can_still_be_started"),
    (Fault::AdoptedIsNotConnected, "a_guest_answers_the_next_driver"),
    (Fault::AdoptedForgetsItsSpec, "an_adopted_incarnation_keeps_its_spec"),
    (Fault::AdoptedNeverExits, "an_exit_of_an_adopted_vm_is_observed"),
    (Fault::PrepareStarts, "preparing_runs_nothing"),
    (Fault::PrepareTwiceFails, "preparing_twice_changes_nothing"),
    (Fault::PrepareIgnoresAnotherSpec, "preparing_with_another_spec_is_a_conflict"),
    (Fault::PrepareLeavesHalfOnFailure, "a_failed_prepare_leaves_nothing"),
    (Fault::PrepareTakesAnyKernel, "a_kernel_that_is_none_is_refused"),
    (Fault::PrepareRefusesWhatIsHalfMade, "a_prepare_given_up_can_be_repeated"),
    (Fault::PrepareChoosesPortsAnew, "a_forwarded_port_is_chosen_once_and_kept"),
    (Fault::StartAnswersEarly, "a_started_vm_runs"),
    (Fault::StartTwiceRunsTwo, "starting_twice_runs_one_vm"),
    (Fault::StartAtOnceRunsTwo, "starting_at_the_same_time_runs_one_vm"),
    (Fault::StartGivenUpRunsTwo, "a_start_given_up_never_runs_twice"),
    (Fault::StartMakesUpWhatWasNotPrepared, "starting_what_was_not_prepared_is_not_found"),
    (Fault::StartRunsTheExitedAgain, "an_incarnation_that_exited_is_not_started_again"),
    (Fault::StartIgnoresLeavePaused, "a_vm_started_paused_waits_until_it_is_resumed"),
    (Fault::StartDoesNotRestore, "a_snapshot_starts_another_incarnation"),
    (Fault::StartBootsWithoutItsSnapshot, "a_snapshot_starts_another_incarnation"),
    (Fault::StartBootsWithoutItsSnapshot, "a_snapshot_that_is_not_there_starts_nothing"),
    (Fault::StatsStandStill, "a_running_vm_has_statistics"),
    (Fault::StatsOfWhatIsGone, "what_does_not_run_has_no_statistics"),
    (Fault::UpdateTakesAnyDrive, "an_update_is_applied_or_not_supported"),
    (Fault::UpdateTakesWhatDoesNotRun, "updating_what_does_not_run_is_a_conflict"),
    (Fault::PauseDoesNothing, "a_paused_vm_is_observed_paused_and_resumes"),
    (Fault::PauseOnlySaysSo, "a_paused_guest_does_not_answer"),
    (Fault::PauseTwiceResumes, "pausing_twice_changes_nothing"),
    (Fault::ResumeTwiceFails, "resuming_twice_changes_nothing"),
    (Fault::PauseTakesWhatDoesNotRun, "pausing_what_does_not_run_is_a_conflict"),
    (Fault::PauseAnswersConflictForNothing, "nothing_can_be_done_to_what_is_not_there"),
    (Fault::SnapshotLeavesPaused, "a_snapshot_leaves_the_vm_as_it_was"),
    (Fault::SnapshotsAreNotDeleted, "deleting_a_snapshot_that_is_not_there_is_no_error"),
    (Fault::DiffOfNothingIsTaken, "a_diff_snapshot_builds_on_another"),
    (Fault::ConnectsToWhatDoesNotRun, "connecting_to_what_does_not_run_is_a_conflict"),
    (Fault::ConnectionsAreDeaf, "a_running_vm_can_be_connected_to"),
    (Fault::ConnectionsOutliveTheVm, "a_connection_ends_with_its_vm"),
    (Fault::ConsoleIgnoresTheOffset, "the_console_reads_on_from_an_offset"),
    (Fault::ConsoleEndsWithTheVm, "the_console_is_read_after_the_exit"),
    (Fault::ConsoleOfNothingIsEmpty, "the_console_of_what_is_not_there_is_not_found"),
    (Fault::StopAnswersEarly, "a_stopped_vm_has_exited_with_its_cause"),
    (Fault::StopWaitsForTheButton, "a_vm_that_ignores_its_power_button_is_killed_after_the_grace"),
    (Fault::StopTwiceFails, "stopping_twice_changes_nothing"),
    (Fault::StopForgetsWhatIsPrepared, "stopping_what_was_only_prepared_changes_nothing"),
    (Fault::StopSparesThePaused, "a_paused_vm_can_be_killed"),
    (Fault::StopEndsAll, "stopping_one_vm_leaves_another_running"),
    (Fault::ObserveMakesUpWhatIsNotThere, "observing_what_is_not_there_is_not_found"),
    (Fault::ObserveSaysRunningAfterACrash, "an_exit_is_observed"),
    (Fault::ObserveBlamesACrash, "a_guest_that_powers_itself_off_has_exited_by_itself"),
    (Fault::ObserveBlamesACrash, "a_stopped_vm_has_exited_with_its_cause"),
    (Fault::HintsAreLost, "an_exit_is_hinted"),
    (Fault::DestroyOnlyStops, "a_destroyed_incarnation_is_gone"),
    (Fault::DestroyOfNothingFails, "destroying_twice_is_no_error"),
    (Fault::DestroyLeavesSomething, "destroying_a_running_vm_kills_it"),
    (Fault::DestroyRemovesAll, "destroying_one_incarnation_leaves_another"),
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
        Fault::SavesThoughItSaysNot => (harness.told.snapshot, harness.told.diff_snapshot) = (false, false),
        _ => {}
    }
    harness.wrap = Arc::new(move |driver| Arc::new(Broken::new(driver, fault)));
    harness
}

/// What the suite says of a driver, asked only for the cases named, or for all.
fn caught_by(fault: Fault, only: Option<&str>) -> BTreeMap<&'static str, String> {
    let cases = suite(harness_of(fault)).cases;
    let chosen = cases.into_iter().filter(|case| only.is_none_or(|only| case.name == only)).collect();
    failures(chosen, Time::Paused)
}

#[test]
fn the_wrapper_alone_breaks_nothing() {
    assert_eq!(caught_by(Fault::None, None), BTreeMap::new());
}

#[test]
fn each_broken_driver_is_caught_by_its_case() {
    let mut missed = Vec::new();
    for (fault, case) in CAUGHT {
        if !caught_by(*fault, Some(case)).contains_key(case) {
            missed.push((fault, case));
        }
    }
    assert_eq!(missed, [], "not caught");
}

#[test]
fn every_case_catches_a_broken_driver() {
    let cases: BTreeSet<&str> = suite(harness_of(Fault::None)).cases.iter().map(|case| case.name).collect();
    let catching: BTreeSet<&str> = CAUGHT.iter().map(|(_, case)| *case).collect();
    assert_eq!(cases.difference(&catching).collect::<Vec<_>>(), Vec::<&&str>::new(), "catches nothing");
}
