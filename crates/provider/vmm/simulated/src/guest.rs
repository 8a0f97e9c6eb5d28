//! What runs in a simulated machine.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};

use flames_clock::Monotonic;
use flames_error::{Error, Result};
use flames_vmm::{AgentChannel, ExitCause, GuestStream, IncarnationName, SecretBytes};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::console::ConsoleLog;
use crate::host::SimulatedHost;
use crate::lock;
use crate::power::{Power, PowerState, PoweredStream, Stalls};
use crate::state::Ending;

/// Connections that wait for a listener to accept them; more are refused.
const BACKLOG: usize = 16;

/// A guest's program under way.
pub type GuestFuture = BoxFuture<'static, ()>;

/// What the guests of a host run.
pub trait GuestProgram: Debug + Send + Sync + 'static {
    /// The program of one guest, called each time that one starts. A restored one gets the configuration of the guest that was saved, as it
    /// has that in its memory. The host owns the future: it is polled while the VM runs, not
    /// while it is paused, and dropped when the VM is gone. When it ends, the guest powers itself off; when it panics, the
    /// guest has crashed by itself ([`ExitCause::Guest`] with the panic's message).
    ///
    /// Further tasks belong on [`SimulatedGuest::spawn`], so that they stand still and end with the VM too.
    fn boot(&self, incarnation: &IncarnationName, config: &SecretBytes, guest: SimulatedGuest)
    -> GuestFuture;
}

/// How a guest came to life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestOrigin {
    /// From its kernel.
    Booted,
    /// From a snapshot.
    Restored {
        /// The incarnation that was saved.
        of: IncarnationName,
        /// The snapshot's name.
        snapshot: String,
    },
}

/// A connection's watchers at both of its ends.
type Line = [u64; 2];

/// Where each port's connections go.
type Ports = Mutex<BTreeMap<u32, mpsc::Sender<GuestStream>>>;

#[derive(Debug)]
pub(crate) struct GuestShared {
    pub(crate) name: IncarnationName,
    pub(crate) origin: GuestOrigin,
    /// The configuration that a restored guest holds in its memory.
    pub(crate) saved_config: Option<SecretBytes>,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) started_at: Monotonic,
    pub(crate) power: Arc<Power>,
    pub(crate) host: Weak<SimulatedHost>,
    pub(crate) console: Arc<Mutex<ConsoleLog>>,
    /// Whether it came so far as to run: told apart from a death while starting.
    pub(crate) ran: AtomicBool,
    pub(crate) button_handled: AtomicBool,
    pub(crate) being_saved: AtomicBool,
    pub(crate) listeners: Ports,
    pub(crate) host_ports: Ports,
    pub(crate) exclusive_line: Mutex<Option<Line>>,
}

impl GuestShared {
    pub(crate) fn end(self: &Arc<Self>, ending: Ending) {
        if let Some(host) = self.host.upgrade() {
            host.end(&self.name, Some(self), ending);
        }
    }

    /// Runs the program in a task that ends with the guest.
    pub(crate) fn run(self: &Arc<Self>, program: Arc<dyn GuestProgram>, config: SecretBytes) {
        let guest = Arc::clone(self);
        let work = async move {
            // The program's first words are part of its run: nothing of it happens while it is paused.
            let program = async {
                let program = program.boot(&guest.name, &config, SimulatedGuest(Arc::clone(&guest)));
                // It took from it what it needs, and may run for long.
                drop(config);
                program.await;
            };
            let outcome = AssertUnwindSafe(program).catch_unwind().await;
            guest.end(match outcome {
                Ok(()) => Ending::guest(),
                Err(panic) => {
                    Ending { message: Some(panic_message(panic.as_ref())), code: None, ..Ending::guest() }
                }
            });
        };
        tokio::spawn(Arc::clone(&self.power).drive(work));
    }

    fn pipe(&self, buffer: usize) -> (GuestStream, GuestStream, Line) {
        let (host, guest) = tokio::io::duplex(buffer);
        let (host_watcher, guest_watcher) = (self.power.watch(), self.power.watch());
        let line = [host_watcher.id(), guest_watcher.id()];
        let host_stalls = Stalls { reads: false, writes: false };
        let guest_stalls = Stalls { reads: true, writes: true };
        (
            Box::new(PoweredStream { stream: host, watcher: host_watcher, stalls: host_stalls }),
            Box::new(PoweredStream { stream: guest, watcher: guest_watcher, stalls: guest_stalls }),
            line,
        )
    }

    /// Connects to a port of the guest; echoes where `programmed` is false.
    pub(crate) fn connect(
        &self,
        port: u32,
        channel: AgentChannel,
        programmed: bool,
        buffer: usize,
    ) -> Result<GuestStream> {
        const OPERATION: &str = "vmm.connect";
        let (stream, line) = if programmed {
            let nobody = || {
                Error::unavailable(OPERATION, "nothing in the guest answers yet").with_context("port", port)
            };
            let listener = lock(&self.listeners).get(&port).cloned().ok_or_else(nobody)?;
            let (host, guest, line) = self.pipe(buffer);
            listener.try_send(guest).map_err(|_| nobody())?;
            (host, line)
        } else {
            let (read, write) = tokio::io::simplex(buffer);
            let watcher = self.power.watch();
            let line = [watcher.id(); 2];
            let stalls = Stalls { reads: true, writes: false };
            let stream: GuestStream =
                Box::new(PoweredStream { stream: tokio::io::join(read, write), watcher, stalls });
            (stream, line)
        };
        if channel == AgentChannel::Exclusive {
            let older = lock(&self.exclusive_line).replace(line);
            if let Some(older) = older {
                self.power.cut(older);
            }
        }
        Ok(stream)
    }

    /// Opens a port of the host to the guest, ending what was there.
    pub(crate) fn open_host_port(&self, port: u32) -> mpsc::Receiver<GuestStream> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        lock(&self.host_ports).insert(port, sender);
        receiver
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    let mut message = format!("the guest's program panicked: {text}");
    while message.len() > 1024 {
        message.pop();
    }
    message
}

/// The machine, as the program in it sees it. Clones are the same machine.
#[derive(Debug, Clone)]
pub struct SimulatedGuest(pub(crate) Arc<GuestShared>);

impl SimulatedGuest {
    /// The incarnation that this machine is.
    pub fn incarnation(&self) -> &IncarnationName {
        &self.0.name
    }

    /// How it came to life.
    pub fn origin(&self) -> &GuestOrigin {
        &self.0.origin
    }

    /// Its processors.
    pub fn vcpus(&self) -> u32 {
        self.0.vcpus
    }

    /// Its memory.
    pub fn memory_mib(&self) -> u64 {
        self.0.memory_mib
    }

    /// Listens on a port ([`flames_vmm::AGENT_PORT`] for the agent), in place of what listened there. Up to 16 connections wait; more
    /// are refused.
    pub fn listen(&self, port: u32) -> GuestListener {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        lock(&self.0.listeners).insert(port, sender);
        GuestListener(receiver)
    }

    /// Connects to a port of the host. `ConnectionRefused` when the driver does not accept there.
    pub fn connect_to_host(&self, port: u32) -> io::Result<GuestStream> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let host = self.0.host.upgrade().ok_or_else(refused)?;
        let listener = lock(&self.0.host_ports).get(&port).cloned().ok_or_else(refused)?;
        let (host_end, guest_end, _) = self.0.pipe(host.config().channel_buffer);
        listener.try_send(host_end).map_err(|_| refused())?;
        Ok(guest_end)
    }

    /// Writes on the serial console.
    pub fn write_console(&self, data: impl AsRef<[u8]>) {
        lock(&self.0.console).write(data.as_ref());
    }

    /// Powers the machine off at once, with [`ExitCause::Guest`], or [`ExitCause::Stopped`] when `stop` had asked for it. The
    /// program is dropped at its next await.
    pub fn power_off(&self) {
        self.0.end(Ending::guest());
    }

    /// Returns once the power button was pressed, at once when it already was.
    pub async fn power_button(&self) {
        self.0.power.button().await;
    }

    /// Returns once the machine is gone: for what does not run in it but must end with it.
    pub async fn stopped(&self) {
        self.0.power.until(|state| state == PowerState::Gone).await;
    }

    /// Returns at once while the machine runs, or when it runs again. Never, when it does not.
    pub async fn runs(&self) {
        self.0.power.until(|state| state == PowerState::Running).await;
    }

    /// Runs a task of the guest: it stands still while the VM is paused, and is dropped when the VM is gone.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(Arc::clone(&self.0.power).drive(work));
    }
}

/// Connections made to a port of the guest.
#[derive(Debug)]
pub struct GuestListener(mpsc::Receiver<GuestStream>);

impl GuestListener {
    /// The next connection; none when another listener took the port. Its reads and writes stand still while the VM is paused.
    pub async fn accept(&mut self) -> Option<GuestStream> {
        self.0.recv().await
    }
}

impl Ending {
    pub(crate) fn guest() -> Self {
        Self { cause: ExitCause::Guest, code: Some(0), signal: None, message: None }
    }
}

impl Drop for GuestShared {
    fn drop(&mut self) {
        // Nothing holds this guest any more; whoever still holds a stream must see its end.
        self.power.set(PowerState::Gone);
    }
}
