//! What all conformance suites share: the `X/conformance` crates keep their cases, operations and models.
//!
//! * A case is a plain `pub(crate) async fn case(fixture: &dyn Fixture)` that panics when the promise in its name is broken.
//! * [`table!`] lists a suite's cases, each with the capability it needs, if any. A unit test calls
//!   [`assert_table_is_complete`], so that no case is written and not listed, or promised in the contract's docs and not written.
//! * A provider is brought by a [`Harness`], whose fixtures may break things from outside: [`Hooks`], [`Faults`].
//! * Each case runs on its own thread, its own tokio runtime ([`Time`]) and its own fresh fixture. One that neither ends nor
//!   fails within [`CASE_LIMIT`] of real time fails.
//! * Whether a case is skipped is decided when it is *listed*, without connecting anywhere, since a case that gives up while it
//!   runs would be shown as passed by `cargo nextest`. Each skip is written to standard error with its reason, as
//!   `skipped: <suite>/<provider>: <case>: <reason>`.
//! * A case is skipped because the provider lacks a capability, or because the service that it needs is not there. In the second
//!   case it fails instead when the environment variable `FLAMES_REQUIRE` (names joined by commas, or `all`) names the service.
//! * Random cases print their [`seeds`]; those that compare random operations with a model run them by [`Sequences`].
//! * A suite proves itself by [`WrongProviders`]. What an adapter tests beside its suite is a [`Suite::own_tests`].
//!
//! A suite's crate then needs no more than this:
//!
//! ```
//! use std::process::ExitCode;
//!
//! use flames_conformance_runner::{Harness, Hooks, Interface, Row, Suite, table};
//!
//! pub trait Fixture: Hooks {
//!     fn greet(&self) -> String;
//! }
//!
//! mod greeting {
//!     pub(crate) async fn a_greeting_is_polite(fixture: &dyn super::Fixture) {
//!         assert!(fixture.greet().contains("please"));
//!     }
//!     pub(crate) async fn a_greeting_outlives_a_restart(_: &dyn super::Fixture) {}
//! }
//!
//! fn interface() -> Interface<dyn Fixture> {
//!     let rows: Vec<Row<Box<dyn Fixture>>> = table![greeting: a_greeting_is_polite, a_greeting_outlives_a_restart if durable];
//!     Interface { name: "greeting", noun: "greeter", rows }
//! }
//!
//! pub fn suite(harness: impl Harness<dyn Fixture>) -> Suite {
//!     interface().suite(harness)
//! }
//!
//! /// The whole of an adapter's `tests/conformance.rs` (`harness = false`): `fn main() -> ExitCode { run(Adapter) }`.
//! pub fn run(harness: impl Harness<dyn Fixture>) -> ExitCode {
//!     flames_conformance_runner::run(suite(harness))
//! }
//! # fn main() {}
//! ```

mod complete;
mod execute;
mod harness;
mod hooks;
mod network;
mod random;
mod suite;
mod wrong;

pub use async_trait::async_trait;
pub use complete::assert_table_is_complete;
pub use execute::{CASE_LIMIT, Time, failures};
pub use harness::{Harness, Interface};
pub use hooks::{Faults, Held, Hook, Hooks, SettableClock};
pub use network::{Cut, SimulatedConnection, SimulatedNetwork};
pub use random::{End, Sequences, agree, seeds};
pub use suite::{Case, CaseFuture, Row, Suite, Unavailable, cases, run};
pub use wrong::{Caught, WrongProviders};
