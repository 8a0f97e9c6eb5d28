//! vsock by `vhost-device-vsock`: a helper process per VM, with Firecracker's convention for its host side
//! (<https://github.com/rust-vmm/vhost-device/tree/main/vhost-device-vsock>).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use flames_vmm_local::Folder;
use flames_vmm_local::vsock::{Accepted, ask, name_of};
use tokio::net::{UnixListener, UnixStream};

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
    ask(folder.connect(HOST_SOCKET).await?, port).await
}

/// What the guest connects to at `port` of its host. Its socket is removed with the stream.
pub(crate) fn accept(folder: &Folder, port: u32) -> io::Result<Accepted> {
    let name = name_of(HOST_SOCKET, port);
    let listener = std::os::unix::net::UnixListener::from(folder.listen(&name)?);
    listener.set_nonblocking(true)?;
    Ok(Accepted::removing(UnixListener::from_std(listener)?, folder.join(&name)))
}

/// `prefix` followed by a path, as one word.
fn word(prefix: &str, path: &Path) -> OsString {
    let mut word = prefix.as_bytes().to_vec();
    word.extend_from_slice(path.as_os_str().as_bytes());
    OsString::from_vec(word)
}
