//! Ends a VMM that does not answer any more.
//!
//! Firecracker's handlers of signals take locks, so a VMM may hang for ever in one (`docs/prod-host-setup.md`, "Logging and signal handlers"):
//! its authors recommend a watcher that kills it.

use std::fmt;
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use flames_error::{Error, Result};
use flames_host::process::Process;

/// When a VMM counts as hung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watchdog {
    /// From one question to the next.
    pub every: Duration,
    /// How long an answer may take.
    pub deadline: Duration,
    /// So many questions in a row without an answer…
    pub misses: u32,
    /// …and so long since the last answer.
    pub silence: Duration,
}

impl Default for Watchdog {
    /// Every 10 s, answered within 5 s; killed after 4 misses and 45 s. A host that is short of memory or time answers late; killing a
    /// guest for that would be worse than waiting.
    fn default() -> Self {
        Self {
            every: Duration::from_secs(10),
            deadline: Duration::from_secs(5),
            misses: 4,
            silence: Duration::from_secs(45),
        }
    }
}

/// How a watch has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The process has ended by itself.
    Ended,
    /// It was killed; it may need a moment to be gone.
    Killed {
        /// Questions without an answer.
        misses: u32,
        /// Since the last answer, or since the watch began.
        silence: Duration,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the microVM's monitor has ended"),
            Self::Killed { misses, silence } => write!(
                f,
                "the microVM's monitor was killed: it did not answer {misses} times in a row, for {} s",
                silence.as_secs()
            ),
        }
    }
}

impl Watchdog {
    /// Watches until the process ends, or is killed. `answers` is asked anew each time and dropped at its deadline; it says whether the
    /// VMM answered. When this is dropped, the watch ends and the process is let be.
    ///
    /// A time in which nobody asked (we were stopped) alone kills nobody: the questions must have been missed too.
    ///
    /// Errors: `Internal` when the process cannot be watched or killed.
    pub async fn watch<A>(
        &self,
        clock: &dyn Clock,
        process: &Process,
        mut answers: impl FnMut() -> A,
    ) -> Result<Verdict>
    where
        A: Future<Output = bool> + Send,
    {
        let failed =
            |error| Error::internal("jail.watchdog", "the process cannot be watched").with_source(error);
        let watch = async {
            let mut last_answer = clock.monotonic();
            let mut misses = 0_u32;
            loop {
                clock.sleep(self.every).await;
                if clock.timeout(self.deadline, answers()).await == Ok(true) {
                    (last_answer, misses) = (clock.monotonic(), 0);
                    continue;
                }
                misses = misses.saturating_add(1);
                let silence = clock.monotonic().saturating_since(last_answer);
                if misses >= self.misses && silence >= self.silence {
                    return Verdict::Killed { misses, silence };
                }
            }
        };
        let verdict = tokio::select! {
            biased;
            ended = process.ended() => return ended.map(|()| Verdict::Ended).map_err(failed),
            verdict = watch => verdict,
        };
        process.kill().map_err(failed)?;
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU32, Ordering};

    use flames_clock::SimulatedClock;
    use flames_host::process::Ended;

    use super::*;

    /// A process that does nothing, and ends with the test.
    struct Victim(Process);

    impl Victim {
        #[allow(clippy::zombie_processes, reason = "it is reaped through its pidfd")]
        fn new() -> Self {
            let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
            Self(Process::of_child(child.id()).unwrap())
        }
    }

    impl Drop for Victim {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.reap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_vmm_that_never_answers_is_killed_after_its_misses_and_its_silence() {
        let (clock, victim) = (SimulatedClock::at_fixed_start(), Victim::new());
        let begun = clock.monotonic();
        let verdict = Watchdog::default()
            .watch(&clock, &victim.0, || async {
                std::future::pending::<()>().await;
                true
            })
            .await
            .unwrap();
        let Verdict::Killed { misses, silence } = verdict else { panic!("{verdict:?}") };
        assert_eq!((misses, silence), (4, Duration::from_secs(60)), "4 times 10 s and 5 s");
        assert_eq!(clock.monotonic().saturating_since(begun), silence);
        assert!(verdict.to_string().contains("4 times in a row, for 60 s"));
        victim.0.ended().await.unwrap();
        assert_eq!(victim.0.reap(), Some(Ended::Signal(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn misses_that_are_not_in_a_row_kill_nobody() {
        let (clock, victim) = (SimulatedClock::at_fixed_start(), Victim::new());
        let asked = AtomicU32::new(0);
        let watchdog = Watchdog::default();
        let watch = watchdog.watch(&clock, &victim.0, || async {
            // Every fourth is answered.
            asked.fetch_add(1, Ordering::Relaxed) % 4 == 3
        });
        assert!(clock.timeout(Duration::from_secs(3600), watch).await.is_err(), "still watching");
        assert!(victim.0.is_alive());
        assert!(asked.load(Ordering::Relaxed) > 300);
    }

    #[tokio::test(start_paused = true)]
    async fn misses_within_a_short_silence_kill_nobody_yet() {
        let (clock, victim) = (SimulatedClock::at_fixed_start(), Victim::new());
        let watchdog = Watchdog { every: Duration::from_secs(1), misses: 2, ..Watchdog::default() };
        let asked = Cell::new(0);
        let verdict = watchdog
            .watch(&clock, &victim.0, || {
                asked.set(asked.get() + 1);
                std::future::ready(false)
            })
            .await
            .unwrap();
        assert_eq!(verdict, Verdict::Killed { misses: 45, silence: Duration::from_secs(45) });
        assert_eq!(asked.get(), 45);
    }

    #[tokio::test]
    async fn a_vmm_that_ends_by_itself_ends_the_watch() {
        let (clock, victim) = (flames_clock::SystemClock::new(), Victim::new());
        let watchdog = Watchdog::default();
        let watch = watchdog.watch(&clock, &victim.0, || std::future::ready(true));
        let end = async {
            victim.0.kill().unwrap();
        };
        assert_eq!(tokio::join!(watch, end).0.unwrap(), Verdict::Ended);
    }
}
