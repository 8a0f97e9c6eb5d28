//! What drivers share whose monitors are processes of this host, and outlive them.
//!
//! * [`Incarnations`]: every incarnation by its name, and what `adopt` finds. [`Incarnation`]: one of them, with the turn of those who
//!   change it and the [`Monitor`] that is followed to its end.
//! * [`Folder`]: an incarnation's folder, and the records in it that every driver keeps.
//! * [`Exits`]: hints that a monitor has ended.
//! * [`check`]: whether a machine's files are what they must be. [`ConsoleLimits`]: what is kept of a guest's console. [`vsock`]: the
//!   host's side of a guest's vsock.
//!
//! A driver brings what is its monitor's own: how one is started, asked and told, and what its records and processes show of an
//! incarnation ([`OnHost::situation`]). This crate starts nothing and speaks to no monitor (`docs/adr/0017-a-crate-for-local-drivers.md`).

pub mod check;
mod console;
mod exits;
mod folder;
mod incarnation;
mod incarnations;
mod monitor;
pub mod vsock;

pub use console::ConsoleLimits;
pub use exits::Exits;
pub use folder::{Folder, Record, open_root};
pub use incarnation::{Incarnation, OnHost, Situation, Starting, Turn, seen};
pub use incarnations::Incarnations;
pub use monitor::{Monitor, Ties, end_of};
