//! Time, identifiers and randomness, injected everywhere.
//!
//! No other crate of the house asks the operating system for the time, a sleep, a random number or an id: it is handed a
//! [`Clock`], an [`IdSource`] or a [`Random`]. So the testbed can run the whole system under simulated time, from one seed.
//!
//! * [`SystemClock`] and [`SystemRandom`] are the real ones.
//! * [`SimulatedClock`] follows tokio's paused time; its wall clock can be made to jump, as real ones do.
//! * [`SeededRandom`] gives the same numbers for the same seed.

mod ids;
mod random;
mod time;

pub use ids::{IdSource, UuidSource};
pub use random::{Random, RandomExt, SeededRandom, SystemRandom};
pub use time::{Clock, ClockExt, DeadlineExceeded, Monotonic, SimulatedClock, SystemClock};

/// A point in wall-clock time (UTC). The one timestamp type of the house.
pub use jiff::Timestamp;
