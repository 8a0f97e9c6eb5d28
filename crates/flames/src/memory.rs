//! When a process that serves gives memory back that it has freed.

use std::time::Duration;

use flames_clock::Clock;

/// From one look to the next, and so the time in which a process must have had little to do.
const QUIET: Duration = Duration::from_secs(30);
/// What is little: this part of one processor's time.
const LITTLE: u32 = 20;

/// Calls `give_back` after each half minute in which the process used less than a twentieth of a processor. One that is busy takes again at once what
/// it has freed, and then has to be given each page by the kernel (ADR 0018). `used` is the processor time of the process until now.
///
/// Never returns. Cancel-safe; what is being given back when it is dropped, the end of the runtime waits for.
pub(crate) async fn give_back_when_quiet(
    clock: &dyn Clock,
    used: impl Fn() -> Duration,
    give_back: impl Fn() + Clone + Send + 'static,
) -> ! {
    let (mut since, mut used_then) = (clock.monotonic(), used());
    loop {
        clock.sleep(QUIET).await;
        // A host that was suspended, or too busy to wake us, has longer looks.
        let (now, used_now) = (clock.monotonic(), used());
        if used_now.saturating_sub(used_then) * LITTLE < now.saturating_since(since) {
            // It blocks; that it was done is all there is to know.
            let _ = tokio::task::spawn_blocking(give_back.clone()).await;
        }
        (since, used_then) = (now, used_now);
    }
}

/// The processor time of this process, all threads of it (`CLOCK_PROCESS_CPUTIME_ID`, clock_gettime(2)).
pub(crate) fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use flames_clock::{ClockExt, SimulatedClock};

    use super::*;

    /// How often memory is given back in five minutes by a process that uses `part` thousandths of a processor.
    async fn given_back(part: u64) -> u32 {
        let clock = SimulatedClock::at_fixed_start();
        let (begun, times) = (clock.monotonic(), Arc::new(AtomicU32::new(0)));
        let count = Arc::clone(&times);
        let used = || {
            let elapsed = clock.monotonic().saturating_since(begun);
            Duration::from_millis(u64::try_from(elapsed.as_millis()).unwrap() * part / 1000)
        };
        let give_back = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let watch = give_back_when_quiet(&clock, used, give_back);
        assert!(clock.timeout(Duration::from_secs(301), watch).await.is_err(), "it goes on");
        times.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_process_gives_memory_back_each_half_minute_and_a_busy_one_never() {
        assert_eq!(given_back(0).await, 10);
        assert_eq!(given_back(49).await, 10);
        assert_eq!(given_back(50).await, 0);
        assert_eq!(given_back(2000).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_burst_memory_is_given_back_as_soon_as_half_a_minute_was_quiet() {
        let clock = SimulatedClock::at_fixed_start();
        // 20 seconds of a processor within the first half minute, and nothing later.
        let (looks, times) = (AtomicU64::new(0), Arc::new(AtomicU32::new(0)));
        let used = || Duration::from_secs(20 * looks.fetch_add(1, Ordering::Relaxed).min(1));
        let count = Arc::clone(&times);
        let give_back = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let watch = give_back_when_quiet(&clock, used, give_back);
        let until = async |seconds| clock.sleep(Duration::from_secs(seconds)).await;
        let looked = async {
            until(45).await;
            assert_eq!(times.load(Ordering::Relaxed), 0, "busy until then");
            until(30).await;
            assert_eq!(times.load(Ordering::Relaxed), 1);
        };
        tokio::select! {
            never = watch => never,
            () = looked => {}
        }
    }
}
