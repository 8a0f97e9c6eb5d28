//! From a machine's network to what the host's networks are asked for.

use std::net::IpAddr;
use std::sync::Arc;

use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_api::{NetworkInterface, NetworkInterfacePatch, RateLimiter, TokenBucket};
use flames_firecracker_network::{
    BandwidthLimit, Blocks, DomainPattern, Egress, Incarnation, IpRange, NetworkRequest, Policy, PortRange,
    PrivateNetwork, Slot, TAP,
};
use flames_host::blocking;
use flames_vmm::{AddressRange, Bandwidth, IncarnationName, NetworkPolicy, NetworkSpec};
use flames_vmm_local::Folder;
use rustix::thread::UnshareFlags;

use crate::context::Context;
use crate::folder::{Records, SpecRecord};

const OPERATION: &str = "vmm.prepare";
/// The interface's name towards Firecracker.
pub(crate) const INTERFACE: &str = "eth0";

/// What to ask of the host's networks; none for a machine without one.
///
/// Errors: `NotSupported` for user-mode networking, and for any on a driver without networks; `InvalidInput` for an address that is none
/// of this host's, or a policy that cannot be.
pub(crate) fn request(
    context: &Context,
    incarnation: &IncarnationName,
    network: &NetworkSpec,
    tap_owner: u32,
) -> Result<Option<NetworkRequest>> {
    let unsupported = |sentence: &str| {
        Err(Error::new(ErrorKind::NotSupported, OPERATION, sentence)
            .with_field("network")
            .with_user_message(sentence))
    };
    let (address, gateway, mac, policy) = match network {
        NetworkSpec::None => return Ok(None),
        NetworkSpec::User { .. } => {
            return unsupported("Firecracker has no user-mode networking: use a tap, or another driver.");
        }
        NetworkSpec::Tap { address, gateway, mac, policy } => (*address, *gateway, *mac, policy),
    };
    let Some(config) = &context.config.network else {
        return unsupported("This host has no networks for microVMs: configure its address block.");
    };
    limiter(policy.upload)?;
    limiter(policy.download)?;
    Ok(Some(NetworkRequest {
        incarnation: Incarnation::new(incarnation.as_str())?,
        slot: slot_of(config.blocks, address, gateway)?,
        mac,
        tap_owner,
        policy: translated(policy)?,
    }))
}

/// What the host's networks are asked for by a machine that may have run: under the policy that replaced the one of its making.
pub(crate) fn live_request(folder: &Folder, record: &SpecRecord) -> Result<Option<NetworkRequest>> {
    let Some(made) = &record.network else { return Ok(None) };
    let policy = match folder.network_policy()? {
        Some(replaced) => translated(&replaced)?,
        None => made.policy.clone(),
    };
    Ok(Some(NetworkRequest { policy, ..made.clone() }))
}

/// The request of a machine's making under another policy, with the limits of its interface.
///
/// Errors: `NotSupported` on a driver without networks; `InvalidInput`, with the field, for a machine without a tap and a policy that
/// cannot be.
pub(crate) fn replaced_request(
    context: &Context,
    record: &SpecRecord,
    policy: &NetworkPolicy,
) -> Result<(NetworkRequest, NetworkInterfacePatch)> {
    const OPERATION: &str = "vmm.update";
    if context.config.network.is_none() {
        let sentence = "This host has no networks for microVMs: configure its address block.";
        return Err(Error::new(ErrorKind::NotSupported, OPERATION, sentence).with_user_message(sentence));
    }
    let (Some(made), NetworkSpec::Tap { .. }) = (&record.network, &record.spec.network) else {
        return Err(Error::invalid(OPERATION, "network", "The machine has no network of its own."));
    };
    let request = NetworkRequest { policy: translated(policy)?, ..made.clone() };
    Ok((request, limits(policy)?))
}

/// The place in the host's block whose guest has the address.
fn slot_of(blocks: Blocks, (address, prefix): (IpAddr, u8), gateway: IpAddr) -> Result<Slot> {
    let refuse = |sentence: String| Err(Error::invalid(OPERATION, "network.address", sentence));
    let IpAddr::V4(wanted) = address else {
        return refuse(
            "A machine is named by its IPv4 address; its IPv6 address follows from that.".to_owned(),
        );
    };
    let block = blocks.ipv4;
    if !block.contains(address) {
        return refuse(format!("{address} is not of this host's block {block}."));
    }
    let IpAddr::V4(first) = block.address() else {
        return refuse("This host has no block of IPv4.".to_owned());
    };
    // The networks give each machine a /30, in the order of the slots; what they answer is compared.
    let slot = Slot::new((wanted.to_bits() - first.to_bits()) / 4)?;
    let given = blocks.addresses(slot)?;
    if given.guest != wanted || given.prefix != prefix || IpAddr::V4(given.gateway) != gateway {
        return refuse(format!(
            "{address}/{prefix} behind {gateway} is no machine's: nearest to it is {}/{} behind {}.",
            given.guest, given.prefix, given.gateway
        ));
    }
    Ok(slot)
}

fn translated(policy: &NetworkPolicy) -> Result<Policy> {
    let ranges = |listed: &[AddressRange]| {
        listed.iter().map(|(address, prefix)| IpRange::new(*address, *prefix)).collect::<Result<Vec<_>>>()
    };
    let egress = match &policy.egress {
        flames_vmm::Egress::Deny => Egress::Deny,
        flames_vmm::Egress::Allow { named } => Egress::Allow { named: ranges(named)? },
        flames_vmm::Egress::AllowList { ranges: listed, domains, ports } => Egress::AllowList {
            ranges: ranges(listed)?,
            domains: domains.iter().map(|domain| DomainPattern::new(domain)).collect::<Result<_>>()?,
            ports: ports.iter().map(|(first, last)| PortRange::new(*first, *last)).collect::<Result<_>>()?,
        },
    };
    let private_network = policy.private_network.clone().map(PrivateNetwork::new).transpose()?;
    let policy = Policy { egress, private_network };
    policy.validate()?;
    Ok(policy)
}

fn limiter(limit: Option<Bandwidth>) -> Result<Option<RateLimiter>> {
    let Some(limit) = limit else { return Ok(None) };
    let bucket = BandwidthLimit { bytes_per_second: limit.bytes_per_second, burst_bytes: limit.burst_bytes }
        .token_bucket()?;
    let refill_time = u64::try_from(bucket.refill_time.as_millis()).unwrap_or(u64::MAX);
    let bandwidth = TokenBucket { size: bucket.size, one_time_burst: None, refill_time };
    Ok(Some(RateLimiter { bandwidth: Some(bandwidth), ops: None }))
}

/// The interface as Firecracker is told of it.
pub(crate) fn interface(network: &NetworkSpec) -> Result<Option<NetworkInterface>> {
    let NetworkSpec::Tap { mac, policy, .. } = network else { return Ok(None) };
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut interface = NetworkInterface::new(INTERFACE, TAP, mac);
    interface.tx_rate_limiter = limiter(policy.upload)?;
    interface.rx_rate_limiter = limiter(policy.download)?;
    Ok(Some(interface))
}

/// The limits of an interface that came out of a snapshot, whose own were others.
pub(crate) fn limits_after_load(network: &NetworkSpec) -> Result<Option<NetworkInterfacePatch>> {
    let NetworkSpec::Tap { policy, .. } = network else { return Ok(None) };
    limits(policy).map(Some)
}

/// The limits of an interface whose own may be others.
fn limits(policy: &NetworkPolicy) -> Result<NetworkInterfacePatch> {
    // A bucket of no size is no limit.
    let none = || RateLimiter {
        bandwidth: Some(TokenBucket { size: 0, one_time_burst: None, refill_time: 0 }),
        ops: None,
    };
    Ok(NetworkInterfacePatch {
        iface_id: INTERFACE.to_owned(),
        tx_rate_limiter: Some(limiter(policy.upload)?.unwrap_or_else(none)),
        rx_rate_limiter: Some(limiter(policy.download)?.unwrap_or_else(none)),
    })
}

/// A network namespace with nothing in it, for a monitor that needs no network: it shall not see the host's. It ends with the last
/// process in it.
#[derive(Debug)]
pub(crate) struct EmptyNamespace(std::fs::File);

impl EmptyNamespace {
    pub(crate) async fn new() -> Result<Self> {
        blocking(|| {
            // Its own thread, since the namespace stays with it.
            let made = std::thread::spawn(|| -> std::io::Result<std::fs::File> {
                // SAFETY: of all flags only CLONE_FILES can break what other code relies on (the shared table of descriptors). This
                // one gives the calling thread, which ends here, a network namespace of its own.
                #[allow(unsafe_code)]
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
                std::fs::File::open("/proc/thread-self/ns/net")
            });
            let failed = |error: std::io::Error| {
                Error::internal("vmm.start", "an empty network namespace cannot be made").with_source(error)
            };
            made.join()
                .unwrap_or_else(|_| Err(std::io::Error::other("its thread ended")))
                .map(Self)
                .map_err(failed)
        })
        .await
    }

    /// A path that leads to it for as long as this is held.
    pub(crate) fn path(&self) -> std::path::PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// What a machine's process is put into.
#[derive(Debug)]
pub(crate) enum Placement {
    Empty(EmptyNamespace),
    Own(std::path::PathBuf),
}

impl Placement {
    pub(crate) fn path(&self) -> std::path::PathBuf {
        match self {
            Self::Empty(namespace) => namespace.path(),
            Self::Own(path) => path.clone(),
        }
    }
}

/// Makes the network when it is not there, whole, and says where its namespace is.
pub(crate) async fn bring_up(context: &Arc<Context>, request: Option<&NetworkRequest>) -> Result<Placement> {
    let Some(request) = request else { return EmptyNamespace::new().await.map(Placement::Empty) };
    let Some(networks) = &context.host().await?.networks else {
        let sentence = "This host has no networks for microVMs: configure its address block.";
        return Err(Error::new(ErrorKind::NotSupported, "vmm.start", sentence).with_user_message(sentence));
    };
    networks.create(request).await.map(|attachment| Placement::Own(attachment.namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_its_slot_and_what_is_no_machines_is_refused() {
        let blocks = Blocks { ipv4: "10.9.0.0/24".parse().unwrap(), ipv6: None };
        for number in [0, 1, 17] {
            let slot = Slot::new(number).unwrap();
            let given = blocks.addresses(slot).unwrap();
            let found = slot_of(blocks, (given.guest.into(), given.prefix), given.gateway.into());
            assert_eq!(found.unwrap(), slot);
            let behind_itself = slot_of(blocks, (given.guest.into(), given.prefix), given.guest.into());
            assert_eq!(behind_itself.unwrap_err().field(), Some("network.address"));
        }
        let elsewhere = slot_of(blocks, ("10.8.0.2".parse().unwrap(), 30), "10.8.0.1".parse().unwrap());
        assert!(elsewhere.unwrap_err().user_message().unwrap().contains("10.9.0.0/24"));
    }

    #[test]
    fn a_network_that_this_host_has_not_is_refused_with_what_to_do() {
        let clock = Arc::new(flames_clock::SystemClock::new());
        let config = crate::FirecrackerConfig::new("/nowhere", "c");
        let context = Context::new(config, clock, Arc::new(flames_clock::SystemRandom));
        let name = IncarnationName::new("inc_1").unwrap();
        let tap = NetworkSpec::Tap {
            address: ("10.9.0.2".parse().unwrap(), 30),
            gateway: "10.9.0.1".parse().unwrap(),
            mac: [2; 6],
            policy: NetworkPolicy::default(),
        };
        for network in [NetworkSpec::User { forwards: Vec::new(), isolated: false }, tap] {
            let error = request(&context, &name, &network, 0).unwrap_err();
            assert_eq!((error.kind(), error.field()), (ErrorKind::NotSupported, Some("network")));
            assert!(error.user_message().unwrap().contains(": "), "{error:?}");
        }
        assert_eq!(request(&context, &name, &NetworkSpec::None, 0).unwrap(), None);
    }

    #[test]
    fn a_policy_is_translated_word_by_word_and_a_wrong_one_refused() {
        let policy =
            |egress| NetworkPolicy { egress, private_network: Some("team".into()), ..Default::default() };
        let listed = policy(flames_vmm::Egress::AllowList {
            ranges: vec![("10.1.0.0".parse().unwrap(), 16)],
            domains: vec!["*.example.com".into()],
            ports: vec![(443, 443)],
        });
        let translated_list = translated(&listed).unwrap();
        let Egress::AllowList { ranges, domains, ports } = &translated_list.egress else {
            panic!("{translated_list:?}")
        };
        assert_eq!((ranges.len(), domains.len(), ports[0].ends()), (1, 1, (443, 443)));
        assert_eq!(translated_list.private_network.unwrap().as_str(), "team");
        assert_eq!(translated(&NetworkPolicy::default()).unwrap(), Policy::deny());
        let wrong = policy(flames_vmm::Egress::Allow { named: vec![("10.1.0.1".parse().unwrap(), 16)] });
        assert!(translated(&wrong).is_err());
    }

    #[test]
    fn a_bandwidth_becomes_a_bucket_in_the_right_direction() {
        let upload = Some(Bandwidth { bytes_per_second: 1_000_000, burst_bytes: 100_000 });
        let network = NetworkSpec::Tap {
            address: ("10.9.0.2".parse().unwrap(), 30),
            gateway: "10.9.0.1".parse().unwrap(),
            mac: [2, 0, 0, 0, 0, 0x1f],
            policy: NetworkPolicy { upload, ..Default::default() },
        };
        let told = interface(&network).unwrap().unwrap();
        assert_eq!(told.guest_mac.as_deref(), Some("02:00:00:00:00:1f"));
        assert!(told.tx_rate_limiter.is_some() && told.rx_rate_limiter.is_none());
        assert!(interface(&NetworkSpec::None).unwrap().is_none());
    }
}
