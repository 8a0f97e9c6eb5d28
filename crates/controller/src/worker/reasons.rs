//! Why something failed, in sentences for users.

use flames_error::{Error, ErrorKind};
use flames_guest_protocol::message::ProcessExit;
use flames_model::{Exit, ExitCause, IncarnationState, Reason, ReasonCode, Timestamp};
use flames_vmm::{Exit as MonitorExit, ExitCause as MonitorCause};

/// What a user may read of an error, or what its kind says.
fn sentence(error: &Error) -> String {
    if let Some(sentence) = error.user_message() {
        return sentence.to_owned();
    }
    let says = match error.kind() {
        ErrorKind::NotFound => "something that it needs is not there",
        ErrorKind::InvalidInput => "the host refused its machine as impossible",
        ErrorKind::NotSupported => "the host's driver cannot do that",
        ErrorKind::PermissionDenied => "the host's controller lacks a permission",
        ErrorKind::Exhausted => "the host has no room for it",
        ErrorKind::Corrupt => "stored data that it needs is damaged",
        ErrorKind::Unavailable | ErrorKind::OutcomeUnknown => {
            "the host's storage or driver did not answer in time"
        }
        ErrorKind::AlreadyExists
        | ErrorKind::Conflict
        | ErrorKind::LeaseLost
        | ErrorKind::CacheMiss
        | ErrorKind::NoJobs
        | ErrorKind::Internal => "the host met an internal error; its log says more",
    };
    format!("{says} ({})", error.operation())
}

pub(crate) fn not_prepared(error: &Error) -> Reason {
    let is_image =
        error.kind() == ErrorKind::NotFound && error.resource().is_some_and(|(kind, _)| kind == "blob");
    if is_image {
        let message = "An image that the VM needs is not in the store any more. Import it again.";
        return Reason::new(ReasonCode::ImageMissing, message);
    }
    Reason::new(ReasonCode::NotPrepared, format!("The machine could not be made: {}", sentence(error)))
}

pub(crate) fn waits_for(sentence: &str) -> Reason {
    Reason::new(ReasonCode::Waiting, sentence)
}

pub(crate) fn not_started(error: &Error) -> Reason {
    let said = match (error.user_message(), error.kind()) {
        (None, ErrorKind::Internal) => error.message().to_owned(),
        _ => sentence(error),
    };
    Reason::new(ReasonCode::MachineFailed, format!("The machine could not be started: {said}"))
}

pub(crate) fn record_lost() -> Reason {
    Reason::new(
        ReasonCode::MachineFailed,
        "The host lost what it had written down about this VM, so its machine could not be taken up again and was ended.",
    )
}

pub(crate) fn machine_gone() -> Reason {
    Reason::new(ReasonCode::MachineFailed, "The machine is gone from the host; why cannot be known.")
}

pub(crate) fn machine_unclear() -> Reason {
    Reason::new(
        ReasonCode::MachineFailed,
        "The host's driver could not tell any more what the machine does, so it was ended.",
    )
}

/// Why this host cannot load a guest, as a part of a sentence.
pub(crate) fn misfit(why: &str) -> Reason {
    Reason::new(ReasonCode::Incompatible, format!("The host cannot load the VM's snapshot: {why}."))
}

pub(crate) fn network_not_applied(error: &Error) -> Reason {
    let message = format!("The VM is still under its earlier network: {}", sentence(error));
    Reason::new(ReasonCode::NetworkNotApplied, message)
}

pub(crate) fn snapshot_unnamed() -> Reason {
    Reason::new(ReasonCode::SnapshotUnusable, "The host was not told what the VM's snapshot consists of.")
}

pub(crate) fn not_restored(error: &Error) -> Reason {
    Reason::new(ReasonCode::SnapshotUnusable, format!("The VM could not be restored: {}", sentence(error)))
}

pub(crate) fn not_saved(error: &Error) -> Reason {
    Reason::new(ReasonCode::SnapshotFailed, format!("The guest could not be saved: {}", sentence(error)))
}

pub(crate) fn not_stored(error: &Error) -> Reason {
    Reason::new(ReasonCode::SnapshotFailed, format!("The snapshot could not be stored: {}", sentence(error)))
}

pub(crate) fn ended_unsaved() -> Reason {
    Reason::new(ReasonCode::SnapshotFailed, "The VM ended before its snapshot was stored.")
}

pub(crate) fn agent_silent(
    limit: std::time::Duration,
    console: Option<&str>,
    last_error: Option<&str>,
) -> Reason {
    let mut message = format!("The guest's agent did not answer within {} s", limit.as_secs());
    if let Some(error) = last_error {
        message.push_str(&format!(" ({error})"));
    }
    message.push_str(&match console {
        Some(line) => format!(". The console's last line: {line}"),
        None => ". The console is empty: the kernel may not be one that boots here.".to_owned(),
    });
    Reason::new(ReasonCode::AgentSilent, message)
}

/// How a workload that ended by itself ended.
pub(crate) fn workload_ended(exit: &ProcessExit, now: Timestamp) -> (IncarnationState, Exit, Reason) {
    let ended = Exit { code: exit.code, signal: exit.signal, at: now, cause: ExitCause::Workload };
    if let Some(why) = &exit.start_error {
        let reason =
            Reason::new(ReasonCode::WorkloadNotStarted, format!("The workload could not be started: {why}"));
        let code = exit.code.or(Some(127));
        return (IncarnationState::Failed, Exit { code, ..ended }, reason);
    }
    let message = match (exit.code, exit.signal) {
        (_, Some(signal)) => format!("The workload was ended by signal {signal}."),
        (Some(code), None) => format!("The workload exited with code {code}."),
        (None, None) => "The workload ended; its guest does not say how.".to_owned(),
    };
    (IncarnationState::Stopped, ended, Reason::new(ReasonCode::WorkloadExited, message))
}

/// Why a machine ended that nobody asked to.
pub(crate) fn machine_ended(exit: Option<&MonitorExit>, console: Option<&str>) -> Reason {
    let Some(exit) = exit else { return machine_gone() };
    let mut message = match exit.cause {
        MonitorCause::Guest => {
            "The guest powered itself off, or crashed, before its workload's end was known.".to_owned()
        }
        MonitorCause::Stopped => "The machine was ended by the host.".to_owned(),
        MonitorCause::Crashed => match (exit.signal, exit.code) {
            (Some(signal), _) => format!("The machine's monitor was killed by signal {signal}."),
            (None, Some(code)) => format!("The machine's monitor broke down with code {code}."),
            (None, None) => "The machine's monitor broke down.".to_owned(),
        },
        MonitorCause::Unknown => {
            "The machine ended while no controller watched it; why cannot be known.".to_owned()
        }
    };
    if let Some(said) = exit.message.as_deref().map(str::trim).filter(|said| !said.is_empty()) {
        message.push_str(&format!(" It said: {said}"));
    }
    if let Some(line) = console {
        message.push_str(&format!(" The console's last line: {line}"));
    }
    let code = match exit.cause {
        MonitorCause::Guest => ReasonCode::GuestStopped,
        MonitorCause::Stopped | MonitorCause::Crashed | MonitorCause::Unknown => ReasonCode::MachineFailed,
    };
    Reason::new(code, message)
}

pub(crate) fn asked(killed_after: Option<u64>) -> Reason {
    let message = match killed_after {
        None => "It was ended as asked.".to_owned(),
        Some(grace_ms) => {
            format!("It was asked to end, did not within its grace of {grace_ms} ms, and was killed.")
        }
    };
    Reason::new(ReasonCode::Requested, message)
}

pub(crate) fn drained() -> Reason {
    Reason::new(ReasonCode::Requested, "It was ended because its host's controller was shut down.")
}

/// The last line with text of what a console wrote, cut to 200 characters.
pub(crate) fn last_line(console: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(console);
    let visible = |line: &str| line.chars().any(|c| !c.is_whitespace() && !c.is_control());
    let line = text.lines().rev().find(|line| visible(line))?;
    Some(line.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_hostile_console_is_short_and_printable() {
        let console = format!("first\n\u{1b}[31m{}\n\n\u{7}\n", "x".repeat(10_000));
        let line = last_line(console.as_bytes()).unwrap();
        assert_eq!(line.chars().count(), 200);
        assert!(!line.contains(char::is_control));
        assert_eq!(last_line(b"\n \x00\n"), None);
        assert!(last_line(&[0xff, 0xfe, b'a']).unwrap().ends_with('a'));
    }

    #[test]
    fn a_workload_that_is_not_in_the_image_failed_with_the_code_of_a_shell() {
        let exit = ProcessExit {
            code: Some(127),
            signal: None,
            at_ms: 0,
            start_error: Some("/bin/nope: no such file".to_owned()),
        };
        let (state, ended, reason) = workload_ended(&exit, Timestamp::UNIX_EPOCH);
        assert_eq!((state, ended.code), (IncarnationState::Failed, Some(127)));
        assert_eq!(reason.code, ReasonCode::WorkloadNotStarted);
        assert!(reason.message.contains("/bin/nope"));
    }

    #[test]
    fn what_is_internal_does_not_reach_a_user() {
        let error = Error::internal("vmm.prepare", "table /var/secret is locked");
        assert!(!not_prepared(&error).message.contains("secret"));
        let missing = Error::not_found("blob.get", "blob", "images/rootfs/00");
        assert_eq!(not_prepared(&missing).code, ReasonCode::ImageMissing);
    }
}
