//! From an assignment to a machine: pure, so that the same record always gives the same machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::config::{Device, GuestConfig, RootConfig, WorkloadConfig};
use flames_guest_protocol::message::RestoredRequest;
use flames_guest_protocol::{AgentKey, Identity, SecretString};
use flames_model::{Assignment, Endpoint, VmSpec};
use flames_vmm::{BootSource, Drive, DriverCapabilities, MachineSpec, Prepared, SecretBytes};

use crate::network::Connection;

use crate::record::IncarnationRecord;

/// Where everything that a machine is made from lies.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: Option<PathBuf>,
    pub(crate) rootfs: PathBuf,
    pub(crate) layer: PathBuf,
}

/// What proves an incarnation's agent and its controller to each other.
pub(crate) fn identity(record: &IncarnationRecord) -> Identity {
    Identity { incarnation: record.assignment.incarnation.to_string(), key: record.key.clone() }
}

/// The machine of a record.
///
/// Errors: `InvalidInput` when the workload does not fit into a guest's configuration; `NotSupported` when the driver cannot connect it as
/// it asks.
pub(crate) fn machine_spec(
    record: &IncarnationRecord,
    local: &Local,
    capabilities: &DriverCapabilities,
) -> Result<MachineSpec> {
    let spec = &record.assignment.spec;
    let connection = Connection::of(&record.assignment, capabilities);
    let network = connection.network_spec(&record.assignment)?;
    let config = guest_config(record, &connection).encode().map_err(|error| {
        Error::new(ErrorKind::InvalidInput, "controller.machine", error.message.clone())
            .with_user_message(error.message)
    })?;
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
        network,
    })
}

fn guest_config(record: &IncarnationRecord, connection: &Connection) -> GuestConfig {
    let assignment = &record.assignment;
    GuestConfig {
        incarnation: assignment.incarnation.to_string(),
        key: record.key.clone(),
        hostname: assignment.name.to_string(),
        root: Some(RootConfig {
            lower: Device::Path("/dev/vda".to_owned()),
            lower_filesystem: "ext4".to_owned(),
            upper: Some(Device::Path("/dev/vdb".to_owned())),
        }),
        network: connection.guest_config(),
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
pub(crate) fn restored_request(
    record: &IncarnationRecord,
    capabilities: &DriverCapabilities,
) -> RestoredRequest {
    let connection = Connection::of(&record.assignment, capabilities);
    let GuestConfig { incarnation, key, hostname, network, .. } = guest_config(record, &connection);
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
    let (VmSpec { command, args, .. }, image) = (&*assignment.spec, &assignment.image.defaults);
    let (program, arguments) = match command {
        Some(command) => (command, args),
        None if args.is_empty() => (&image.entrypoint, &image.cmd),
        None => (&image.entrypoint, args),
    };
    program.iter().chain(arguments).cloned().collect()
}

/// Where a machine's ports are reached: at the host's that lead to them, and at the guest's own address.
pub(crate) fn endpoints(assignment: &Assignment, prepared: &Prepared) -> Vec<Endpoint> {
    let forwarded =
        |(guest_port, address): (&u16, &SocketAddr)| Endpoint { guest_port: *guest_port, address: *address };
    let ports = assignment.spec.ports.iter().map(|port| port.guest_port);
    let own = assignment.address.into_iter().flat_map(|address| {
        ports.clone().map(move |guest_port| Endpoint {
            guest_port,
            address: SocketAddr::new(address.ipv4.into(), guest_port),
        })
    });
    prepared.forwards.iter().map(forwarded).chain(own).collect()
}
