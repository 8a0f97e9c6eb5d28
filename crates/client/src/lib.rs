//! Rust client of the HTTP API and of the host API, over any tower service: a TCP address, a unix socket, or the router itself.
//!
//! ```no_run
//! # async fn example() -> flames_error::Result<()> {
//! use flames_client::{Client, ClientConfig, Mutation, wire};
//! let client = Client::tcp("127.0.0.1:7070", ClientConfig::default().with_token("…"))?;
//! let vm = client.create_vm(&wire::CreateVm::new("debian"), &Mutation::default()).await?;
//! let result = client.wait_vm(&vm.name, "running", std::time::Duration::from_secs(60)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Errors are the house's: kind, stable code, field and the sentence for users are those that the server told. When no answer came:
//! `Unavailable` when nothing was sent, or nothing was to be changed; `OutcomeUnknown` when a change may have been applied. Send it again
//! with the same idempotency key then.

mod body;
mod client;
mod connect;
mod events;
mod failover;
mod guest;
mod host;
mod mutation;
mod resources;
mod snapshots;
mod stream;
mod tls;
mod upgrade;

pub use body::{RequestBody, ResponseBody};
pub use client::{Client, ClientConfig};
pub use events::EventStream;
pub use failover::FailoverHost;
pub use flames_wire as wire;
pub use guest::ByteStream;
pub use host::{HostApi, HostClient, HostCredentials, LinkIo};
pub use mutation::Mutation;
pub use resources::ImportStream;
pub use stream::{FrameReceiver, FrameSender, FrameStream};
pub use tls::Trust;
