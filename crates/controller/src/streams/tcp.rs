//! TCP connections into a guest.

use flames_client::wire::stream::StreamFrame;
use flames_error::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{AcceptedStream, Broken, FromClient, ToClient, unexpected};

/// Bytes that are carried at once.
const PIECE: usize = 64 * 1024;

type Served = Result<(), Broken>;

impl AcceptedStream {
    pub(super) async fn tcp(&self, port: u16, to: &ToClient, from: &mut FromClient) -> Served {
        let guest = self.guest().await?;
        let connection = self.ask(guest.tcp(port)).await?;
        to.send(StreamFrame::Connected).await?;
        let (read, write) = tokio::io::split(connection);
        let (outward, inward) = (carry_out(read, to), carry_in(write, from));
        tokio::pin!(outward, inward);
        // Each direction ends for itself; the stream ends with both, or with the client.
        tokio::select! {
            biased;
            carried = &mut outward => {
                carried?;
                inward.await
            }
            carried = &mut inward => {
                carried?;
                outward.await
            }
        }
    }
}

fn cut_off(error: std::io::Error) -> Error {
    Error::unavailable("controller.tcp", "the connection in the guest was cut off")
        .with_user_message("The connection inside the guest was cut off.")
        .with_source(error)
}

async fn carry_out(mut connection: impl AsyncRead + Unpin, to: &ToClient) -> Served {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = connection.read(&mut buffer).await.map_err(cut_off)?;
        if count == 0 {
            return to.send(StreamFrame::End).await;
        }
        to.send(StreamFrame::Data(bytes::Bytes::copy_from_slice(&buffer[..count]))).await?;
    }
}

async fn carry_in(mut connection: impl AsyncWrite + Unpin, from: &mut FromClient) -> Served {
    loop {
        match from.next().await? {
            StreamFrame::Data(data) => connection.write_all(&data).await.map_err(cut_off)?,
            StreamFrame::End => {
                connection.shutdown().await.map_err(cut_off)?;
                return Ok(());
            }
            _ => return Err(unexpected().into()),
        }
        connection.flush().await.map_err(cut_off)?;
    }
}
