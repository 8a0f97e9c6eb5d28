//! What runs a kernel's processors: KVM only where it was seen to work with this very kernel.
//!
//! `/dev/kvm` may be there and still unable to run a stock kernel (a nested or emulated KVM), so its presence says nothing. Each kernel is
//! booted once under KVM, up to its agent's first message, within a deadline; the outcome is kept for as long as the host's boot,
//! the kernel's digest and QEMU's version stay the same.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::ClockExt;
use flames_error::{Error, ErrorKind, Result};
use flames_host::blocking;
use flames_host::files::{create_private_folder, failed, remove_all, write_durably};
use flames_host::process::{find_program, kill_marked};
use flames_vmm::{BootSource, GuestStream, MachineSpec, NetworkSpec, Prepared, SecretBytes};
use flames_vmm_local::Folder;
use serde::{Deserialize, Serialize};

use crate::config::{Acceleration, AgentProbe, Channel};
use crate::context::Context;
use crate::folder::{Accelerator, Records, SCHEMA, SpecRecord};
use crate::kernel::{self, FileIdentity, MachineKind};
use crate::launch::{launch, let_run};

const CACHE: &str = ".kvm-probes.json";
/// The most outcomes that are kept; the cache begins anew beyond.
const MOST_OUTCOMES: usize = 256;

/// What a kernel is run with, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accelerated {
    /// Whether it is KVM.
    pub kvm: bool,
    /// What [`flames_vmm::DriverCapabilities::acceleration`] says of it.
    pub description: String,
}

/// How a try went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Outcome {
    works: bool,
    why: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Cache {
    boot_id: String,
    /// By QEMU's version and the kernel's digest.
    outcomes: BTreeMap<String, Outcome>,
}

/// Decides for each kernel.
#[derive(Debug, Default)]
pub(crate) struct Accelerations {
    /// One try at a time, since a second one would take the first one's processor from it.
    trying: tokio::sync::Mutex<()>,
    /// Outcomes by file, so that a kernel is digested once.
    known: Mutex<BTreeMap<FileIdentity, Outcome>>,
    latest: Mutex<Option<Outcome>>,
    /// The sentence that tells of the try under way.
    shown: Mutex<Option<String>>,
}

/// Shows a sentence as long as it lives.
struct Shown<'a>(&'a Mutex<Option<String>>);

impl<'a> Shown<'a> {
    fn new(place: &'a Mutex<Option<String>>, most: Duration) -> Self {
        let sentence = format!(
            "Trying whether KVM can boot this kernel (at most {} s, once for each kernel).",
            most.as_secs_f64().ceil()
        );
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(sentence);
        Self(place)
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn kvm_device() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err("there is no /dev/kvm on this host".into())
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err("/dev/kvm may not be opened by this user: add it to the group `kvm`".into())
        }
        Err(error) => Err(format!("/dev/kvm cannot be opened: {error}")),
    }
}

pub(crate) fn no_vsock_helper() -> Error {
    let sentence = "`vhost-device-vsock` was not found: install it (`cargo install vhost-device-vsock`), or use the virtio-serial channel.";
    Error::new(ErrorKind::NotSupported, "vmm.capabilities", sentence).with_user_message(sentence)
}

/// A sentence why the configured channel cannot be had, if so.
pub(crate) fn channel_problem(context: &Context) -> Option<Error> {
    let missing =
        context.config.channel == Channel::Vsock && find_program(&context.config.vsock_helper).is_none();
    missing.then(no_vsock_helper)
}

impl Accelerations {
    /// What a preparation with a kernel that was never tried waits for now.
    pub(crate) fn waited_for(&self) -> Option<String> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What capabilities say, without trying anything.
    pub(crate) fn describe(&self, context: &Context) -> String {
        match context.config.acceleration {
            Acceleration::Tcg => "tcg: software emulation, as configured".into(),
            Acceleration::Kvm => match kvm_device() {
                Ok(()) => "kvm: as configured".into(),
                Err(why) => format!("none: KVM is configured, but {why}"),
            },
            Acceleration::Auto => match (kvm_device(), &context.config.probe) {
                (Err(why), _) => format!("tcg: {why}"),
                (Ok(()), None) => "tcg: /dev/kvm is there, but nothing listens for the agent, so no kernel can be tried under it".into(),
                (Ok(()), Some(_)) => {
                    match self.latest.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                        Some(outcome) => describe(outcome),
                        None => "tcg: until a kernel has reached its agent under /dev/kvm; each is tried once, when it is first used".into(),
                    }
                }
            },
        }
    }

    /// The processor that guests see. Where some run under KVM and others do not, it is the host's: what was saved under emulation is then
    /// bound to it without need.
    pub(crate) fn guest_cpu(&self, context: &Context) -> flames_vmm::GuestCpu {
        let config = &context.config;
        let emulated = match config.acceleration {
            Acceleration::Tcg => true,
            Acceleration::Kvm => false,
            Acceleration::Auto => config.probe.is_none() || kvm_device().is_err(),
        };
        let model = config.cpu_model.clone();
        match emulated {
            true => flames_vmm::GuestCpu::emulated(model.unwrap_or_else(|| "max".to_owned())),
            false => {
                let host = flames_vmm::GuestCpu::of_host();
                flames_vmm::GuestCpu {
                    model: format!("{} {}", host.model, model.as_deref().unwrap_or("host")),
                    ..host
                }
            }
        }
    }

    /// What the kernel is to be run with. May take the probe's deadline at the first call for a kernel.
    pub(crate) async fn decide(
        &self,
        context: &Arc<Context>,
        boot: &BootSource,
        machine: MachineKind,
    ) -> Result<Accelerated> {
        let tcg = |description| Ok(Accelerated { kvm: false, description });
        match context.config.acceleration {
            Acceleration::Tcg => return tcg(self.describe(context)),
            Acceleration::Kvm => {
                return match kvm_device() {
                    Ok(()) => Ok(Accelerated { kvm: true, description: self.describe(context) }),
                    Err(why) => Err(Error::new(ErrorKind::NotSupported, "vmm.prepare", why.clone())
                        .with_user_message(why)),
                };
            }
            Acceleration::Auto => {}
        }
        let (Ok(()), Some(probe)) = (kvm_device(), context.config.probe.clone()) else {
            return tcg(self.describe(context));
        };
        let outcome = self.outcome(context, probe, boot, machine).await?;
        Ok(Accelerated { kvm: outcome.works, description: describe(&outcome) })
    }

    async fn outcome(
        &self,
        context: &Arc<Context>,
        probe: Arc<dyn AgentProbe>,
        boot: &BootSource,
        machine: MachineKind,
    ) -> Result<Outcome> {
        let identity =
            FileIdentity::of(&boot.kernel).map_err(|error| failed("the kernel cannot be read", error))?;
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&identity).cloned();
        if let Some(known) = known() {
            return Ok(known);
        }
        let _trying = self.trying.lock().await;
        if let Some(known) = known() {
            return Ok(known);
        }
        let kernel = boot.kernel.clone();
        let digest = blocking(move || {
            kernel::digest(&kernel).map_err(|error| failed("the kernel cannot be read", error))
        })
        .await?;
        let key = format!("{} {digest}", context.installed().await?.version);
        let mut cache = read_cache(context.root(), &context.boot_id);
        let outcome = match cache.outcomes.get(&key) {
            Some(outcome) => outcome.clone(),
            None => {
                let _shown = Shown::new(&self.shown, context.config.deadlines.probe);
                let outcome = try_kernel(context, probe.as_ref(), boot, machine).await?;
                if cache.outcomes.len() >= MOST_OUTCOMES {
                    cache.outcomes.clear();
                }
                cache.outcomes.insert(key, outcome.clone());
                // Without the cache the kernel is tried again after a restart, no more.
                if let Ok(bytes) = serde_json::to_vec_pretty(&cache) {
                    let root = context.root().to_owned();
                    let _ = blocking(move || Ok(write_durably(&root, CACHE, &bytes))).await;
                }
                outcome
            }
        };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(identity, outcome.clone());
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome.clone());
        Ok(outcome)
    }
}

fn describe(outcome: &Outcome) -> String {
    format!("{}: {}", if outcome.works { "kvm" } else { "tcg" }, outcome.why)
}

/// Outcomes of this boot; none when the cache is not readable.
fn read_cache(root: &Path, boot_id: &str) -> Cache {
    let fresh = || Cache { boot_id: boot_id.to_owned(), outcomes: BTreeMap::new() };
    let Ok(bytes) = std::fs::read(root.join(CACHE)) else { return fresh() };
    match serde_json::from_slice::<Cache>(&bytes) {
        Ok(cache) if cache.boot_id == boot_id => cache,
        _ => fresh(),
    }
}

/// Boots the kernel under KVM in a folder of its own and waits for its agent. An error only when the host is at fault.
async fn try_kernel(
    context: &Arc<Context>,
    probe: &dyn AgentProbe,
    boot: &BootSource,
    machine: MachineKind,
) -> Result<Outcome> {
    let folder = Folder::new(context.root().join(".try-kvm"));
    let guest_config = probe.guest_config();
    let record = SpecRecord {
        schema: SCHEMA,
        spec: MachineSpec {
            vcpus: 1,
            memory_mib: 256,
            boot: boot.clone(),
            drives: Vec::new(),
            guest_config: SecretBytes(Vec::new()),
            network: NetworkSpec::None,
        },
        guest_config_length: guest_config.0.len() as u64,
        machine,
        accelerator: Accelerator::Kvm,
        cpu_model: context.config.cpu_model.clone().unwrap_or_else(|| "host".into()),
        channel: Channel::VirtioSerial,
        prepared: Prepared::default(),
    };
    let make = folder.clone();
    let config = guest_config.clone();
    let trial = blocking(move || {
        let trial =
            Trial::begin(make).map_err(|error| failed("the folder of the try cannot be made", error))?;
        crate::prepare::write_guest_config(&trial.folder, &config)
            .map_err(|error| failed("the folder of the try cannot be made", error))?;
        Ok(trial)
    })
    .await?;
    let deadline = context.config.deadlines.probe;
    let work = async {
        // It goes along to where the monitor is started, which is not cut off by dropping this, and comes back with it.
        let (attached, trial) = launch(context, &folder, &record, false, None, trial).await?;
        let reached = async {
            let_run(context, &attached, false).await?;
            loop {
                let Ok(stream) = folder.connect("agent.sock").await else {
                    return Err(Error::internal("vmm.probe", "the guest ended before its agent spoke"));
                };
                let stream: GuestStream = Box::new(stream);
                if probe.first_message(stream, &guest_config).await.is_ok() {
                    return Ok(());
                }
                context.clock.sleep(Duration::from_millis(50)).await;
            }
        };
        let reached = context.clock.timeout(deadline, reached).await;
        attached.kill().await;
        let _ = blocking(move || {
            drop(trial);
            Ok(())
        })
        .await;
        Ok::<_, Error>(reached)
    };
    let outcome = match work.await {
        Ok(Ok(Ok(()))) => Outcome { works: true, why: "the kernel reached its agent".into() },
        Ok(Ok(Err(error))) => Outcome {
            works: false,
            why: format!("/dev/kvm is there but the kernel does not run under it: {}", error.message()),
        },
        Ok(Err(late)) => Outcome {
            works: false,
            why: format!(
                "/dev/kvm is there but the kernel did not reach its agent within {} s",
                late.after.as_secs_f64().ceil()
            ),
        },
        Err(error) => return Err(error),
    };
    Ok(outcome)
}

/// A try under way. When it is over, or given up wherever it is, its monitor is killed and its folder removed.
#[derive(Debug)]
struct Trial {
    folder: Folder,
    /// Tells those who clear away leftovers that this is none.
    _lock: Option<OwnedFd>,
}

impl Trial {
    /// Makes the folder, in place of what a try left whose process was killed.
    fn begin(folder: Folder) -> io::Result<Self> {
        kill_marked(&folder.monitor_marker());
        remove_all(folder.path())?;
        create_private_folder(folder.path())?;
        let lock = folder.try_lock()?;
        Ok(Self { folder, _lock: lock })
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        kill_marked(&self.folder.monitor_marker());
        // What is left is removed by the next try, or the next driver.
        let _ = remove_all(self.folder.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_an_earlier_boot_or_of_a_damaged_cache_do_not_count() {
        let root = tempfile::tempdir().unwrap();
        let mut cache = read_cache(root.path(), "boot-1");
        cache.outcomes.insert("7.2 abc".into(), Outcome { works: true, why: "it did".into() });
        std::fs::write(root.path().join(CACHE), serde_json::to_vec(&cache).unwrap()).unwrap();
        assert_eq!(read_cache(root.path(), "boot-1").outcomes.len(), 1);
        assert_eq!(read_cache(root.path(), "boot-2").outcomes.len(), 0);
        std::fs::write(root.path().join(CACHE), b"\xff").unwrap();
        assert_eq!(read_cache(root.path(), "boot-1").outcomes.len(), 0);
    }
}
