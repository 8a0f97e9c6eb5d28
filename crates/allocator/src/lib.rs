//! The memory allocator of the `flames` binary, and of the benches that measure what is in it.
//!
//! A server of VMs takes memory for each and gives it back when the VM goes, from several threads, thousands of times a second. With the
//! allocator of the C library that was a seventh of all its time. Worse is memory that goes back to the kernel and is taken again: each page
//! is cleared, and on a host that is itself a virtual machine its own host has to find it first (1.5 to 9 microseconds a page where ADR 0018
//! was measured). See that ADR.
//!
//! Linking this crate is what sets the allocator, so a binary names it: `use flames_allocator as _`, or by [`keep_freed_memory`]. What it grows by is on
//! huge pages, unless it begins with [`begin_on_small_pages`].

mod pages;

use std::ffi::c_long;
use std::time::Duration;

use mimalloc::MiMalloc;

pub use self::pages::{SMALL_PAGES, begin_on_small_pages};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3: see `mimalloc.h`, `enum mi_option_e`.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// `mi_option_minimal_purge_size` of mimalloc 3, in KiB: see the same place.
const MINIMAL_PURGE_SIZE: libmimalloc_sys::mi_option_t = 44;
/// The size of a huge page of x86-64 and, with pages of 4 KiB, of ARM64 (Documentation/admin-guide/mm/transhuge.rst of the kernel).
const HUGE_PAGE_KIB: c_long = 2_048;

/// How long mimalloc itself keeps freed memory once [`keep_freed_memory`] was called: for good, as far as a process can see. With its -1, for ever,
/// nothing would be noted as to be given back (`arena.c`, `mi_arena_schedule_purge`).
const FOR_GOOD: Duration = Duration::from_secs(30 * 24 * 3600);

/// Keeps freed memory until [`give_back_freed_memory`] is called. What mimalloc does by itself is by the clock alone: once its time is over it gives
/// back all that is free at that moment, also what was freed just before by a process that is busy and takes it again at once.
/// `MIMALLOC_PURGE_DELAY` in the environment loses to this.
pub fn keep_freed_memory() {
    let milliseconds = c_long::try_from(FOR_GOOD.as_millis()).unwrap_or(c_long::MAX);
    // SAFETY: sets one atomic of the allocator's options; any value is allowed, and it may be called at any time (`mimalloc.h`).
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds);
    }
}

/// Gives back to the kernel what is free now, but for what other threads keep for themselves, which is little. Blocks, the longer the more that is.
pub fn give_back_freed_memory() {
    // SAFETY: has no requirements, and may be called from any thread (`mimalloc.h`).
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

/// Gives freed memory back to the kernel by whole huge pages only. A part that is given back leaves the rest of its huge page on small ones,
/// and so is what is taken there again: a server whose memory shrank once ran on small pages from then on. Less is given back, so for servers
/// of many VMs.
pub fn give_back_whole_huge_pages() {
    // SAFETY: as in `keep_freed_memory`.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(MINIMAL_PURGE_SIZE, HUGE_PAGE_KIB);
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::*;

    /// A name is what mimalloc reads from the environment, at its start.
    #[test]
    fn the_least_that_is_given_back_is_the_option_of_that_name() {
        const NAME: &str = "MIMALLOC_MINIMAL_PURGE_SIZE";
        #[allow(unsafe_code)]
        // SAFETY: reads one of the allocator's options (`mimalloc.h`).
        let least_kib = || unsafe { libmimalloc_sys::mi_option_get(MINIMAL_PURGE_SIZE) };
        if env::var_os(NAME).is_some() {
            assert_eq!(least_kib(), 12_288);
            give_back_whole_huge_pages();
            assert_eq!(least_kib(), 2_048);
            return;
        }
        let own = "tests::the_least_that_is_given_back_is_the_option_of_that_name";
        let told = Command::new(env::current_exe().unwrap())
            .args(["--exact", own])
            .env(NAME, "12MiB")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&told.stdout);
        assert!(told.status.success() && said.contains("1 passed"), "{said}");
    }

    /// What `mimalloc` is told must be the option that is meant: its number is not part of the bindings.
    #[test]
    fn freed_memory_is_kept_for_as_long_as_was_said() {
        #[allow(unsafe_code)]
        // SAFETY: reads one of the allocator's options (`mimalloc.h`).
        let delay_ms = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        // The default of version 3, and of no other option; or another test has been here.
        assert!([1_000, 2_592_000_000].contains(&delay_ms()), "{}", delay_ms());
        keep_freed_memory();
        assert_eq!(delay_ms(), 2_592_000_000);
    }

    /// MiB of this process that are in memory (`proc_pid_statm(5)`).
    fn resident_mib() -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = text.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
        (pages * rustix::param::page_size() as u64) >> 20
    }

    #[test]
    fn what_was_freed_is_given_back_when_that_is_asked_for() {
        keep_freed_memory();
        let before = resident_mib();
        let blocks: Vec<Vec<u8>> = (0..256).map(|_| vec![1_u8; 1 << 20]).collect();
        assert!(resident_mib() > before + 200);
        drop(blocks);
        assert!(resident_mib() > before + 200, "kept");
        give_back_freed_memory();
        assert!(resident_mib() < before + 50, "given back");
    }
}
