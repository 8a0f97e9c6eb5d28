//! Firecracker's vsock towards the host (`docs/vsock.md` of Firecracker): `CONNECT port\n` → `OK port\n` on its socket; the guest's
//! connections to its host's port N arrive at `<socket>_N`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use flames_clock::Clock;
use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_jail::Jail;
use flames_vmm::GuestStream;
use futures::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

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

async fn ask(mut stream: UnixStream, port: u32) -> io::Result<UnixStream> {
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

/// What the guest connects to at `port` of its host. The socket goes with the jail, or with the next who listens on the port.
pub(crate) fn accept(jail: &Jail, port: u32) -> Result<Accepted> {
    jail.listen(&inside(format!("{VSOCK}_{port}"))?).map(Accepted)
}

/// Connections from a guest.
#[derive(Debug)]
pub(crate) struct Accepted(UnixListener);

impl Stream for Accepted {
    type Item = GuestStream;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<GuestStream>> {
        self.0
            .poll_accept(context)
            .map(|accepted| accepted.ok().map(|(stream, _)| Box::new(stream) as GuestStream))
    }
}
