//! vsock by `vhost-device-vsock`: a helper process per VM, with Firecracker's convention for its host side
//! (<https://github.com/rust-vmm/vhost-device/tree/main/vhost-device-vsock>): `CONNECT port\n` → `OK port\n` on `vsock`; the guest's
//! connections to its host's port N arrive at `vsock_N`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use flames_vmm::GuestStream;
use futures::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::folder::Folder;

/// Where QEMU meets the helper.
pub(crate) const MONITOR_SOCKET: &str = "vhost.sock";
/// Where the host's connections to the guest enter.
const HOST_SOCKET: &str = "vsock";
/// The guest's context id. Each VM has a helper of its own, so all may have the same; 0 to 2 are taken (vsock(7)).
const GUEST_CID: u32 = 3;
/// unix(7): a path of a socket has at most 107 bytes, and the longest port adds 11.
const LONGEST_PATH: usize = 107 - 11;

/// The value of the helper's `--vm`.
pub(crate) fn helper_argument(folder: &Folder) -> OsString {
    let mut argument = word(&format!("guest-cid={GUEST_CID},uds-path="), &folder.join(HOST_SOCKET));
    argument.push(word(",socket=", &folder.join(MONITOR_SOCKET)));
    argument
}

/// Whether the helper, which takes whole paths only and splits them at commas, can work in the folder.
pub(crate) fn fits(folder: &Folder) -> bool {
    let path = folder.join(HOST_SOCKET);
    let longest = path.as_os_str().len().max(folder.join(MONITOR_SOCKET).as_os_str().len());
    longest <= LONGEST_PATH && !path.as_os_str().as_encoded_bytes().contains(&b',')
}

/// Connects to a port in the guest. An error when nothing listens there. No deadline of its own.
pub(crate) async fn connect(folder: &Folder, port: u32) -> io::Result<UnixStream> {
    let mut stream = folder.connect(HOST_SOCKET).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    // Byte by byte, since what follows the line is the guest's.
    let mut line = Vec::with_capacity(16);
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            break;
        }
        line.push(byte);
        if line.len() > 32 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer without end"));
        }
    }
    if line.starts_with(b"OK ") { Ok(stream) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

/// What the guest connects to at `port` of its host. Its socket is removed with the stream.
pub(crate) fn accept(folder: &Folder, port: u32) -> io::Result<Accepted> {
    let name = format!("{HOST_SOCKET}_{port}");
    let listener = std::os::unix::net::UnixListener::from(folder.listen(&name)?);
    listener.set_nonblocking(true)?;
    Ok(Accepted { listener: UnixListener::from_std(listener)?, path: folder.join(&name) })
}

/// Connections from a guest.
#[derive(Debug)]
pub(crate) struct Accepted {
    listener: UnixListener,
    path: PathBuf,
}

impl Stream for Accepted {
    type Item = GuestStream;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<GuestStream>> {
        self.listener
            .poll_accept(context)
            .map(|accepted| accepted.ok().map(|(stream, _)| Box::new(stream) as GuestStream))
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// `prefix` followed by a path, as one word.
fn word(prefix: &str, path: &Path) -> OsString {
    let mut word = prefix.as_bytes().to_vec();
    word.extend_from_slice(path.as_os_str().as_bytes());
    OsString::from_vec(word)
}
