//! The tap that Firecracker opens.

use std::fs::{File, OpenOptions};

use flames_error::Result;
use rustix::ioctl::{IntegerSetter, Updater, ioctl};

use super::refused;

// linux/if_tun.h, the same on every architecture that Firecracker runs on.
const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
const TUNSETPERSIST: rustix::ioctl::Opcode = 0x4004_54cb;
const TUNSETOWNER: rustix::ioctl::Opcode = 0x4004_54cc;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// `struct ifreq` (linux/if.h): a name, then a union of 24 bytes whose first two are the flags.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const OPERATION: &str = "network.tap";

/// Makes a tap in the calling thread's namespace that outlives this process and that processes of this user may open. One that
/// is there is given to the user.
pub(crate) fn create(name: &str, owner: u32) -> Result<()> {
    // A child that is forked meanwhile would have the tap open until it becomes its program, and Firecracker would find it busy.
    flames_host::process::without_forks(|| {
        let file = attach(name)?;
        set(&file, owner).map_err(|error| refused(OPERATION, "giving the tap away", error.into()))
    })
}

#[allow(unsafe_code)]
fn set(file: &File, owner: u32) -> rustix::io::Result<()> {
    let owner = usize::try_from(owner).unwrap_or(usize::MAX);
    // SAFETY: both opcodes take an integer by value and touch no memory of this process.
    unsafe {
        ioctl(file, IntegerSetter::<TUNSETOWNER>::new_usize(owner))?;
        ioctl(file, IntegerSetter::<TUNSETPERSIST>::new_usize(1))
    }
}

/// Opens the tap of this name in the calling thread's namespace as Firecracker does (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR); it is
/// made where it is not there, and then ends with the descriptor.
///
/// Errors: `NotFound` without /dev/net/tun; `Unavailable` while another process has it open.
#[allow(unsafe_code)]
pub(crate) fn attach(name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|error| refused(OPERATION, "opening /dev/net/tun", error))?;
    let mut request =
        InterfaceRequest { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    // The last byte stays the end of the text.
    for (place, byte) in request.name.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    // SAFETY: TUNSETIFF takes a pointer to a `struct ifreq`, whose layout and size `InterfaceRequest` has, reads it and writes
    // the name back into it; it lives across the call.
    unsafe { ioctl(&file, Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request)) }
        .map_err(|error| refused(OPERATION, "attaching to the tap", error.into()))?;
    Ok(file)
}
