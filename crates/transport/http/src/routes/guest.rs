//! Talking to a guest: one conversation of frames over a host link.

use bytes::Bytes;
use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_service::{Caller, LinkChannel, LinkStream, VmRef, codes};
use flames_wire::stream::{FileAnswer, FileRequest, ProcessAnswer, ProcessRequest, StreamFrame};
use futures::stream::{BoxStream, StreamExt};

use crate::api::Api;

const OPERATION: &str = "http.guest";

/// A conversation with a guest. Dropping it ends it.
pub(crate) struct Guest {
    api: Api,
    channel: LinkChannel,
    /// The code of errors that the guest tells without one of their own.
    code: &'static str,
}

fn cut_off() -> Error {
    Error::unavailable(OPERATION, "the stream ended before its end")
        .with_code(codes::HOST_UNREACHABLE)
        .with_user_message("The connection to the VM broke. Try again.")
}

fn unexpected() -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, "a frame that does not belong here")
}

impl Guest {
    /// Opens a stream to a VM's current incarnation.
    pub(crate) async fn open(
        api: &Api,
        caller: &Caller,
        vm: &VmRef,
        stream: LinkStream,
        code: &'static str,
    ) -> Result<Self> {
        let channel = api.service.open_stream(caller, vm, stream).await?;
        Ok(Self { api: api.clone(), channel, code })
    }

    /// The file conversation that begins with this request.
    pub(crate) async fn files(api: &Api, caller: &Caller, vm: &VmRef, request: FileRequest) -> Result<Self> {
        let mut guest = Self::open(api, caller, vm, LinkStream::Files, codes::GUEST_FILE).await?;
        guest.send(StreamFrame::FileRequest(request)).await?;
        Ok(guest)
    }

    /// The process conversation that begins with this request.
    pub(crate) async fn processes(
        api: &Api,
        caller: &Caller,
        vm: &VmRef,
        request: ProcessRequest,
    ) -> Result<Self> {
        let mut guest = Self::open(api, caller, vm, LinkStream::Processes, codes::PROCESS_NOT_FOUND).await?;
        guest.send(StreamFrame::ProcessRequest(request)).await?;
        Ok(guest)
    }

    /// Sends a frame. When the other side is gone, its last word is the error.
    pub(crate) async fn send(&mut self, frame: StreamFrame) -> Result<()> {
        let sending = self.channel.sender.send(frame.encode()?);
        match self.api.service.clock().timeout(self.api.config.idle_timeout, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => match self.next().await {
                Err(error) => Err(error),
                Ok(_) => Err(cut_off()),
            },
            Err(_) => Err(cut_off()),
        }
    }

    /// The next frame; an error frame comes as the error that it tells.
    pub(crate) async fn next(&mut self) -> Result<StreamFrame> {
        let next = self.channel.receiver.recv();
        let next = self.api.service.clock().timeout(self.api.config.idle_timeout, next).await;
        let frame = next.map_err(|_| cut_off())?.ok_or_else(cut_off)?;
        self.decode(frame)
    }

    fn decode(&self, frame: Bytes) -> Result<StreamFrame> {
        match StreamFrame::decode(frame)? {
            StreamFrame::Error(error) => {
                let uncoded = error.code == codes::INTERNAL && error.kind != ErrorKind::Internal.as_str();
                let error = error.into_error(OPERATION);
                let speaks_of_the_guest =
                    matches!(error.kind(), ErrorKind::NotFound) || self.code == codes::GUEST_FILE;
                let error = if (uncoded || error.code().is_none()) && speaks_of_the_guest {
                    error.with_code(self.code)
                } else {
                    error
                };
                Err(error)
            }
            frame => Ok(frame),
        }
    }

    /// The next frame, which must be an answer about files.
    pub(crate) async fn file_answer(&mut self) -> Result<FileAnswer> {
        match self.next().await? {
            StreamFrame::FileAnswer(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    /// The next answer about processes; none at the end.
    pub(crate) async fn process_answer(&mut self) -> Result<Option<ProcessAnswer>> {
        match self.next().await? {
            StreamFrame::ProcessAnswer(answer) => Ok(Some(answer)),
            StreamFrame::End => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// The next answer about files; none at the end.
    pub(crate) async fn more_file_answers(&mut self) -> Result<Option<FileAnswer>> {
        match self.next().await? {
            StreamFrame::FileAnswer(answer) => Ok(Some(answer)),
            StreamFrame::End => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// The frames up to the end, without a limit of time between them: output that is followed may be silent for long. Ends when the
    /// server stops.
    pub(crate) fn frames(self) -> BoxStream<'static, Result<StreamFrame>> {
        let stop = self.api.stop.clone();
        let frames = futures::stream::unfold((self, false), |(mut guest, ended)| async move {
            if ended {
                return None;
            }
            let frame = match guest.channel.receiver.recv().await {
                Some(frame) => guest.decode(frame),
                None => Err(cut_off()),
            };
            match frame {
                Ok(StreamFrame::End) => None,
                frame => {
                    let ended = frame.is_err();
                    Some((frame, (guest, ended)))
                }
            }
        });
        frames.take_until(stop.cancelled_owned()).boxed()
    }
}
