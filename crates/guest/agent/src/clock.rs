use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// The guest's wall clock in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the guest's kernel started.
pub(crate) fn uptime_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(time.tv_sec) * 1000 + part(time.tv_nsec) / 1_000_000
}

/// Sets the wall clock to milliseconds since 1970.
pub(crate) fn set_ms(epoch_ms: u64) -> std::io::Result<()> {
    let seconds = i64::try_from(epoch_ms / 1000).map_err(std::io::Error::other)?;
    let nanoseconds = i64::try_from(epoch_ms % 1000).unwrap_or(0) * 1_000_000;
    Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: nanoseconds })?)
}
