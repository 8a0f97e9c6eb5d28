//! Which of the allocator's memory may be huge pages.

use std::fs;
use std::hint::black_box;
use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::io::Errno;
use rustix::mm::{Advice, madvise};

/// How much of the allocator's memory is on small pages, from its front on: what a server of few VMs lives in. mimalloc takes 64 KiB at a time from
/// an arena of 1 GiB, each chunk of 32 MiB for blocks of one range of sizes (`arena.c`, `mi_chunkbin_t` of version 3), the front first.
pub const SMALL_PAGES: usize = 64 << 20;

/// Where a kernel that has huge pages says how it uses them.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage";

/// Puts the first [`SMALL_PAGES`] bytes of the allocator's memory on small pages. What is beyond, mimalloc asks the kernel to put on huge ones
/// (`madvise(2)`, `MADV_HUGEPAGE`). To be called early: what is in use stays as it is. On a kernel that has no huge pages nothing is to be done.
///
/// Errors: when what is mapped where cannot be read, or the allocator's memory is not found; nothing is changed then.
pub fn begin_on_small_pages() -> io::Result<()> {
    let known = black_box(Box::new(0_u8));
    let address = std::ptr::from_ref::<u8>(&known).addr();
    let maps = fs::read_to_string("/proc/self/maps")?;
    let arena = mapping_of(&maps, address)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the allocator's memory is no mapping"))?;
    let length = arena.len().min(SMALL_PAGES);
    // SAFETY: the range is of whole pages and lies within one anonymous mapping; the advice changes neither what is in it nor what may be done
    // with it.
    #[allow(unsafe_code)]
    let advised = unsafe {
        madvise(std::ptr::with_exposed_provenance_mut(arena.start), length, Advice::LinuxNoHugepage)
    };
    match advised {
        // Without CONFIG_TRANSPARENT_HUGEPAGE the advice is unknown (`madvise(2)`).
        Err(Errno::INVAL) if !Path::new(HUGE_PAGES).exists() => Ok(()),
        advised => Ok(advised?),
    }
}

/// The anonymous mapping with this address, by a text as that of `/proc/self/maps` (`proc_pid_maps(5)`).
fn mapping_of(maps: &str, address: usize) -> Option<Range<usize>> {
    maps.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        // Permissions, offset, device, inode: 0 for what is of no file.
        (words.nth(3)? == "0" && range.contains(&address)).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0-55e0 r--p 00000000 fe:00 1042 /usr/bin/true
7f0000000000-7f0040000000 rw-p 00000000 00:00 0
7ffd0000-7ffe0000 rw-p 00000000 00:00 0 [stack]
";

    #[test]
    fn the_mapping_of_an_address_is_found_when_it_is_of_no_file() {
        let arena = 0x7f00_0000_0000..0x7f00_4000_0000;
        assert_eq!(mapping_of(MAPS, arena.start), Some(arena.clone()));
        assert_eq!(mapping_of(MAPS, arena.end - 1), Some(arena.clone()));
        assert_eq!(mapping_of(MAPS, arena.end), None);
        assert_eq!(mapping_of(MAPS, 0x55d8), None);
    }

    /// What smaps says of the mapping with `address`: whether it must not be on huge pages ("nh", `proc_pid_smaps(5)`).
    fn is_on_small_pages(address: usize) -> bool {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut within = false;
        for line in smaps.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                if within {
                    return flags.split_ascii_whitespace().any(|flag| flag == "nh");
                }
            } else if line.split_ascii_whitespace().next().is_some_and(|word| word.contains('-')) {
                within = mapping_of(line, address).is_some();
            }
        }
        panic!("nothing is mapped at {address:x}");
    }

    #[test]
    fn the_first_memory_is_on_small_pages_and_what_a_grown_process_takes_is_not() {
        begin_on_small_pages().unwrap();
        if !Path::new(HUGE_PAGES).exists() {
            println!("skipped: this kernel has no huge pages");
            return;
        }
        let (first, mut grown) = (Box::new(1_u8), Vec::new());
        assert!(is_on_small_pages(std::ptr::from_ref::<u8>(&first).addr()));
        // Not touched, so it costs nothing but addresses.
        for _ in 0..SMALL_PAGES / (1 << 20) + 64 {
            grown.push(Vec::<u8>::with_capacity(1 << 20));
        }
        assert!(!is_on_small_pages(grown[grown.len() - 1].as_ptr().addr()));
    }
}
