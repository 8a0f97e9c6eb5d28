use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use flames_guest_protocol::{Error, ErrorKind, MuxStream, Result};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::time::timeout;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const SPLICE_BYTES: usize = 16 * 1024;

/// Joins a stream with a TCP port of the loopback interface, each direction until its own end.
pub(super) async fn tcp(stream: &mut MuxStream, port: u16) -> Result<()> {
    let connecting = timeout(CONNECT_TIMEOUT, connect(port)).await;
    let mut connection = connecting
        .map_err(|_| Error::new(ErrorKind::Unavailable, format!("port {port} of the guest does not answer")))?
        .map_err(|error| Error::from_io(&format!("connect to port {port} of the guest"), &error))?;
    let _ = connection.set_nodelay(true);
    super::done(stream).await?;
    // How it ends is the two ends' own matter: a reset on one side is dropped on the other.
    let copied = copy_bidirectional_with_sizes(stream, &mut connection, SPLICE_BYTES, SPLICE_BYTES).await;
    match copied {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::from_io("tcp", &error)),
    }
}

async fn connect(port: u16) -> std::io::Result<TcpStream> {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(connection) => Ok(connection),
        Err(refused) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| refused),
    }
}
