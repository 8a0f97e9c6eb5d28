//! A child that shares this process's memory until it has become its program, as vfork(2) makes one.
//!
//! A fork copies the page tables of this process, and whatever its threads write next faults: milliseconds for a controller of some tens of
//! MiB, each time, and twenty times when twenty machines start at once. This child has only a stack of its own, and the thread that made
//! it sleeps until it has become its program or has ended (`CLONE_VFORK`, clone(2)), while all others go on. So it makes system calls and
//! nothing else: it allocates nothing, takes no lock and does not panic. posix_spawn(3) works in the same way, and knows neither control groups
//! nor mounts.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// What the child does before it becomes its program: system calls only, see the module.
pub(crate) type Prepare<'a> = &'a (dyn Fn() -> io::Result<()> + Sync);

/// What becomes of the child.
pub(crate) struct Image<'a> {
    pub(crate) binary: &'a CStr,
    /// With its own name as the first.
    pub(crate) arguments: &'a [&'a CStr],
    /// What its standard input, output and errors are: open files above these three.
    pub(crate) standard: [RawFd; 3],
    /// What is done last before the program begins.
    pub(crate) prepare: Prepare<'a>,
}

/// Enough for the few frames of the child; the page below it is nobody's.
const STACK: usize = 128 * 1024;
const GUARD: usize = 4096;
/// The highest number of a signal (signal(7)).
const LAST_SIGNAL: c_int = 64;

/// The child's stack.
struct Stack(*mut c_void);

impl Stack {
    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: a fresh mapping of a length of whole pages, wherever the kernel has room.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), GUARD + STACK, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self(at);
        // SAFETY: the first page of the mapping that was just made, which nothing uses.
        if unsafe { libc::mprotect(stack.0, GUARD, libc::PROT_NONE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    /// Stacks grow downwards, on every architecture that we run on.
    fn top(&self) -> *mut c_void {
        self.0.wrapping_byte_add(GUARD + STACK)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; the child that used it has a memory of its own by now, or is gone.
        unsafe { libc::munmap(self.0, GUARD + STACK) };
    }
}

/// The calling thread's signals are blocked for as long as it lives: no handler runs in the child, on memory that is not its own.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn new() -> io::Result<Self> {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: `sigfillset` makes the set that `pthread_sigmask` reads; that one writes the set that it is given.
        let failed = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
        };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        // SAFETY: written by the call, which succeeded.
        Ok(Self(unsafe { before.assume_init() }))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set that the thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// What the child finds.
struct Given<'a> {
    image: &'a Image<'a>,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    /// Why it did not become its program: a number of errno(3). It shares our memory, so it just writes it down.
    refusal: AtomicI32,
}

/// The child's pid. Its environment is empty and its folder is `/`. Every other open file that is not closed at exec stays open in it.
///
/// Errors: those of the preparation and of execve(2); no child is left then.
pub(crate) fn spawn(image: &Image<'_>) -> io::Result<u32> {
    let mut arguments: Vec<*const c_char> = image.arguments.iter().map(|word| word.as_ptr()).collect();
    arguments.push(ptr::null());
    let environment = [ptr::null()];
    let given = Given {
        image,
        arguments: arguments.as_ptr(),
        environment: environment.as_ptr(),
        refusal: AtomicI32::new(0),
    };
    let stack = Stack::new()?;
    let blocked = Blocked::new()?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs `begin` on a stack that is its own and large enough. It only reads what it is given, but for an atomic, and this
    // thread, which owns all of that, does not go on before the child has left our memory (CLONE_VFORK). No handler of ours runs in
    // it: all signals are blocked until it has none.
    let pid = unsafe { libc::clone(begin, stack.top(), flags, (&raw const given).cast_mut().cast()) };
    let failed = io::Error::last_os_error();
    drop(blocked);
    if pid < 0 {
        return Err(failed);
    }
    match given.refusal.load(Ordering::Acquire) {
        0 => u32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData.into()),
        refusal => {
            // SAFETY: our own child, that nobody else waits for; its status is not asked for.
            while unsafe { libc::waitpid(pid, ptr::null_mut(), 0) } < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
            Err(io::Error::from_raw_os_error(refusal))
        }
    }
}

/// The child, from its first instruction on.
extern "C" fn begin(given: *mut c_void) -> c_int {
    // SAFETY: what `spawn` gave, which lives until this has left its memory; it is only read.
    let given = unsafe { &*given.cast_const().cast::<Given<'_>>() };
    given.refusal.store(become_program(given), Ordering::Release);
    // SAFETY: ends the child without any of this process's own work at an exit.
    unsafe { libc::_exit(127) }
}

/// Returns only when it could not, with the reason.
fn become_program(given: &Given<'_>) -> c_int {
    let last = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    // SAFETY: system calls on values that live in the parent, which waits; see the module.
    unsafe {
        clear_handlers();
        for (number, from) in (0..).zip(given.image.standard) {
            if libc::dup2(from, number) < 0 {
                return last();
            }
        }
        if libc::chdir(c"/".as_ptr()) != 0 {
            return last();
        }
        if let Err(error) = (given.image.prepare)() {
            return error.raw_os_error().unwrap_or(libc::EIO);
        }
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        libc::execve(given.image.binary.as_ptr(), given.arguments, given.environment);
    }
    last()
}

/// Signals do what they do by default, but for those that are ignored, as exec(2) leaves them; and of these a broken pipe ends the program,
/// which Rust's runtime has changed for us alone.
///
/// # Safety
/// Only in a child whose signals are blocked.
unsafe fn clear_handlers() {
    for signal in 1..=LAST_SIGNAL {
        let mut found = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: reads the action of a number that may be one of no signal, which is refused, into memory that is large enough.
        let found = unsafe {
            if libc::sigaction(signal, ptr::null(), found.as_mut_ptr()) != 0 {
                continue;
            }
            found.assume_init()
        };
        let is_ignored = found.sa_sigaction == libc::SIG_IGN && signal != libc::SIGPIPE;
        if found.sa_sigaction == libc::SIG_DFL || is_ignored {
            continue;
        }
        let mut default = found;
        default.sa_sigaction = libc::SIG_DFL;
        // SAFETY: the action of this process alone, since signal handlers are not shared (no CLONE_SIGHAND).
        unsafe { libc::sigaction(signal, &raw const default, ptr::null_mut()) };
    }
}
