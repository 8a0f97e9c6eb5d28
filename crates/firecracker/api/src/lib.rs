//! Typed client of Firecracker's API on its unix socket, complete for the versions 1.14.4 to 1.16.
//!
//! * [`Client`]: one connection to one Firecracker, with a deadline for each call.
//! * The types of what is sent and answered, with the property names of the API's own description. [`operation::ALL`] lists the
//!   operations. `tests/drift` compares both with the description (`firecracker.yaml`) of a release.
//! * [`Version`]: which versions are accepted, why one is not, and what each can do ([`Feature`]).
//!
//! ```no_run
//! # async fn example() -> flames_error::Result<()> {
//! use std::sync::Arc;
//! use std::time::Duration;
//! use flames_clock::SystemClock;
//! use flames_firecracker_api::{Client, MachineConfig, Options};
//!
//! let client = Client::new("/srv/vm/run/firecracker.socket", Arc::new(SystemClock::new()), Options::default());
//! client.wait_until_serving(Duration::from_secs(2)).await?;
//! client.version().await?.check()?;
//! client.put_machine_config(&MachineConfig::new(1, 128)).await?;
//! # Ok(())
//! # }
//! ```

mod calls;
mod client;
mod connection;
mod fault;
pub mod operation;
mod types;
mod version;

pub use client::{Client, DEFAULT_REQUEST_LIMIT, Deadlines, Options};
pub use connection::Peer;
pub use types::*;
pub use version::{FIRST_UNTESTED, Feature, OLDEST, OLDEST_OF_1_15, Version};
