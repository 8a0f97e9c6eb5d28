//! Versioned messages between a controller and the agent in a guest.
//!
//! One duplex byte stream (a virtio-serial port, a vsock connection, a socket in tests) joins the two. Over it:
//!
//! 1. a **handshake** ([`handshake`]) that finds its place in a stream that may still carry bytes of a dead
//!    session, agrees on a version, and proves to both sides that the other holds the incarnation's key;
//! 2. **yamux** ([`mux`]): the controller opens one flow-controlled stream per operation, the agent opens none;
//! 3. **frames** ([`frame`]): a kind, a length of at most 64 KiB, a payload. The first is the request, as JSON.
//!
//! The controller's side is [`AgentClient`]; the agent's side is [`GuestChannel`]. [`GuestConfig`] is what a
//! guest finds on its *config drive* before any of this.
//!
//! What a guest sends is hostile input: every length, count and time is bounded, and the worst that a guest can
//! do is to lose its own connection. The bounds stand in [`limits`].

pub mod client;
pub mod config;
mod error;
pub mod frame;
mod guard;
pub mod handshake;
pub mod limits;
pub mod message;
pub mod mux;
mod scanner;
mod secret;

pub use client::{AgentClient, ConnectOptions};
pub use config::GuestConfig;
pub use error::{Error, ErrorKind, Result};
pub use handshake::Identity;
pub use mux::{GuestChannel, MuxStream, SessionEnd};
pub use secret::{AgentKey, SecretString};

/// The newest protocol version that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// The oldest protocol version that this build speaks.
pub const OLDEST_PROTOCOL_VERSION: u16 = 1;

/// The name of the virtio-serial port on which the agent listens.
pub const VIRTIO_PORT_NAME: &str = "flames.agent";

/// The vsock port on which the agent listens.
pub const VSOCK_PORT: u32 = 1024;
