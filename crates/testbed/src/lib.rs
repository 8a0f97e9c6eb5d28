//! The whole system in one process: real service, reconciliation and controllers over in-memory providers and simulated hosts,
//! under simulated time, with faults from a printed seed.
//!
//! One thread, paused time, one seed: [`run`] twice with the same [`Plan`] gives the same [`Outcome::trace`]. A run has three parts:
//!
//! 1. *Storm*: clients ask for VM operations, each retried with its own idempotency key as a good client does; provider calls fail, hang
//!    and lose their answers; components are dropped at whatever await they are at and started again; hosts are cut off; guests die.
//! 2. *Calm*: no more faults; everything is started again and has time to settle.
//! 3. *Judgement*: [`check`](mod@check) looks at the truth (the raw store and the hosts) for whatever must never be.
//!
//! A [`Sabotage`] breaks one part on purpose, to show that the judgement sees it.

pub mod check;
mod clients;
mod faults;
mod host;
mod images;
mod networks;
mod sabotage;
mod world;

pub use check::Violation;
pub use faults::Histogram;
pub use flames_simulated_guest::SimulatedGuests;
pub use host::SimulatedArtefacts;
pub use sabotage::Sabotage;
pub use world::{Outcome, Plan, run};
