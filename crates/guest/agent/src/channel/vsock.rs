use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::watched::{WatchedFd, watch};

// Linux, include/linux/socket.h and include/uapi/linux/vm_sockets.h.
const AF_VSOCK: u16 = 40;
const VMADDR_CID_ANY: u32 = u32::MAX;
const VMADDR_CID_HOST: u32 = 2;

/// `struct sockaddr_vm`: family, reserved, port, context id, and zeros up to 16 bytes.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    context: u32,
    zero: [u8; 4],
}

const ADDRESS_LENGTH: SocketAddrLen = 16;
const _: () = assert!(size_of::<Address>() == ADDRESS_LENGTH as usize);

#[allow(unsafe_code)]
// SAFETY: the pointer and the length handed to `f` are of one whole, initialized value that outlives the call.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(std::ptr::from_ref(self).cast(), ADDRESS_LENGTH)
    }
}

/// A vsock port that lets only the host in.
#[derive(Debug)]
pub(super) struct Listener {
    socket: WatchedFd,
}

impl Listener {
    pub(super) fn bind(port: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let family = AddressFamily::from_raw(AF_VSOCK);
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let address = Address { family: AF_VSOCK, port, context: VMADDR_CID_ANY, ..Address::default() };
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, 4)?;
        Ok(Self { socket: watch(Arc::new(socket))? })
    }

    pub(super) async fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            let mut ready = self.socket.readable().await?;
            let accepted = ready.try_io(|socket| {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                Ok(rustix::net::acceptfrom_with(socket.get_ref(), flags)?)
            });
            match accepted {
                Ok(Ok((connection, Some(peer)))) if context(&peer) == Some(VMADDR_CID_HOST) => {
                    return Ok(connection);
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
            }
        }
    }
}

#[allow(unsafe_code)]
fn context(peer: &rustix::net::SocketAddrAny) -> Option<u32> {
    if peer.address_family() != AddressFamily::from_raw(AF_VSOCK) || peer.addr_len() < ADDRESS_LENGTH {
        return None;
    }
    // SAFETY: the address is of this family and at least this long, and every bit pattern is a valid `Address`.
    let address = unsafe { peer.as_ptr().cast::<Address>().read_unaligned() };
    Some(address.context)
}
