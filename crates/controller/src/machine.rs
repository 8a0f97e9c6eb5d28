//! From an assignment to a machine: pure, so that the same record always gives the same machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::config::{
    Device, GuestConfig, InterfaceAddress, NetworkConfig, RootConfig, WorkloadConfig,
};
use flames_guest_protocol::message::RestoredRequest;
use flames_guest_protocol::{AgentKey, Identity, SecretString};
use flames_model::{Assignment, Endpoint, VmSpec};
use flames_vmm::{BootSource, Drive, MachineSpec, NetworkSpec, PortForward, Prepared, SecretBytes};

use crate::record::IncarnationRecord;

/// Where everything that a machine is made from lies.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: Option<PathBuf>,
    pub(crate) rootfs: PathBuf,
    pub(crate) layer: PathBuf,
}

/// The guest's side of QEMU's user-mode network (documentation, "Network emulation": 10.0.2.0/24, gateway .2, name server .3).
const USER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const USER_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const USER_NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// What proves an incarnation's agent and its controller to each other.
pub(crate) fn identity(record: &IncarnationRecord) -> Identity {
    Identity { incarnation: record.assignment.incarnation.to_string(), key: record.key.clone() }
}

/// The machine of a record.
///
/// Errors: `InvalidInput` when the workload does not fit into a guest's configuration; `NotSupported` when it wants ports and the driver
/// has no network.
pub(crate) fn machine_spec(
    record: &IncarnationRecord,
    local: &Local,
    user_network: bool,
) -> Result<MachineSpec> {
    let spec = &record.assignment.spec;
    if !user_network && !spec.ports.is_empty() {
        return Err(Error::new(
            ErrorKind::NotSupported,
            "controller.machine",
            "the driver has no user network",
        )
        .with_user_message("The host's driver cannot forward ports to guests."));
    }
    let config = guest_config(record, user_network).encode().map_err(|error| {
        Error::new(ErrorKind::InvalidInput, "controller.machine", error.message.clone())
            .with_user_message(error.message)
    })?;
    let forwards = spec.ports.iter().map(|port| PortForward {
        listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.host_port.unwrap_or(0)),
        guest_port: port.guest_port,
    });
    let drive = |name: &str, path: &PathBuf, read_only| Drive {
        name: name.to_owned(),
        path: path.clone(),
        read_only,
    };
    Ok(MachineSpec {
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        boot: BootSource {
            kernel: local.kernel.clone(),
            initramfs: local.initramfs.clone(),
            extra_arguments: Vec::new(),
        },
        drives: vec![drive("image", &local.rootfs, true), drive("layer", &local.layer, false)],
        guest_config: SecretBytes(config),
        network: match user_network {
            true => NetworkSpec::User { forwards: forwards.collect() },
            false => NetworkSpec::None,
        },
    })
}

fn guest_config(record: &IncarnationRecord, user_network: bool) -> GuestConfig {
    let assignment = &record.assignment;
    let network = NetworkConfig {
        interface: "eth0".to_owned(),
        addresses: vec![InterfaceAddress { address: IpAddr::V4(USER_ADDRESS), prefix: 24 }],
        gateways: vec![IpAddr::V4(USER_GATEWAY)],
        dns: vec![IpAddr::V4(USER_NAME_SERVER)],
        mtu: None,
    };
    GuestConfig {
        incarnation: assignment.incarnation.to_string(),
        key: record.key.clone(),
        hostname: assignment.name.to_string(),
        root: Some(RootConfig {
            lower: Device::Path("/dev/vda".to_owned()),
            lower_filesystem: "ext4".to_owned(),
            upper: Some(Device::Path("/dev/vdb".to_owned())),
        }),
        network: user_network.then_some(network),
        workload: Some(workload(assignment)),
        epoch_ms: record.epoch_ms,
    }
}

/// Who the agent in a guest that was loaded from a snapshot takes itself for; none for one that booted, or whose record is damaged.
pub(crate) fn old_identity(record: &IncarnationRecord) -> Option<Identity> {
    let restored = record.restored.as_ref()?;
    let key = AgentKey::from_hex(restored.key.expose()).ok()?;
    Some(Identity { incarnation: restored.incarnation.to_string(), key })
}

/// What a guest that was loaded from a snapshot is told; clock and seed are for whoever sends it.
pub(crate) fn restored_request(record: &IncarnationRecord, user_network: bool) -> RestoredRequest {
    let GuestConfig { incarnation, key, hostname, network, .. } = guest_config(record, user_network);
    let machine_id = record.assignment.incarnation.uuid().simple().to_string();
    RestoredRequest {
        incarnation,
        key,
        hostname,
        network,
        epoch_ms: 0,
        seed: SecretString::new(""),
        machine_id,
    }
}

/// The workload: the spec over what the image says.
pub(crate) fn workload(assignment: &Assignment) -> WorkloadConfig {
    let (spec, image) = (&assignment.spec, &assignment.image.defaults);
    let mut env: BTreeMap<&String, &String> = image.env.iter().collect();
    env.extend(&spec.env);
    let secret = |(name, value): (&String, &flames_model::SecretString)| {
        (name.clone(), SecretString::new(value.expose()))
    };
    WorkloadConfig {
        argv: argv(assignment),
        env: env.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        secret_env: spec.secret_env.iter().map(secret).collect(),
        working_directory: spec.working_directory.clone().or_else(|| image.working_directory.clone()),
        user: spec.user.clone().or_else(|| image.user.clone()),
        tty: spec.tty,
        stdin: spec.stdin,
    }
}

/// A command replaces the image's entrypoint and arguments; arguments alone replace the image's arguments only. Empty: no workload.
fn argv(assignment: &Assignment) -> Vec<String> {
    let (VmSpec { command, args, .. }, image) = (&assignment.spec, &assignment.image.defaults);
    let (program, arguments) = match command {
        Some(command) => (command, args),
        None if args.is_empty() => (&image.entrypoint, &image.cmd),
        None => (&image.entrypoint, args),
    };
    program.iter().chain(arguments).cloned().collect()
}

/// Where a machine's ports are reached, by guest port.
pub(crate) fn endpoints(prepared: &Prepared) -> Vec<Endpoint> {
    let endpoint =
        |(guest_port, address): (&u16, &SocketAddr)| Endpoint { guest_port: *guest_port, address: *address };
    prepared.forwards.iter().map(endpoint).collect()
}
