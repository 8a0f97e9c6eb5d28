//! What runs the VMs. Concrete drivers are named here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flames_blob::BlobStore;
use flames_clock::Clock;
use flames_controller::{Artefacts, GuestConnector, SnapshotFiles};
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
/// The same of the Firecracker driver.
#[cfg(feature = "firecracker")]
const FIRECRACKER: &str = "firecracker";

/// A driver with what it needs.
#[derive(Debug)]
pub(super) struct Machines {
    pub(super) driver: Arc<dyn VmDriver>,
    pub(super) guests: Arc<dyn GuestConnector>,
    pub(super) artefacts: Arc<dyn Artefacts>,
    /// The files of saved guests.
    pub(super) files: Arc<dyn SnapshotFiles>,
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
            Driver::Firecracker => firecracker(base, folder, arguments, blobs, clock, output).await,
            Driver::Simulated => simulated(base, clock, output),
        }
    }
}

/// Where saved guests are kept on their way to and from the BlobStore.
pub(super) fn snapshots(base: &Path) -> PathBuf {
    base.join("snapshots")
}

#[cfg(feature = "simulated")]
fn simulated(base: &Path, clock: &Arc<dyn Clock>, output: Output) -> Result<Machines, Failure> {
    use flames_simulated_guest::{SimulatedDisk, SimulatedGuests};
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
        files: Arc::new(SimulatedDisk::new(Arc::clone(&host), snapshots(base))),
        driver: Arc::new(SimulatedDriver::new(host)),
        guests: Arc::new(guests),
        artefacts: Arc::new(crate::simulated::NoArtefacts),
        kernel: None,
        warming: None,
    })
}

#[cfg(not(feature = "simulated"))]
fn simulated(_base: &Path, _clock: &Arc<dyn Clock>, _output: Output) -> Result<Machines, Failure> {
    Err(lacks("simulated"))
}

#[cfg(not(all(feature = "simulated", feature = "qemu", feature = "firecracker")))]
fn lacks(feature: &str) -> Failure {
    Failure::usage(format!(
        "This build of Flames has no driver `{feature}`: it was made without that feature."
    ))
}

/// What machines boot, made or found, and the images that they are made from.
#[cfg(any(feature = "qemu", feature = "firecracker"))]
struct Booting {
    place: PathBuf,
    files: super::boot::BootFiles,
    artefacts: flames_controller::LocalArtefacts,
}

#[cfg(any(feature = "qemu", feature = "firecracker"))]
impl Booting {
    async fn prepare(
        base: &Path,
        folder: &LockedFolder,
        arguments: &UpConfig,
        blobs: Arc<dyn BlobStore>,
        output: Output,
    ) -> Result<Self, Failure> {
        let (place, data, asked) = (base.join("boot"), folder.folder().clone(), arguments.clone());
        make(&place)?;
        let in_place = place.clone();
        make(&folder.folder().join("boot"))?;
        let files =
            tokio::task::spawn_blocking(move || super::boot::prepare(&asked, &in_place, &data, output))
                .await
                .map_err(|_| Failure::failed("Preparing what machines boot was interrupted."))??;
        if files.kernel.is_none() {
            output.say("No kernel was given: VMs must name one, and `flames run` fails without. Give one with --kernel FILE, or `--kernel debian`.");
        }
        let artefacts = flames_controller::LocalArtefacts::open(
            blobs,
            base.join("images"),
            files.kernel.clone(),
            Some(files.initramfs.clone()),
        )?;
        Ok(Self { place, files, artefacts })
    }

    /// Clears away what earlier VMs booted from and nobody needs.
    fn prune(&self, needed: flames_error::Result<std::collections::BTreeSet<PathBuf>>) {
        match needed {
            Ok(needed) => super::boot::prune(&self.place, &self.files.initramfs, &needed),
            // What is needed is not known, so all of it stays.
            Err(error) => tracing::warn!(?error, "what earlier VMs booted from is not cleared away"),
        }
    }
}

#[cfg(feature = "firecracker")]
async fn firecracker(
    base: &Path,
    folder: &LockedFolder,
    arguments: &UpConfig,
    blobs: Arc<dyn BlobStore>,
    clock: &Arc<dyn Clock>,
    output: Output,
) -> Result<Machines, Failure> {
    use flames_vmm::Usability;
    use flames_vmm_firecracker::FirecrackerDriver;

    let config = super::firecracker::config(&base.join(FIRECRACKER), folder.folder().path(), arguments)?;
    let driver =
        Arc::new(FirecrackerDriver::new(config, clock.clone(), Arc::new(flames_clock::SystemRandom))?);
    if let Usability::Unusable(why) = driver.capabilities().await?.usability {
        return Err(Failure::failed(format!("Firecracker does not work on this host: {why}"))
            .advise(
                "`flames controller doctor` checks everything that it needs. With `--address-block none` VMs have no network, and what networks \
                 need is not needed.",
            ));
    }
    let booting = Booting::prepare(base, folder, arguments, blobs, output).await?;
    booting.prune(driver.boot_files().await);
    Ok(Machines {
        driver,
        guests: Arc::new(flames_controller::AgentConnector::default()),
        kernel: booting.files.kernel.as_ref().map(|path| path.display().to_string()),
        artefacts: Arc::new(booting.artefacts),
        files: Arc::new(flames_controller::DiskFiles),
        warming: None,
    })
}

#[cfg(not(feature = "firecracker"))]
async fn firecracker(
    _base: &Path,
    _folder: &LockedFolder,
    _arguments: &UpConfig,
    _blobs: Arc<dyn BlobStore>,
    _clock: &Arc<dyn Clock>,
    _output: Output,
) -> Result<Machines, Failure> {
    Err(lacks("firecracker"))
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
    let booting = Booting::prepare(base, folder, arguments, blobs, output).await?;
    let driver = Arc::new(flames_vmm_qemu::QemuDriver::new(qemu_config(base, arguments)?, clock.clone())?);
    booting.prune(driver.boot_files().await);
    let Booting { files, artefacts, .. } = booting;
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
        guests: Arc::new(flames_controller::AgentConnector::default()),
        artefacts: Arc::new(artefacts),
        files: Arc::new(flames_controller::DiskFiles),
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

/// The QEMU driver over a folder, without what else machines need.
#[cfg(all(feature = "qemu", feature = "firecracker"))]
pub(crate) fn qemu_driver(
    base: &Path,
    arguments: &UpConfig,
    clock: &Arc<dyn Clock>,
) -> Result<flames_vmm_qemu::QemuDriver, Failure> {
    Ok(flames_vmm_qemu::QemuDriver::new(qemu_config(base, arguments)?, clock.clone())?)
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

#[cfg(any(feature = "qemu", feature = "firecracker"))]
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
    #[cfg(feature = "firecracker")]
    if base.join(FIRECRACKER).is_dir() {
        let config = super::firecracker::config(&base.join(FIRECRACKER), folder.folder().path(), arguments)?;
        let random = Arc::new(flames_clock::SystemRandom);
        let driver = flames_vmm_firecracker::FirecrackerDriver::new(config, clock.clone(), random)?;
        for machine in driver.adopt().await? {
            driver.destroy(&machine.incarnation).await?;
        }
    }
    #[cfg(not(any(feature = "qemu", feature = "firecracker")))]
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
