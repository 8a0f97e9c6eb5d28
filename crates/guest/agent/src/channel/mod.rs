//! The byte streams on which controllers come: the virtio-serial port, vsock, or a unix socket.

mod device;
mod vsock;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flames_guest_protocol::{VIRTIO_PORT_NAME, VSOCK_PORT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub use device::DeviceStream;

use crate::agent::Agent;
use crate::console;

/// How many controllers may be connected, or about to be, where several can.
const MAX_CONNECTIONS: usize = 4;
/// How soon a virtio-serial port is looked at again while nobody has its other end, at first and at last.
const PEER_INTERVAL: Duration = Duration::from_millis(10);
const MAX_PEER_INTERVAL: Duration = Duration::from_millis(200);
/// How long the port may take to appear.
const PORT_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves controllers on the virtio-serial port and on vsock, whichever the VM has, for ever. It ends only when
/// neither is there.
pub async fn serve_all(agent: &Arc<Agent>) {
    tokio::join!(
        async {
            match serve_virtio(agent).await {
                Ok(()) => {}
                Err(error) => console::line(&format!("no virtio-serial channel: {error}")),
            }
        },
        async {
            match serve_vsock(agent).await {
                Ok(()) => {}
                Err(error) => console::line(&format!("no vsock channel: {error}")),
            }
        }
    );
}

/// Waits for the virtio-serial port and serves controllers on it, one after the other.
///
/// Errors: when there is no such port after 30 s, or it cannot be opened.
pub async fn serve_virtio(agent: &Arc<Agent>) -> std::io::Result<()> {
    let deadline = Instant::now() + PORT_TIMEOUT;
    let path = loop {
        if let Some(path) = find_port(VIRTIO_PORT_NAME) {
            break path;
        }
        if Instant::now() >= deadline {
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "no port is there"));
        }
        sleep(Duration::from_millis(10)).await;
    };
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let port = Arc::new(rustix::fs::open(&path, flags, Mode::empty())?);
    loop {
        // A hang-up stays in tokio's readiness for ever, so that the port is registered anew for each peer; and
        // the kernel tells a peer's coming only to who asks.
        let mut interval = PEER_INTERVAL;
        while !has_peer(&port)? {
            sleep(interval).await;
            interval = (interval * 2).min(MAX_PEER_INTERVAL);
        }
        agent.serve(DeviceStream::new(port.clone())?).await;
    }
}

fn has_peer(port: &OwnedFd) -> std::io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(port.as_fd(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default()))?;
    Ok(!fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

fn find_port(name: &str) -> Option<PathBuf> {
    // udev's name; an initramfs has no udev.
    let linked = Path::new("/dev/virtio-ports").join(name);
    if linked.exists() {
        return Some(linked);
    }
    for entry in Path::new("/sys/class/virtio-ports").read_dir().ok()?.flatten() {
        let named = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        let node = Path::new("/dev").join(entry.file_name());
        if named.trim_end() == name && node.exists() {
            return Some(node);
        }
    }
    None
}

/// Serves controllers on vsock. Only the host is let in: a process of the guest is not.
///
/// Errors: when the kernel has no vsock.
pub async fn serve_vsock(agent: &Arc<Agent>) -> std::io::Result<()> {
    let listener = vsock::Listener::bind(VSOCK_PORT)?;
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut sessions = JoinSet::new();
    loop {
        let connection = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                console::line(&format!("vsock accept: {error}"));
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while sessions.try_join_next().is_some() {}
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let agent = agent.clone();
        sessions.spawn(async move {
            if let Ok(stream) = DeviceStream::new(Arc::new(connection)) {
                agent.serve(stream).await;
            }
            drop(permit);
        });
    }
}

/// Serves controllers on a unix socket, for an agent that is not in a VM.
///
/// Errors: when the socket cannot be made.
pub async fn serve_unix(agent: &Arc<Agent>, path: &Path) -> std::io::Result<()> {
    let listener = tokio::net::UnixListener::bind(path)?;
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut sessions = JoinSet::new();
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        while sessions.try_join_next().is_some() {}
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let agent = agent.clone();
        sessions.spawn(async move {
            agent.serve(connection).await;
            drop(permit);
        });
    }
}
