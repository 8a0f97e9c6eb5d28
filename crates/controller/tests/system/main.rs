//! A whole controller over a simulated host and a control plane that keeps the real one's promises, under paused time.

// Helpers of tests, which Clippy does not take for tests.
#![allow(clippy::unwrap_used, clippy::panic)]

mod api;
mod crashes;
mod guests;
mod lifecycle;
mod networks;
mod outages;
mod snapshots;
mod steps;
mod streams;
mod world;
