//! A [`VmDriver`](flames_vmm::VmDriver) without virtual machines: it takes time, fails, lies and dies on demand.
//!
//! * A [`SimulatedHost`] is the machine: its incarnations, their guests, consoles, snapshots and exits. It outlives the driver.
//!   Dropping a [`SimulatedDriver`] and making a new one on the same host is what a crash of the controller looks like.
//! * [`SimulatedTimings`] say how long each step takes; [`Script`] makes calls fail (before or after they were applied), hang, take
//!   longer or lie, makes guests die, and loses hints. [`SimulatedHost::crash_vm`], [`SimulatedHost::power_off_guest`] and
//!   [`SimulatedHost::reboot`] are what happens from outside.
//! * A [`GuestProgram`] runs in each guest. It serves connections, writes the console, powers itself off, stands still while its VM
//!   is paused and ends with it. Without one, connections echo.
//! * For checkers: [`SimulatedHost::running`], [`SimulatedHost::lives`], [`SimulatedHost::started_twice`],
//!   [`SimulatedHost::addresses_given_twice`], [`SimulatedHost::peak_use`], [`SimulatedHost::residue`].
//!
//! All time and randomness is injected: on one thread with tokio's paused time, one seed gives the same run twice. With
//! [`SimulatedTimings::INSTANT`] and no guest program, nothing is spawned and nothing sleeps.

mod console;
mod driver;
mod guest;
mod host;
mod operations;
mod power;
mod script;
mod state;
mod timings;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use driver::SimulatedDriver;
pub use guest::{GuestFuture, GuestListener, GuestOrigin, GuestProgram, SimulatedGuest};
pub use host::{HostCapacity, MachineView, SimulatedConfig, SimulatedFiles, SimulatedHost};
pub use script::{Applied, Death, Lie, Misbehaviour, Operation, Rule, Script};
pub use state::{Life, ResourceUse};
pub use timings::{SimulatedTimings, Span};

/// Locks, taking a poisoned lock as it is: each critical section leaves its data whole, also when a caller's code panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
