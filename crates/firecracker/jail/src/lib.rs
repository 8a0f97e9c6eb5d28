//! The jail of one Firecracker: chroot, user, control groups, mounts, limits, and finding it again.
//!
//! ```text
//! <base>/.slots/<number>                      which incarnation has the slot ([`Slots`])
//! <base>/<cluster>/<incarnation>/             0700, root's
//!   jail.json                                 what was prepared; written before the folder appears under its name
//!   process.json                              which process runs it; without a pid before the process is started, with it before
//!                                             the guest's first instruction
//!   lock                                      locked for as long as a process of the jail lives: it is its standard input
//!   output                                    what the jailer and Firecracker say (a kernel pipe: bounded)
//!   <firecracker>/<id>/root/                  the chroot, the incarnation's user's
//! <base>/<cluster>/.new-… .old-…              half made, half removed: cleared away by [`Jails::open`]
//! ```
//!
//! What was decided, and why:
//!
//! * **The jailer is the real one**, of the same release as Firecracker. It execs Firecracker in its own place, so the pid that we start
//!   is the VMM's: its record is complete before the guest's first instruction, and its exit status is ours to take. `--new-pid-ns` would
//!   fork instead: the VMM would be nobody's child, and its pid would be known by a race. What it would hide is hidden already: the
//!   chroot has no `/proc`, and no other process has the VMM's user. `--daemonize` would fork twice for the same reasons; the process
//!   gets a session of its own from us.
//! * **Control groups are ours**, not the jailer's: its `--cgroup file=value` cannot say `io.max` (a value may hold no `=`) nor
//!   `blkio.throttle.*` (it copies the parent's value first, and refuses an empty one). The process enters its groups between fork and
//!   exec, so that the jailer's own work is limited too. The jailer is told `--cgroup-version 1` and no group, which is how it lets them
//!   be: with version 2 it would move the process into a group named `firecracker`, if there happens to be one.
//! * **Mounts are the process's own** (a mount namespace made between fork and exec), so none is ever seen in the host's table: nothing
//!   slows the start of other jails, nothing must be unmounted, and nothing is left after any crash. Most artefacts need none: see
//!   [`Artefact`].
//! * **The VMM is hostile once its guest runs.** It owns its chroot and may put anything there: the host opens what is in it only through
//!   [`Jail`], which follows no link and never leaves it, and changes the owner of nothing that it has not just made.
//! * **What is killed at the end** is found by what a process cannot hide: its user and its groups, beside (boot id, pid, start time) and
//!   the words `--id <id>` that stand on the jailer's and on Firecracker's command line.
//!
//! Calls for *different* incarnations may overlap; of one incarnation the caller makes one at a time.

mod artefact;
mod chroot;
mod command;
mod config;
#[cfg(test)]
mod crash;
mod doctor;
mod group;
mod hierarchy;
mod jail;
mod jails;
mod launch;
mod limits;
mod mounts;
mod name;
mod record;
mod removal;
mod slots;
mod spare;
mod watchdog;

pub use artefact::{Artefact, Way};
pub use chroot::Inside;
pub use config::JailConfig;
pub use doctor::{Check, DoctorConfig, Outcome, Supports, checks};
pub use hierarchy::{Hierarchies, Home, Resource};
pub use jail::{Found, Jail, JailSpec, State};
pub use jails::Jails;
pub use launch::{Launch, Vmm};
pub use limits::{IoLimits, Limits};
pub use name::JailName;
pub use slots::{Slot, SlotRange, Slots};
pub use watchdog::{Verdict, Watchdog};

/// A place where a process of ours may be killed, for the tests that kill it there. Nothing otherwise.
macro_rules! may_die_here {
    ($place:literal) => {
        #[cfg(test)]
        crate::crash::here($place);
    };
}
pub(crate) use may_die_here;
