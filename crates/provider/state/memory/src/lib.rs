//! StateStore in memory: the reference answer.
//!
//! Everything is in ordered maps under one lock that is never held across an await, so each call happens at one instant and every
//! guarantee of the contract follows. One counter gives versions and log positions. Nothing outlives the process.
//!
//! Calls that read go on beside each other and beside the checks of a commit; only its writes are alone.
//!
//! Values are kept as the buffers that were handed in: a small slice of a large buffer keeps the large one alive.

mod entries;
mod store;

pub use store::MemoryStore;
