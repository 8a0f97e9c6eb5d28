//! The session with one guest's agent: connected, connected again, its workload's output written to the log, its workload's end heard.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flames_clock::{Monotonic, RandomExt};
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::client::ProcessEvent;
use flames_guest_protocol::message::{AttachRequest, MAIN_PROCESS, ProcessExit, RestoredRequest};
use flames_guest_protocol::{AgentKey, Identity, SecretString};
use flames_model::IncarnationId;
use flames_vmm::{AGENT_PORT, IncarnationName};
use futures::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::backoff::Backoff;
use crate::folder::{MAX_ENTRY, OutputEntry};
use crate::guest::{Guest, GuestOutput};
use crate::shared::Shared;

/// The pauses between tries of an agent that has not answered yet: the sooner it is noticed, the better. The first is short for guests that
/// come up at once, as restored ones do.
const BOOTING_RETRY: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));
/// How many bytes of output are gathered for one write.
const GATHERED: usize = 256 * 1024;

/// What is known of a guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct GuestView {
    /// Its agent, while there is a session.
    pub(crate) guest: Option<Arc<dyn Guest>>,
    /// Whether its agent has ever answered.
    pub(crate) ready: bool,
    /// How its workload ended. All of its output before that was logged.
    pub(crate) exit: Option<ProcessExit>,
    /// Why the last try to connect failed.
    pub(crate) last_error: Option<String>,
}

/// Keeps a session with a guest's agent. Ends it when dropped.
#[derive(Debug)]
pub(crate) struct GuestSession {
    pub(crate) view: watch::Receiver<GuestView>,
    paused: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for GuestSession {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl GuestSession {
    /// Connects, and stays connected.
    pub(crate) fn start(
        shared: Arc<Shared>,
        id: IncarnationId,
        name: IncarnationName,
        identity: Identity,
        introduction: Option<Introduction>,
        paused: bool,
    ) -> Self {
        let (view_sender, view) = watch::channel(GuestView::default());
        let (paused_sender, paused) = watch::channel(paused);
        let keeper = Keeper { shared, id, name, identity, introduction, view: view_sender, paused };
        Self { view, paused: paused_sender, task: tokio::spawn(keeper.run()) }
    }

    /// Whether the guest's processors stand still, so that its silence means nothing.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// The agent, while there is a session.
    pub(crate) fn guest(&self) -> Option<Arc<dyn Guest>> {
        self.view.borrow().guest.clone()
    }
}

/// What a guest that was loaded from a snapshot must be told before it is taken for up.
#[derive(Debug, Clone)]
pub(crate) struct Introduction {
    /// Who its agent takes itself for.
    pub(crate) old: Identity,
    /// What it is from now on; clock and seed are filled in when it is sent.
    pub(crate) request: RestoredRequest,
}

struct Keeper {
    shared: Arc<Shared>,
    id: IncarnationId,
    name: IncarnationName,
    identity: Identity,
    introduction: Option<Introduction>,
    view: watch::Sender<GuestView>,
    paused: watch::Receiver<bool>,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::new(&self.shared.config.timings);
        let mut booting = Backoff::between(BOOTING_RETRY.0, BOOTING_RETRY.1);
        // A guest within this process, as simulated ones are, has begun before it is asked, and answers at once.
        tokio::task::yield_now().await;
        loop {
            if self.paused.wait_for(|paused| !*paused).await.is_err() {
                return;
            }
            let error = match self.connect().await {
                Ok(guest) => {
                    self.view.send_modify(|view| {
                        view.guest = Some(Arc::clone(&guest));
                        view.ready = true;
                        view.last_error = None;
                    });
                    self.shared.live_changed(self.id);
                    let since = self.shared.clock.monotonic();
                    let ended = self.serve(guest.as_ref()).await;
                    self.view.send_modify(|view| view.guest = None);
                    self.shared.live_changed(self.id);
                    if self.shared.clock.monotonic().saturating_since(since) > Duration::from_secs(10) {
                        backoff.reset();
                    }
                    ended
                }
                Err(error) => error,
            };
            tracing::debug!(incarnation = %self.id, ?error, "no session with the guest's agent");
            let ready = self.view.borrow().ready;
            let wait = if ready { &mut backoff } else { &mut booting }.next(self.shared.random.as_ref());
            if !ready {
                let said = error.user_message().unwrap_or_else(|| error.message()).to_owned();
                self.view.send_if_modified(|view| {
                    view.last_error = Some(said);
                    false
                });
            }
            self.shared.clock.sleep(wait).await;
        }
    }

    async fn connect(&mut self) -> Result<Arc<dyn Guest>> {
        self.introduce().await?;
        let (shared, limit) = (&self.shared, self.shared.config.timings.guest_call);
        let guest = self.greet(&self.identity).await?;
        let info = shared.within("controller.info", limit, guest.info()).await?;
        tracing::debug!(incarnation = %self.id, kernel = info.kernel, uptime_ms = info.uptime_ms, "the guest is up");
        Ok(guest)
    }

    async fn greet(&self, identity: &Identity) -> Result<Arc<dyn Guest>> {
        let (shared, limit) = (&self.shared, self.shared.config.timings.guest_call);
        let connecting = shared.driver.connect(&self.name, AGENT_PORT);
        let stream = shared.within("controller.connect", limit, connecting).await?;
        let greeting = shared.guests.connect(stream, identity);
        Ok(Arc::from(shared.within("controller.greet", limit, greeting).await?))
    }

    /// Tells a guest that was loaded from a snapshot what it is. One that knows it already refuses its old identity.
    async fn introduce(&mut self) -> Result<()> {
        let Some(Introduction { old, request }) = self.introduction.clone() else { return Ok(()) };
        let (shared, limit) = (&self.shared, self.shared.config.timings.guest_call);
        match self.greet(&old).await {
            Ok(guest) => {
                let seed: [u8; 32] = shared.random.bytes();
                let request = RestoredRequest {
                    epoch_ms: u64::try_from(shared.clock.now().as_millisecond()).unwrap_or(0),
                    seed: SecretString::new(AgentKey::from_bytes(seed).to_hex()),
                    ..request
                };
                shared.within("controller.introduce", limit, guest.restored(request)).await?;
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
        self.introduction = None;
        Ok(())
    }

    /// Follows the workload until the session is gone.
    async fn serve(&self, guest: &dyn Guest) -> Error {
        let work = async {
            let now = u64::try_from(self.shared.clock.now().as_millisecond()).unwrap_or(0);
            // A guest's clock was set when it booted, or stood still with it: a failure does no harm to anything of ours.
            let limit = self.shared.config.timings.guest_call;
            let _ = self.shared.within("controller.set_clock", limit, guest.set_clock(now)).await;
            match self.follow(guest).await {
                Ok(()) => std::future::pending().await,
                Err(error) => error,
            }
        };
        tokio::select! {
            biased;
            error = work => error,
            () = guest.closed() => Error::unavailable("guest.session", "the session with the guest's agent ended"),
        }
    }

    /// Logs the workload's output and hears its end. Returns when there is nothing more to hear.
    async fn follow(&self, guest: &dyn Guest) -> Result<()> {
        if self.view.borrow().exit.is_some() {
            return Ok(());
        }
        let from = self.shared.folder.output_end(self.id).await.unwrap_or(0);
        let request = AttachRequest {
            process: MAIN_PROCESS.to_owned(),
            from_offset: from,
            stdin: false,
            lossless: true,
            follow: true,
        };
        let limit = self.shared.config.timings.guest_call;
        let attached = self.shared.within("controller.attach", limit, guest.attach(request)).await;
        let mut process = match attached {
            Ok((_, process)) => process,
            // It runs nothing, and stays up.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut log = OutputLog::new(&self.shared, self.id, from);
        let exit = log.pump(process.output.as_mut()).await?;
        self.view.send_modify(|view| view.exit = Some(exit));
        Ok(())
    }
}

/// Writes what a workload says to its log, no faster than allowed.
struct OutputLog<'a> {
    shared: &'a Shared,
    id: IncarnationId,
    /// The offset behind the last byte that was taken.
    taken: u64,
    /// When all that was taken would have come at the rate that is allowed.
    due: Monotonic,
}

impl<'a> OutputLog<'a> {
    fn new(shared: &'a Shared, id: IncarnationId, from: u64) -> Self {
        Self { shared, id, taken: from, due: shared.clock.monotonic() }
    }

    /// Until the process has ended.
    async fn pump(&mut self, output: &mut dyn GuestOutput) -> Result<ProcessExit> {
        loop {
            let mut next = output.next().await;
            let (mut entries, mut bytes) = (Vec::new(), 0);
            // What is there already goes into the same write.
            let end = loop {
                match next {
                    Ok(Some(ProcessEvent::Output { stream, offset, at_ms, content })) => {
                        bytes += content.len();
                        self.take(stream, offset, at_ms, content, &mut entries);
                    }
                    Ok(Some(ProcessEvent::Truncated { available_from })) => {
                        self.taken = self.taken.max(available_from);
                    }
                    Ok(Some(ProcessEvent::Exited(exit))) => break Some(Ok(exit)),
                    Ok(None) => {
                        let early = "the workload's output ended before the workload";
                        break Some(Err(Error::unavailable("guest.output", early)));
                    }
                    Err(error) => break Some(Err(error)),
                }
                if bytes >= GATHERED {
                    break None;
                }
                match output.next().now_or_never() {
                    Some(event) => next = event,
                    None => break None,
                }
            };
            self.write(entries).await;
            match end {
                Some(end) => return end,
                None => self.slow_down(bytes).await,
            }
        }
    }

    /// Takes a piece of output, but for what was taken before.
    fn take(
        &mut self,
        stream: u8,
        offset: u64,
        at_ms: u64,
        mut content: Bytes,
        entries: &mut Vec<OutputEntry>,
    ) {
        let known = usize::try_from(self.taken.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut offset = offset.saturating_add(known.min(content.len()) as u64);
        let _ = content.split_to(known.min(content.len()));
        if content.is_empty() {
            return;
        }
        self.taken = offset.saturating_add(content.len() as u64);
        // Many small pieces of one stream become one, so that a header is not paid for each byte.
        if let Some(last) = entries.last_mut()
            && last.stream == stream
            && last.end() == offset
            && last.data.len() + content.len() <= MAX_ENTRY
        {
            let mut joined = BytesMut::from(std::mem::take(&mut last.data));
            joined.extend_from_slice(&content);
            last.data = joined.freeze();
            return;
        }
        while !content.is_empty() {
            let data = content.split_to(content.len().min(MAX_ENTRY));
            let length = data.len() as u64;
            entries.push(OutputEntry { stream, offset, at_ms, data });
            offset = offset.saturating_add(length);
        }
    }

    async fn write(&self, entries: Vec<OutputEntry>) {
        if entries.is_empty() {
            return;
        }
        // A full disk of the host must not stop the guest's workload: what cannot be kept is lost, and the gap in the offsets says so.
        if let Err(error) = self.shared.folder.append_output(self.id, entries).await {
            tracing::warn!(?error, incarnation = %self.id, "output could not be kept");
        }
        self.shared.live_changed(self.id);
    }

    /// Waits as long as the workload is ahead of what it may write, by more than a second's worth.
    async fn slow_down(&mut self, bytes: usize) {
        let rate = self.shared.config.bounds.output_bytes_per_second.max(1);
        let now = self.shared.clock.monotonic();
        let cost = Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate);
        self.due = self.due.max(now).saturating_add(cost);
        let ahead = self.due.saturating_since(now);
        if ahead > Duration::from_secs(1) {
            self.shared.clock.sleep(ahead - Duration::from_secs(1)).await;
        }
    }
}
