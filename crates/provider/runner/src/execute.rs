//! Running one case.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::{Case, CaseFuture};

/// How long a case may take in real time, whatever its runtime's time does, unless it says otherwise ([`Case::limit`]).
pub const CASE_LIMIT: Duration = Duration::from_secs(60);

/// How long a runtime may take to end after its case.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// The time, and the threads, that a case runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// One thread and tokio's paused time: it jumps to the next timer when nothing can run. For providers that wait for nothing but
    /// tokio; anything that waits for another thread or a socket would see its deadlines pass at once.
    Paused,
    /// Two worker threads and real time.
    Real,
}

/// Runs cases one by one and tells those that failed, with what they said: for tests of the suites themselves. Ignored cases are
/// left out.
pub fn failures(cases: Vec<Case>, time: Time) -> BTreeMap<&'static str, String> {
    cases
        .into_iter()
        .filter(|case| case.ignored.is_none())
        .filter_map(|case| {
            execute(case.name, time, case.limit, case.run).err().map(|message| (case.name, message))
        })
        .collect()
}

pub(crate) fn execute(
    name: &str,
    time: Time,
    limit: Duration,
    run: Box<dyn FnOnce() -> CaseFuture + Send>,
) -> Result<(), String> {
    let (sender, receiver) = mpsc::channel();
    let started = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| on_own_runtime(time, run)));
        // The receiver is gone when the case was given up: there is nobody left to tell.
        let _ = sender.send(outcome.unwrap_or_else(|payload| Err(panic_message(payload.as_ref()))));
    });
    if let Err(error) = started {
        return Err(format!("no thread for the case: {error}"));
    }
    // A case that hangs cannot be stopped from outside; its thread is left behind and ends with the test process.
    receiver.recv_timeout(limit).unwrap_or_else(|_| Err(format!("the case did not end within {limit:?}")))
}

fn on_own_runtime(time: Time, run: Box<dyn FnOnce() -> CaseFuture + Send>) -> Result<(), String> {
    let runtime = match time {
        Time::Paused => tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build(),
        Time::Real => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build(),
    };
    let runtime = runtime.map_err(|error| format!("no runtime for the case: {error}"))?;
    runtime.block_on(async move { run().await });
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    Ok(())
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the case panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_that_panics_fails_with_its_message() {
        for time in [Time::Paused, Time::Real] {
            let breaks = || -> CaseFuture { Box::pin(async { panic!("broken by {}", 7) }) };
            let outcome = execute("it_breaks", time, CASE_LIMIT, Box::new(breaks));
            assert_eq!(outcome, Err("broken by 7".to_owned()));
        }
    }

    #[test]
    fn under_paused_time_an_hour_passes_at_once() {
        let before = std::time::Instant::now();
        let hour = || -> CaseFuture { Box::pin(tokio::time::sleep(Duration::from_secs(3_600))) };
        assert_eq!(execute("it_waits", Time::Paused, CASE_LIMIT, Box::new(hour)), Ok(()));
        assert!(before.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_case_that_does_not_end_within_its_own_limit_fails() {
        let hangs = || -> CaseFuture { Box::pin(std::future::pending()) };
        let outcome = execute("it_hangs", Time::Real, Duration::from_millis(20), Box::new(hangs));
        assert!(outcome.is_err_and(|said| said.contains("20ms")));
    }
}
