//! How bytes reach a guest.

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{ControllerId, IncarnationId, IncarnationState, VmId};
use tokio::sync::mpsc;

use crate::{Caller, Service, VmRef, codes};

/// How long a host is asked again that has no link yet, or does not have a VM of its own.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(3);
/// The pause before it is.
const ASK_AGAIN: Duration = Duration::from_millis(50);

const UNREACHABLE: &str =
    "The VM's host cannot be reached right now. Try again, and see `flames controllers`.";

/// Which guest is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkTarget {
    /// The incarnation that must answer.
    pub incarnation: IncarnationId,
    /// Its VM.
    pub vm: VmId,
    /// The controller that runs it.
    pub controller: ControllerId,
}

/// As `<incarnation>/<vm>/<controller>`: for who hands a target on as text (an ingress does).
impl Display for LinkTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.incarnation, self.vm, self.controller)
    }
}

impl FromStr for LinkTarget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let mut parts = text.splitn(3, '/');
            Some(Self {
                incarnation: parts.next()?.parse().ok()?,
                vm: parts.next()?.parse().ok()?,
                controller: parts.next()?.parse().ok()?,
            })
        };
        read().ok_or_else(|| {
            Error::invalid("links.target", "target", "A guest is named as `<incarnation>/<vm>/<controller>`.")
        })
    }
}

/// A process to start in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessSpec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment over the workload's own.
    pub env: Vec<(String, String)>,
    /// Working directory; none: the workload's.
    pub working_directory: Option<String>,
    /// User; none: the workload's.
    pub user: Option<String>,
    /// Rows and columns of its terminal; none: no terminal.
    pub terminal: Option<(u16, u16)>,
    /// Whether its standard input stays open for the stream.
    pub stdin: bool,
}

/// What a stream is for. The frames that follow are opaque to the control plane: client and controller agree on them (`flames-wire`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkStream {
    /// Start a process and attach to it.
    Exec(ProcessSpec),
    /// Attach to a process that is there, replaying its output from an offset.
    Attach {
        /// Which process; `main` is the workload.
        process: String,
        /// From which offset of its output on.
        from: u64,
    },
    /// One operation on files; request and data follow as frames.
    Files,
    /// The workload's output.
    Logs {
        /// Go on as it grows.
        follow: bool,
        /// Only output at or behind this time.
        since: Option<flames_model::Timestamp>,
        /// Only this many lines at the end.
        tail: Option<u64>,
    },
    /// The machine's serial console.
    Console {
        /// Go on as it grows.
        follow: bool,
    },
    /// A TCP connection to a port inside the guest.
    Tcp(u16),
    /// One operation on processes (list, signal); request and answer follow as frames.
    Processes,
}

/// One end of a stream of bounded frames, in both directions. Closing either half is seen by the other side.
#[derive(Debug)]
pub struct LinkChannel {
    /// Frames to the other side.
    pub sender: mpsc::Sender<Bytes>,
    /// Frames from the other side.
    pub receiver: mpsc::Receiver<Bytes>,
}

impl LinkChannel {
    /// The longest frame, in bytes.
    pub const MAX_FRAME: usize = 128 * 1024;
    /// How many frames wait in each direction before the sender does.
    pub const DEPTH: usize = 16;

    /// Two ends of one stream.
    pub fn pair() -> (Self, Self) {
        let (to_b, from_a) = mpsc::channel(Self::DEPTH);
        let (to_a, from_b) = mpsc::channel(Self::DEPTH);
        (Self { sender: to_b, receiver: from_b }, Self { sender: to_a, receiver: from_a })
    }
}

/// How the control plane reaches controllers: an interface of this crate, implemented by `flames-transport-link`.
#[async_trait]
pub trait HostLinks: Debug + Send + Sync + 'static {
    /// Opens a stream. The controller refuses one whose incarnation it does not own.
    ///
    /// Errors: `Unavailable` when the controller has no link; `NotFound` when it does not own the incarnation.
    async fn open(&self, target: LinkTarget, stream: LinkStream) -> Result<LinkChannel>;
}

/// No links: every stream is refused. For parts of the system that need none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLinks;

#[async_trait]
impl HostLinks for NoLinks {
    async fn open(&self, _target: LinkTarget, _stream: LinkStream) -> Result<LinkChannel> {
        // There will be none, so nobody is to wait for one.
        Err(Error::unavailable("links.open", "no link to any controller")
            .with_code(codes::HOST_UNREACHABLE)
            .with_user_message(UNREACHABLE))
    }
}

impl LinkStream {
    /// Whether the guest must run for it. Logs and console are kept on the host.
    fn needs_guest(&self) -> bool {
        !matches!(self, Self::Logs { .. } | Self::Console { .. } | Self::Attach { .. })
    }
}

impl Service {
    /// Opens a stream to a VM's current incarnation. A host that was started anew a moment ago dials in and takes its VMs up again first, and is
    /// asked again until it has, for 3 seconds at most.
    ///
    /// Errors: `NotFound` ([`codes::VM_NOT_FOUND`]); `Conflict` ([`codes::VM_NOT_RUNNING`]) when it does not run;
    /// `Unavailable` ([`codes::HOST_UNREACHABLE`]).
    pub async fn open_stream(&self, caller: &Caller, vm: &VmRef, stream: LinkStream) -> Result<LinkChannel> {
        self.open_taken_up(&stream, || self.stream_target(caller, vm, &stream)).await
    }

    /// The incarnation that a stream is for.
    async fn stream_target(&self, caller: &Caller, vm: &VmRef, stream: &LinkStream) -> Result<LinkTarget> {
        let view = self.get_vm(caller, vm).await?;
        let runs = view.incarnation.as_ref().filter(|incarnation| {
            !stream.needs_guest()
                || matches!(incarnation.state, IncarnationState::Running | IncarnationState::Stopping)
        });
        let Some(incarnation) = runs else {
            return Err(Error::new(ErrorKind::Conflict, "service.stream", "the VM does not run")
                .with_resource("vm", view.vm.id.to_string())
                .with_code(codes::VM_NOT_RUNNING)
                .with_user_message(format!(
                    "The VM `{0}` is {1}; this needs a running one. Use `flames {2} {0}`.",
                    view.vm.name,
                    view.state,
                    if view.state == flames_model::VmState::Paused { "resume" } else { "start" },
                )));
        };
        Ok(LinkTarget { incarnation: incarnation.id, vm: view.vm.id, controller: incarnation.controller })
    }

    /// Opens a stream to one incarnation, whatever became of it: its controller refuses what it does not own. Waits as [`Service::open_stream`]
    /// does. For parts of the system that hold a target on behalf of a VM, as an ingress does; callers of the API come through
    /// [`Service::open_stream`].
    ///
    /// Errors: `Unavailable` ([`codes::HOST_UNREACHABLE`]), also when its controller does not own it.
    pub async fn open_link(&self, target: LinkTarget, stream: LinkStream) -> Result<LinkChannel> {
        self.open_taken_up(&stream, || std::future::ready(Ok(target))).await
    }

    /// Opens a stream to the target, which is asked for again before each try. A host without a link was started anew a moment ago, or we were;
    /// one that does not have the target has not taken it up yet, or it is gone, which the record says in a moment.
    async fn open_taken_up<T: Future<Output = Result<LinkTarget>>>(
        &self,
        stream: &LinkStream,
        target: impl Fn() -> T,
    ) -> Result<LinkChannel> {
        let until = self.clock().monotonic().saturating_add(TAKEN_UP_WITHIN);
        loop {
            let error = match self.parts.links.open(target().await?, stream.clone()).await {
                Ok(channel) => return Ok(channel),
                Err(error) if error.code().is_some() => return Err(error),
                Err(error) => error,
            };
            let sentence = match error.kind() {
                ErrorKind::Unavailable | ErrorKind::NotFound if self.clock().monotonic() < until => {
                    self.clock().sleep(ASK_AGAIN).await;
                    continue;
                }
                ErrorKind::Unavailable => UNREACHABLE,
                ErrorKind::NotFound => "The VM is just changing. Try again.",
                _ => return Err(error),
            };
            return Err(error
                .with_kind(ErrorKind::Unavailable)
                .with_code(codes::HOST_UNREACHABLE)
                .with_user_message(sentence));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_it_is_written() {
        let uuid = uuid::Uuid::from_u128(7);
        let target = LinkTarget {
            incarnation: IncarnationId::from_uuid(uuid),
            vm: VmId::from_uuid(uuid),
            controller: ControllerId::from_uuid(uuid),
        };
        assert_eq!(target.to_string().parse::<LinkTarget>().unwrap(), target);
        assert!("inc_1/vm_1".parse::<LinkTarget>().is_err());
    }
}
