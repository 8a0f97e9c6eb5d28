//! The host's side of a guest's vsock where the monitor makes unix sockets of it, as Firecracker does (`docs/vsock.md` there), and after it
//! cloud-hypervisor and `vhost-device-vsock`: on one socket `CONNECT port\n` → `OK port\n`; the guest's connections to its host's port N
//! arrive at the socket of the same name with `_N` behind it.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use flames_vmm::GuestStream;
use futures::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// More bytes than any answer has.
const LONGEST_ANSWER: usize = 32;

/// Asks for a port in the guest over a fresh connection to the monitor's socket. No deadline of its own.
///
/// Errors: `ConnectionRefused` when nothing listens there; `InvalidData` for an answer without end; those of the connection, which ends
/// without an answer where the monitor refuses.
pub async fn ask(mut stream: UnixStream, port: u32) -> io::Result<UnixStream> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    // Byte by byte, since what follows the line is the guest's.
    let mut line = Vec::with_capacity(16);
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            break;
        }
        line.push(byte);
        if line.len() > LONGEST_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer without end"));
        }
    }
    if line.starts_with(b"OK ") { Ok(stream) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

/// The name of the socket at which the guest's connections to a port of its host arrive.
pub fn name_of(socket: &str, port: u32) -> String {
    format!("{socket}_{port}")
}

/// Connections from a guest.
#[derive(Debug)]
pub struct Accepted {
    listener: UnixListener,
    /// The socket's file, where it goes with this.
    path: Option<PathBuf>,
}

impl Accepted {
    /// Those of the listener, whose socket goes with something else.
    pub fn new(listener: UnixListener) -> Self {
        Self { listener, path: None }
    }

    /// Those of the listener, whose socket's file is removed with this.
    pub fn removing(listener: UnixListener, path: PathBuf) -> Self {
        Self { listener, path: Some(path) }
    }
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
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    async fn answered(answer: &[u8]) -> io::Result<Vec<u8>> {
        let (ours, mut monitor) = UnixStream::pair().unwrap();
        let says = async {
            let mut asked = [0; 13];
            monitor.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"CONNECT 1024\n");
            monitor.write_all(answer).await.unwrap();
            drop(monitor);
        };
        let (stream, ()) = tokio::join!(ask(ours, 1024), says);
        let mut rest = Vec::new();
        stream?.read_to_end(&mut rest).await?;
        Ok(rest)
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_guests() {
        assert_eq!(answered(b"OK 1073741824\nhello").await.unwrap(), b"hello");
    }

    #[tokio::test]
    async fn an_answer_that_refuses_ends_early_or_never_ends_is_an_error() {
        for (answer, kind) in [
            (&b"NO\n"[..], io::ErrorKind::ConnectionRefused),
            (b"", io::ErrorKind::UnexpectedEof),
            (b"OK 10", io::ErrorKind::UnexpectedEof),
            (&[b'x'; 100], io::ErrorKind::InvalidData),
        ] {
            assert_eq!(answered(answer).await.unwrap_err().kind(), kind, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_socket_goes_with_those_who_take_its_connections_where_it_is_theirs() {
        let folder = tempfile::tempdir().unwrap();
        for (name, goes) in [("removed", true), ("kept", false)] {
            let path = folder.path().join(name_of(name, 2000));
            let listener = UnixListener::bind(&path).unwrap();
            let mut accepted = match goes {
                true => Accepted::removing(listener, path.clone()),
                false => Accepted::new(listener),
            };
            let mut guest = UnixStream::connect(&path).await.unwrap();
            guest.write_all(b"hello").await.unwrap();
            drop(guest);
            let mut said = String::new();
            accepted.next().await.unwrap().read_to_string(&mut said).await.unwrap();
            assert_eq!(said, "hello");
            drop(accepted);
            assert_eq!(path.exists(), !goes);
        }
    }
}
