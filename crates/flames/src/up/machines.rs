//! What runs the VMs. Concrete drivers are named here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flames_blob::BlobStore;
use flames_clock::Clock;
use flames_controller::{Artefacts, GuestConnector};
use flames_vmm::VmDriver;
use tokio::task::JoinHandle;

use super::EPHEMERAL;
use crate::config::{Driver, UpConfig};
use crate::data::LockedFolder;
use crate::exit::Failure;
use crate::output::Output;

/// The driver's folder, and what belongs to it.
#[cfg(feature = "qemu")]
const MACHINES: &str = "machines";

/// A driver with what it needs.
#[derive(Debug)]
pub(super) struct Machines {
    pub(super) driver: Arc<dyn VmDriver>,
    pub(super) guests: Arc<dyn GuestConnector>,
    pub(super) artefacts: Arc<dyn Artefacts>,
    /// The kernel of VMs that name none, for people.
    pub(super) kernel: Option<String>,
    /// Finds out ahead of the first VM what accelerates it.
    pub(super) warming: Option<JoinHandle<()>>,
}

impl Machines {
    /// The driver that was asked for, with its files below `base`.
    pub(super) async fn start(
        base: &Path,
        folder: &LockedFolder,
        arguments: &UpConfig,
        blobs: Arc<dyn BlobStore>,
        clock: &Arc<dyn Clock>,
        output: Output,
    ) -> Result<Self, Failure> {
        match arguments.driver {
            Driver::Qemu => qemu(base, folder, arguments, blobs, clock, output).await,
            Driver::Simulated => simulated(clock, output),
        }
    }
}

#[cfg(feature = "simulated")]
fn simulated(clock: &Arc<dyn Clock>, output: Output) -> Result<Machines, Failure> {
    use flames_simulated_guest::SimulatedGuests;
    use flames_vmm_simulated::{SimulatedConfig, SimulatedDriver, SimulatedHost, SimulatedTimings};

    output.say(
        "Guests only pretend: the simulated driver runs no code of theirs, and they end with this process.",
    );
    let guests = SimulatedGuests::new(Arc::clone(clock));
    let config = SimulatedConfig {
        timings: SimulatedTimings::realistic(),
        program: Some(Arc::new(guests.clone())),
        ..SimulatedConfig::default()
    };
    let host = SimulatedHost::new(config, Arc::clone(clock), Arc::new(flames_clock::SystemRandom));
    Ok(Machines {
        driver: Arc::new(SimulatedDriver::new(host)),
        guests: Arc::new(guests),
        artefacts: Arc::new(crate::simulated::NoArtefacts),
        kernel: None,
        warming: None,
    })
}

#[cfg(not(feature = "simulated"))]
fn simulated(_clock: &Arc<dyn Clock>, _output: Output) -> Result<Machines, Failure> {
    Err(lacks("simulated"))
}

#[cfg(any(not(feature = "simulated"), not(feature = "qemu")))]
fn lacks(feature: &str) -> Failure {
    Failure::usage(format!(
        "This build of Flames has no driver `{feature}`: it was made without that feature."
    ))
}

#[cfg(feature = "qemu")]
async fn qemu(
    base: &Path,
    folder: &LockedFolder,
    arguments: &UpConfig,
    blobs: Arc<dyn BlobStore>,
    clock: &Arc<dyn Clock>,
    output: Output,
) -> Result<Machines, Failure> {
    use flames_controller::{AgentConnector, LocalArtefacts};

    let (place, data, asked) = (base.join("boot"), folder.folder().clone(), arguments.clone());
    make(&place)?;
    let in_place = place.clone();
    make(&folder.folder().join("boot"))?;
    let files = tokio::task::spawn_blocking(move || super::boot::prepare(&asked, &in_place, &data, output))
        .await
        .map_err(|_| Failure::failed("Preparing what machines boot was interrupted."))??;
    if files.kernel.is_none() {
        output.say("No kernel was given: VMs must name one, and `flames run` fails without. Give one with --kernel FILE, or `--kernel debian`.");
    }
    let driver = Arc::new(flames_vmm_qemu::QemuDriver::new(qemu_config(base, arguments)?, clock.clone())?);
    let artefacts = LocalArtefacts::open(
        blobs,
        base.join("images"),
        files.kernel.clone(),
        Some(files.initramfs.clone()),
    )?;
    match driver.boot_files().await {
        Ok(needed) => super::boot::prune(&place, &files.initramfs, &needed),
        // What is needed is not known, so all of it stays.
        Err(error) => tracing::warn!(?error, "what earlier VMs booted from is not cleared away"),
    }
    let kernel = files.kernel.as_ref().map(|path| path.display().to_string());
    let warming = match (arguments.accel, files.kernel) {
        (crate::config::Accel::Auto, Some(kernel)) => {
            let (driver, initramfs) = (driver.clone(), files.initramfs);
            Some(tokio::spawn(async move {
                match driver.probe(&kernel, Some(&initramfs)).await {
                    Ok(found) => tracing::info!(kvm = found.kvm, found.description, "acceleration"),
                    Err(error) => tracing::warn!(?error, "the kernel could not be tried"),
                }
            }))
        }
        _ => None,
    };
    Ok(Machines {
        driver,
        guests: Arc::new(AgentConnector::default()),
        artefacts: Arc::new(artefacts),
        kernel,
        warming,
    })
}

#[cfg(not(feature = "qemu"))]
async fn qemu(
    _base: &Path,
    _folder: &LockedFolder,
    _arguments: &UpConfig,
    _blobs: Arc<dyn BlobStore>,
    _clock: &Arc<dyn Clock>,
    _output: Output,
) -> Result<Machines, Failure> {
    Err(lacks("qemu"))
}

#[cfg(feature = "qemu")]
fn qemu_config(base: &Path, arguments: &UpConfig) -> Result<flames_vmm_qemu::QemuConfig, Failure> {
    use crate::config::Accel;
    use flames_vmm_qemu::{Acceleration, AgentProbe, QemuConfig};
    let probe: Arc<dyn AgentProbe> = Arc::new(super::probe::Probe::new()?);
    Ok(QemuConfig {
        binary: arguments.qemu.clone(),
        acceleration: match arguments.accel {
            Accel::Auto => Acceleration::Auto,
            Accel::Kvm => Acceleration::Kvm,
            Accel::Tcg => Acceleration::Tcg,
        },
        probe: Some(probe),
        ..QemuConfig::new(base.join(MACHINES))
    })
}

#[cfg(feature = "qemu")]
fn make(path: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(path)
        .map_err(|error| Failure::io(format!("The folder {} cannot be made", path.display()), &error))
}

/// Removes what an `--ephemeral` that was killed left behind: its machines, then its folder.
pub(super) async fn clear_ephemeral(
    folder: &LockedFolder,
    arguments: &UpConfig,
    clock: &Arc<dyn Clock>,
) -> Result<(), Failure> {
    let base = folder.folder().join(EPHEMERAL);
    if !base.exists() {
        return Ok(());
    }
    #[cfg(feature = "qemu")]
    if base.join(MACHINES).is_dir() {
        let driver = flames_vmm_qemu::QemuDriver::new(qemu_config(&base, arguments)?, clock.clone())?;
        for machine in driver.adopt().await? {
            driver.destroy(&machine.incarnation).await?;
        }
    }
    #[cfg(not(feature = "qemu"))]
    let _ = (arguments, clock);
    // The blob store's last work on the disk may still be under way.
    for _ in 0..5 {
        match tokio::fs::remove_dir_all(&base).await {
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::io(format!("{} cannot be removed", base.display()), &error));
            }
            _ => return Ok(()),
        }
    }
    Ok(())
}
