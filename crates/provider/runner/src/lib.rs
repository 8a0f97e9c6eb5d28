//! Runs the cases of a conformance suite as named tests. The shared mechanism of all `X/conformance` crates.
//!
//! * A case is a plain `pub(crate) async fn case(fixture: &dyn Fixture)` that panics when the promise in its name is broken.
//! * [`table!`] lists a suite's cases, each with the capability it needs, if any. A unit test calls
//!   [`assert_table_is_complete`], so that no case is written and not listed, or promised in the contract's docs and not written.
//! * Each case runs on its own thread, its own tokio runtime ([`Time`]) and its own fresh fixture. One that neither ends nor
//!   fails within [`CASE_LIMIT`] of real time fails.
//! * Whether a case is skipped is decided when it is *listed*, without connecting anywhere, since a case that gives up while it
//!   runs would be shown as passed by `cargo nextest`. Each skip is written to standard error with its reason, as
//!   `skipped: <suite>/<provider>: <case>: <reason>`.
//! * A case is skipped because the provider lacks a capability, or because the service that it needs is not there. In the second
//!   case it fails instead when the environment variable `FLAMES_REQUIRE` (names joined by commas, or `all`) names the service.
//!
//! A suite's crate then needs no more than this:
//!
//! ```
//! use std::process::ExitCode;
//! use std::sync::Arc;
//!
//! use flames_conformance_runner::{Row, Suite, Time, cases, table};
//!
//! pub trait Fixture: Send + Sync {
//!     fn greet(&self) -> String;
//! }
//!
//! pub trait Harness: Send + Sync + 'static {
//!     fn name(&self) -> &'static str;
//!     fn fresh(&self) -> Box<dyn Fixture>; // usually async
//!     fn is_durable(&self) -> bool;
//! }
//!
//! mod greeting {
//!     pub(crate) async fn a_greeting_is_polite(fixture: &dyn super::Fixture) {
//!         assert!(fixture.greet().contains("please"));
//!     }
//!     pub(crate) async fn a_greeting_outlives_a_restart(_: &dyn super::Fixture) {}
//! }
//!
//! fn rows() -> Vec<Row<Box<dyn Fixture>>> {
//!     table![greeting: a_greeting_is_polite, a_greeting_outlives_a_restart if durable]
//! }
//!
//! pub fn suite(harness: impl Harness) -> Suite {
//!     let harness = Arc::new(harness);
//!     let fresh = Arc::clone(&harness);
//!     Suite {
//!         name: "greeting",
//!         provider: harness.name(),
//!         unavailable: None,
//!         time: Time::Paused,
//!         cases: cases(
//!             rows(),
//!             |capability| (capability == "durable" && !harness.is_durable()).then(|| "it is not durable".into()),
//!             move || {
//!                 let harness = Arc::clone(&fresh);
//!                 async move { harness.fresh() }
//!             },
//!         ),
//!     }
//! }
//!
//! /// The whole of an adapter's `tests/conformance.rs` (`harness = false`): `fn main() -> ExitCode { run(Harness) }`.
//! pub fn run(harness: impl Harness) -> ExitCode {
//!     flames_conformance_runner::run(suite(harness))
//! }
//! # fn main() {}
//! ```

mod complete;
mod execute;
mod suite;

pub use complete::assert_table_is_complete;
pub use execute::{CASE_LIMIT, Time, failures};
pub use suite::{Case, CaseFuture, Row, Suite, Unavailable, cases, run};
