//! Drivers that are measured alone.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use flames_clock::{SystemClock, SystemRandom};
use flames_guest_protocol::{AgentKey, GuestConfig, Identity};
use flames_image::initramfs::{Initramfs, Packing};
use flames_vmm::{BootSource, MachineSpec, NetworkSpec, SecretBytes};
use flames_vmm_simulated::{SimulatedConfig, SimulatedDriver, SimulatedHost};

use super::VmmArguments;
use super::ours::{Ours, readable};

/// A guest that is our agent and nothing else, with its files in `folder`.
pub(super) fn guest(arguments: &VmmArguments, folder: &Path) -> Result<(MachineSpec, Identity)> {
    let given = arguments.kernel.as_deref().context("no kernel for guests: see --kernel")?;
    let agent = arguments.agent.as_deref().context("no agent for guests: see --agent")?;
    let (kernel, initramfs) = (folder.join("vmlinux"), folder.join("initramfs"));
    std::fs::copy(given, &kernel).context("the kernel cannot be copied")?;
    std::fs::write(&initramfs, Initramfs { agent, modules: &[], packing: Packing::Plain }.build()?)?;
    readable(&kernel)?;
    readable(&initramfs)?;
    let identity = Identity { incarnation: "inc_bench".to_owned(), key: AgentKey::generate()? };
    let config = GuestConfig {
        incarnation: identity.incarnation.clone(),
        key: identity.key.clone(),
        hostname: String::new(),
        root: None,
        network: None,
        workload: None,
        epoch_ms: 0,
    };
    let words = arguments.kernel_arguments.split_ascii_whitespace().map(str::to_owned).collect();
    let spec = MachineSpec {
        vcpus: 1,
        memory_mib: arguments.memory_mib,
        boot: BootSource { kernel, initramfs: Some(initramfs), extra_arguments: words },
        drives: Vec::new(),
        guest_config: SecretBytes(config.encode()?),
        network: NetworkSpec::None,
    };
    Ok((spec, identity))
}

fn qemu_driver(folder: &Path) -> Result<flames_vmm_qemu::QemuDriver> {
    let config = flames_vmm_qemu::QemuConfig::new(folder.join("machines"));
    Ok(flames_vmm_qemu::QemuDriver::new(config, Arc::new(SystemClock::new()))?)
}

/// With its machines in the run's folder, which [`clear_qemu`] takes away.
pub(super) async fn qemu(arguments: &VmmArguments, folder: &Path) -> Result<Arc<Ours>> {
    let (spec, identity) = guest(arguments, folder)?;
    let mut ours = Ours::new(Arc::new(qemu_driver(folder)?), Some(identity), move |_| spec.clone());
    ours.boot_and_save(folder).await?;
    Ok(Arc::new(ours))
}

/// Ends and takes away all machines of a run.
pub(super) async fn clear_qemu(folder: &Path) -> Result<()> {
    super::leftovers::clear_machines(&qemu_driver(folder)?).await
}

pub(super) fn simulated(arguments: &VmmArguments) -> Result<Arc<Ours>> {
    let host =
        SimulatedHost::new(SimulatedConfig::default(), Arc::new(SystemClock::new()), Arc::new(SystemRandom));
    let spec = MachineSpec {
        vcpus: 1,
        memory_mib: arguments.memory_mib,
        boot: BootSource { kernel: "/vmlinux".into(), initramfs: None, extra_arguments: Vec::new() },
        drives: Vec::new(),
        guest_config: SecretBytes(b"key".to_vec()),
        network: NetworkSpec::None,
    };
    let mut ours = Ours::new(Arc::new(SimulatedDriver::new(host)), None, move |_| spec.clone());
    let saving = ours.boot_and_save(Path::new("/nonexistent"));
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(saving))?;
    Ok(Arc::new(ours))
}
