//! How the Firecracker driver is set up on this host.

use std::path::Path;

use flames_firecracker_network::{Blocks, ClusterName, NetworkConfig};
use flames_vmm_firecracker::{FirecrackerConfig, SlotRange};
use sha2::{Digest, Sha256};

use super::network;
use crate::config::UpConfig;
use crate::exit::Failure;

/// Users of microVMs begin here: beyond systemd's dynamic users, and beyond most ranges of `/etc/subuid`.
const FIRST_USER: u32 = 2_000_000;
/// How many microVMs one data folder can have at once.
const USERS: u32 = 4_096;
/// How many ranges of users there are.
const RANGES: u32 = 4_096;

/// The driver's settings, with its files in `place`, for the data folder that it belongs to.
///
/// Two data folders of one host are two clusters: names of control groups and networks, and the range of users, are derived from the
/// folder's path, so that neither takes the other's for its own.
pub(crate) fn config(place: &Path, data: &Path, arguments: &UpConfig) -> Result<FirecrackerConfig, Failure> {
    let place = std::path::absolute(place)
        .map_err(|error| Failure::io(format!("The folder {} cannot be used", place.display()), &error))?;
    let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    let digest = Sha256::digest(data.as_os_str().as_encoded_bytes());
    let cluster = hex::encode(&digest[..4]);
    let mut config = FirecrackerConfig::new(place, &cluster);
    if let Some(block) = network::address_block(&data, arguments)? {
        let range = |range: flames_model::IpRange| range.to_string().parse();
        let blocks = Blocks { ipv4: range(block.ipv4)?, ipv6: block.ipv6.map(range).transpose()? };
        let mut networks =
            NetworkConfig::new(ClusterName::new(cluster)?, blocks, network::resolvers(arguments));
        networks.enable_forwarding = arguments.enable_forwarding;
        config.network = Some(networks);
    }
    let range = u32::from_be_bytes([0, 0, digest[4], digest[5]]) % RANGES;
    config.jail.users = SlotRange { first_user: FIRST_USER + range * USERS, count: USERS };
    config.boot_arguments.extend(arguments.kernel_arguments.iter().cloned());
    config.spare_monitors = arguments.spare_monitors;
    if let Some(path) = &arguments.cpu_template {
        let text = std::fs::read(path).map_err(|error| {
            Failure::io(format!("The CPU template {} cannot be read", path.display()), &error)
        })?;
        let template = serde_json::from_slice(&text).map_err(|error| {
            Failure::usage(format!("The CPU template {} is no JSON: {error}", path.display()))
                .advise("Firecracker's documentation says how one is made (docs/cpu_templates).")
        })?;
        config.cpu_template = Some(template);
    }
    Ok(config)
}
