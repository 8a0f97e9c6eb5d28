//! What tests of drivers do with real guests, whatever monitor runs them.
//!
//! * [`kernel`]: the test kernel, and [`Scratch`] for what is made of it once for all test processes.
//! * [`words`]: calls of a driver that wait, and words to a guest that echoes what it hears at the agent's port.
//! * [`Reopened`] and [`Victim`]: a driver that is dropped and opened anew, and one in a process that is killed.
//! * [`process`]: processes as seen from outside of a driver.
//!
//! For dev-dependencies alone (`docs/adr/0017-a-crate-for-local-drivers.md`). Everything here panics where a test would.

// A test fails by panicking: an answer that must be there is unwrapped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod kernel;
pub mod process;
mod reopened;
mod scratch;
mod victim;
pub mod words;

pub use flames_image::cpio::CpioWriter;
pub use reopened::Reopened;
pub use scratch::Scratch;
pub use victim::{Victim, until_killed};
