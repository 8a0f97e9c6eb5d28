//! Reaching a guest by Firecracker's vsock, whose sockets are in its jail.

use std::io;
use std::time::Duration;

use flames_clock::Clock;
use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_jail::Jail;
use flames_vmm_local::vsock::{Accepted, ask, name_of};
use tokio::net::UnixStream;

use crate::machine::{VSOCK, inside};

/// Right after a boot the first connection may break once.
const SECOND_TRY: Duration = Duration::from_millis(10);

/// Connects to a port in the guest. No deadline of its own.
///
/// Errors: `Unavailable` when nothing listens there.
pub(crate) async fn connect(jail: &Jail, clock: &dyn Clock, port: u32) -> Result<UnixStream> {
    let silent = |error| Error::unavailable("vmm.connect", "nothing answers in the guest").with_source(error);
    let socket = inside(VSOCK)?;
    let dial = || async {
        // Before the machine is made there is no socket.
        jail.connect(&socket).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => error.with_kind(ErrorKind::Unavailable),
            _ => error,
        })
    };
    match ask(dial().await?, port).await {
        Ok(stream) => Ok(stream),
        Err(error) if is_broken(&error) => {
            clock.sleep(SECOND_TRY).await;
            ask(dial().await?, port).await.map_err(silent)
        }
        Err(error) => Err(silent(error)),
    }
}

fn is_broken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// What the guest connects to at `port` of its host. The socket goes with the jail, or with the next who listens on the port.
pub(crate) fn accept(jail: &Jail, port: u32) -> Result<Accepted> {
    jail.listen(&inside(name_of(VSOCK, port))?).map(Accepted::new)
}
