//! Simulated guests: an agent, files and workloads that exist only in this process, for the simulated driver. They run no code of
//! anybody's. The testbed's hosts and `flames up --driver simulated` have the same ones.
//!
//! | Command | What it does |
//! |---|---|
//! | `echo WORD…`, `warn WORD…` | writes the words to standard output or standard error |
//! | `sleep SECONDS`, `sleep infinity` | waits |
//! | `cat` | gives back its standard input |
//! | `exit CODE`, `true`, `false` | ends with that code |
//! | `signal NUMBER` | ends by that signal |
//! | `COMMAND ; COMMAND …` | one after the other, whatever each ends with; `exit` and `signal` end them all |
//!
//! A guest that is loaded from a snapshot has the files and the name of the one that was saved until it is told what it is; its workload
//! begins anew.
//!
//! Anything else is not found in the image. Signals end a process. A port of a guest gives back what it gets. Folders are implied by the
//! files in them.

mod disk;
mod files;
mod machine;
mod process;
mod session;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use flames_clock::Clock;
use flames_controller::{Guest, GuestConnector};
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::{GuestConfig, Identity};
use flames_vmm::{AGENT_PORT, GuestStream, IncarnationName, SecretBytes};
use flames_vmm_simulated::{GuestFuture, GuestProgram, SimulatedGuest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use machine::{Machine, Who};
use session::Session;

pub use disk::SimulatedDisk;

pub(crate) const OPERATION: &str = "guest.simulated";
/// More bytes than an incarnation's name has.
const LONGEST_NAME: usize = 128;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All simulated guests of a process: what runs in them, and how a controller reaches their agents. Clones are the same.
#[derive(Debug, Clone)]
pub struct SimulatedGuests {
    alive: Arc<Mutex<Alive>>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Default)]
pub(crate) struct Alive {
    by_incarnation: BTreeMap<String, Arc<Machine>>,
    /// Which incarnation has a host name; a VM's guests have the VM's.
    by_hostname: BTreeMap<String, String>,
    /// What was seen that must never be: two guests of one VM alive at once.
    doubled: Vec<String>,
}

impl SimulatedGuests {
    /// No guests yet; `clock` is theirs.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { alive: Arc::default(), clock }
    }

    /// Which VMs, by host name, ever had two guests alive at once, on whichever hosts.
    pub fn doubled(&self) -> Vec<String> {
        lock(&self.alive).doubled.clone()
    }
}

impl Alive {
    /// Notes that a guest goes by a host name from now on.
    pub(crate) fn goes_by(&mut self, hostname: &str, name: &str) {
        let twin = self.by_hostname.insert(hostname.to_owned(), name.to_owned());
        if let Some(twin) = twin.filter(|twin| twin != name) {
            self.doubled.push(format!("{hostname}: {name} began while {twin} was alive"));
        }
    }
}

/// Forgets a guest when its machine is gone.
struct Forget {
    alive: Arc<Mutex<Alive>>,
    name: String,
    machine: Arc<Machine>,
}

impl Drop for Forget {
    fn drop(&mut self) {
        let mut alive = lock(&self.alive);
        if alive.by_incarnation.get(&self.name).is_some_and(|found| Arc::ptr_eq(found, &self.machine)) {
            alive.by_incarnation.remove(&self.name);
            let hostname = self.machine.who().hostname;
            if alive.by_hostname.get(&hostname) == Some(&self.name) {
                alive.by_hostname.remove(&hostname);
            }
        }
    }
}

impl GuestProgram for SimulatedGuests {
    fn boot(
        &self,
        incarnation: &IncarnationName,
        config: &SecretBytes,
        guest: SimulatedGuest,
    ) -> GuestFuture {
        let Ok(config) = GuestConfig::decode(&config.0) else {
            guest.write_console("flames-agent: fatal: the configuration cannot be read\n");
            return Box::pin(async {});
        };
        let name = incarnation.to_string();
        let workload = config.workload;
        let who = Who { incarnation: config.incarnation, key: config.key, hostname: config.hostname };
        let mut alive = lock(&self.alive);
        // One that was loaded goes by another's name until it is told its own.
        if who.incarnation == name {
            alive.goes_by(&who.hostname, &name);
        }
        let machine = Arc::new(Machine::new(who, guest.clone(), Arc::clone(&self.clock)));
        alive.by_incarnation.insert(name.clone(), Arc::clone(&machine));
        drop(alive);
        let answers_as = name.clone();
        let forget = Forget { alive: Arc::clone(&self.alive), name, machine: Arc::clone(&machine) };
        Box::pin(async move {
            let _forget = forget;
            let mut listener = guest.listen(AGENT_PORT);
            if let Some(workload) = workload.filter(|workload| !workload.argv.is_empty()) {
                machine.start_workload(workload);
            }
            let serve = async {
                // One session at a time: a newer connection ends the older one.
                let mut session: Option<GuestStream> = None;
                while let Some(mut stream) = listener.accept().await {
                    // Says which machine answers. Whoever is gone by then needs to know nothing.
                    let _ = stream.write_all(format!("{answers_as}\n").as_bytes()).await;
                    drop(session.replace(stream));
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                () = guest.power_button() => machine.end_all().await,
                () = serve => {}
            }
        })
    }
}

#[async_trait]
impl GuestConnector for SimulatedGuests {
    async fn connect(&self, mut stream: GuestStream, identity: &Identity) -> Result<Box<dyn Guest>> {
        let silent = || Error::unavailable(OPERATION, "no agent answers yet");
        // Nothing follows the name.
        let (mut name, mut buffer) = (Vec::new(), [0; LONGEST_NAME]);
        while name.last() != Some(&b'\n') {
            match stream.read(&mut buffer).await {
                Ok(read) if read > 0 && name.len() + read <= LONGEST_NAME => {
                    name.extend_from_slice(&buffer[..read])
                }
                _ => return Err(silent()),
            }
        }
        name.pop();
        let name = String::from_utf8(name).map_err(|_| silent())?;
        let machine = lock(&self.alive).by_incarnation.get(&name).cloned().ok_or_else(silent)?;
        let who = machine.who();
        if who.incarnation != identity.incarnation || who.key.to_hex() != identity.key.to_hex() {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                OPERATION,
                "the key is another incarnation's",
            ));
        }
        machine.guest.runs().await;
        let (closed, closing) = watch::channel(false);
        let (closed, alive) = (Arc::new(closed), Arc::clone(&self.alive));
        let close = Arc::clone(&closed);
        // Nothing is said on it. Its end is the session's.
        let watching = tokio::spawn(async move {
            while matches!(stream.read(&mut [0]).await, Ok(1)) {}
            closed.send_replace(true);
        });
        let _watching = Watching(watching.abort_handle());
        Ok(Box::new(Session { machine, name, alive, closing, close, _watching }))
    }
}

/// A task that ends with what it belongs to.
#[derive(Debug)]
struct Watching(AbortHandle);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}
