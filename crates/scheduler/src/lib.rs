//! Pure placement: a request and the controllers in view give a decision.
//!
//! The view may be old and two replicas may decide at once: the commit that follows checks the controller's allocation, so a
//! wrong guess costs a retry and never an overcommitted host. To keep replicas from guessing alike, the choice among the best
//! few is random.

use std::sync::Arc;

use flames_model::{
    Controller, ControllerId, Labels, NetworkSpec, Reason, ReasonCode, Resources, SnapshotPlatform,
};

/// Among how many of the best controllers the choice is random.
pub const CHOICE: usize = 3;

/// What needs a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// What it takes.
    pub resources: Resources,
    /// Labels that the controller must have.
    pub placement: &'a Labels,
    /// How it is to be connected.
    pub network: &'a NetworkSpec,
    /// Whether it asks for a port of its host by number.
    pub host_port: bool,
    /// The only controller that will do, where its persistent disk is.
    pub pinned: Option<ControllerId>,
    /// What the saved guest needs that it is loaded from.
    pub platform: Option<&'a SnapshotPlatform>,
}

/// A controller in view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The controller.
    pub controller: Arc<Controller>,
    /// What is reserved on it.
    pub reserved: Resources,
    /// How many addresses of its block are free; none: it has no block, and guests there need no address.
    pub addresses_left: Option<u32>,
    /// Whether its lease is held, as far as this replica can tell.
    pub alive: bool,
}

impl Candidate {
    fn takes(&self, request: &Request<'_>) -> bool {
        self.alive
            && !self.controller.cordoned
            && request.pinned.is_none_or(|pinned| pinned == self.controller.id)
            && self.controller.labels.contain(request.placement)
            && request.platform.is_none_or(|needed| needed.misfit(&self.controller.driver).is_none())
            && request.network.misfit(request.host_port, &self.controller).is_none()
            && self.addresses_left != Some(0)
            && self.controller.capacity.fit(&(self.reserved + request.resources))
    }

    /// The fullest of its resources once the request is placed, in thousandths: the lower the better.
    fn fullness(&self, request: &Request<'_>) -> u64 {
        let after = self.reserved + request.resources;
        let capacity = self.controller.capacity;
        let thousandths = |used: u64, of: u64| used.saturating_mul(1_000).checked_div(of).unwrap_or(0);
        thousandths(after.vcpus, capacity.vcpus)
            .max(thousandths(after.memory_mib, capacity.memory_mib))
            .max(thousandths(after.disk_mib, capacity.disk_mib))
            .max(thousandths(after.vms, capacity.vms))
    }
}

/// Where to place, or why nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// There.
    Place(ControllerId),
    /// Nowhere now.
    Nowhere(Reason),
}

/// Picks one of the least full controllers that take the request; `pick` chooses among the best [`CHOICE`].
pub fn place(request: &Request<'_>, candidates: &[Candidate], pick: u64) -> Decision {
    let mut fitting: Vec<(u64, ControllerId)> = candidates
        .iter()
        .filter(|candidate| candidate.takes(request))
        .map(|candidate| (candidate.fullness(request), candidate.controller.id))
        .collect();
    fitting.sort_unstable();
    fitting.truncate(CHOICE);
    let among = u64::try_from(fitting.len()).unwrap_or(1).max(1);
    match fitting.get(usize::try_from(pick % among).unwrap_or(0)) {
        Some((_, controller)) => Decision::Place(*controller),
        None => Decision::Nowhere(why_nowhere(request, candidates)),
    }
}

fn why_nowhere(request: &Request<'_>, candidates: &[Candidate]) -> Reason {
    let usable: Vec<_> =
        candidates.iter().filter(|candidate| candidate.alive && !candidate.controller.cordoned).collect();
    let labelled: Vec<_> =
        usable.iter().filter(|candidate| candidate.controller.labels.contain(request.placement)).collect();
    if let Some(needed) = request.platform
        && let Some(first) = labelled.first()
        && labelled.iter().all(|candidate| needed.misfit(&candidate.controller.driver).is_some())
    {
        let why = needed.misfit(&first.controller.driver).unwrap_or_default();
        let message = format!(
            "No controller can load the snapshot that the VM is made from. Of `{}`: {why}.",
            first.controller.name
        );
        return Reason::new(ReasonCode::Incompatible, message);
    }
    let misfit = |candidate: &Candidate| request.network.misfit(request.host_port, &candidate.controller);
    if let Some(first) = labelled.first()
        && labelled.iter().all(|candidate| misfit(candidate).is_some())
    {
        let why = misfit(first).unwrap_or_default();
        let message =
            format!("No controller can connect the VM as it asks. Of `{}`: {why}.", first.controller.name);
        return Reason::new(ReasonCode::Incompatible, message);
    }
    let has_room = |candidate: &Candidate| {
        misfit(candidate).is_none()
            && request.pinned.is_none_or(|pinned| pinned == candidate.controller.id)
            && candidate.controller.capacity.fit(&(candidate.reserved + request.resources))
    };
    let lacks_only_addresses = labelled.iter().filter(|candidate| has_room(candidate)).collect::<Vec<_>>();
    let Resources { vcpus, memory_mib, disk_mib, .. } = request.resources;
    let message = if candidates.is_empty() {
        "No controller has registered.".to_owned()
    } else if let Some(pinned) =
        request.pinned.filter(|pinned| usable.iter().all(|c| c.controller.id != *pinned))
    {
        format!("The VM's disk is on controller {pinned}, which is not there or takes nothing new.")
    } else if usable.is_empty() {
        "No controller is there that takes new VMs.".to_owned()
    } else if labelled.is_empty() {
        "No controller has the labels that the VM's placement asks for.".to_owned()
    } else if !lacks_only_addresses.is_empty() {
        "No address is left in the address blocks of the controllers that have room: give their hosts larger ones (`address_block`)."
            .to_owned()
    } else {
        format!(
            "No controller has {vcpus} vCPUs, {memory_mib} MiB of memory and {disk_mib} MiB of disk free."
        )
    };
    Reason::new(ReasonCode::NoCapacity, message)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flames_model::{
        AddressBlock, Bandwidth, DriverInfo, DriverNetwork, Egress, SessionToken, Timestamp, VmName,
    };
    use uuid::Uuid;

    use super::*;

    static DENIED: NetworkSpec =
        NetworkSpec { egress: Egress::Deny, private_network: None, upload: None, download: None };

    fn candidate(number: u128, vcpus: u64, used: u64) -> Candidate {
        Candidate {
            controller: Arc::new(Controller {
                id: ControllerId::from_uuid(Uuid::from_u128(number)),
                name: VmName::new(format!("host-{number}")).unwrap(),
                capacity: Resources { vcpus, memory_mib: 1 << 20, disk_mib: 1 << 20, vms: 100 },
                labels: Labels::new(BTreeMap::from([("zone".into(), format!("z{number}"))]), "labels")
                    .unwrap(),
                driver: DriverInfo {
                    name: "simulated".into(),
                    version: None,
                    acceleration: "none".into(),
                    pause: true,
                    snapshot: true,
                    diff_snapshot: false,
                    cpu: Default::default(),
                    default_kernel: None,
                    network: DriverNetwork::User,
                    live_network: false,
                },
                address_block: None,
                cordoned: false,
                session: SessionToken::from_uuid(Uuid::from_u128(number)),
                created_at: Timestamp::UNIX_EPOCH,
                registered_at: Timestamp::UNIX_EPOCH,
            }),
            reserved: Resources { vcpus: used, ..Resources::default() },
            addresses_left: None,
            alive: true,
        }
    }

    fn request(vcpus: u64, placement: &Labels) -> Request<'_> {
        Request {
            resources: Resources { vcpus, memory_mib: 128, disk_mib: 64, vms: 1 },
            placement,
            network: &DENIED,
            host_port: false,
            pinned: None,
            platform: None,
        }
    }

    #[test]
    fn nothing_is_placed_where_it_does_not_fit() {
        let labels = Labels::default();
        let candidates = [candidate(1, 4, 4), candidate(2, 4, 3)];
        for pick in 0..8 {
            let decision = place(&request(1, &labels), &candidates, pick);
            assert_eq!(decision, Decision::Place(candidates[1].controller.id));
            assert!(matches!(place(&request(2, &labels), &candidates, pick), Decision::Nowhere(_)));
        }
    }

    #[test]
    fn the_choice_among_the_best_few_is_random_and_leaves_the_fullest_alone() {
        let labels = Labels::default();
        let candidates: Vec<_> = (1..=5).map(|n| candidate(n, 10, u64::try_from(n).unwrap())).collect();
        let chosen: std::collections::BTreeSet<_> = (0..12)
            .map(|pick| match place(&request(1, &labels), &candidates, pick) {
                Decision::Place(id) => id,
                Decision::Nowhere(reason) => panic!("{reason:?}"),
            })
            .collect();
        assert_eq!(chosen, candidates[..CHOICE].iter().map(|c| c.controller.id).collect());
    }

    #[test]
    fn the_dead_the_cordoned_and_the_unlabelled_are_passed_over_and_the_reason_says_so() {
        let labels = Labels::new(BTreeMap::from([("zone".into(), "z2".into())]), "labels").unwrap();
        let mut candidates = [candidate(1, 4, 0), candidate(2, 4, 0)];
        assert_eq!(place(&request(1, &labels), &candidates, 7), Decision::Place(candidates[1].controller.id));
        candidates[1].cordoned_for_test();
        let Decision::Nowhere(reason) = place(&request(1, &labels), &candidates, 0) else { panic!("placed") };
        assert!(reason.message.contains("labels"), "{reason:?}");
        candidates[0].alive = false;
        let Decision::Nowhere(reason) = place(&request(1, &Labels::default()), &candidates, 0) else {
            panic!("placed")
        };
        assert!(reason.message.contains("takes new VMs"), "{reason:?}");
        assert!(matches!(place(&request(1, &labels), &[], 0), Decision::Nowhere(_)));
    }

    #[test]
    fn a_vm_with_a_disk_goes_where_its_disk_is_or_nowhere() {
        let labels = Labels::default();
        let candidates = [candidate(1, 4, 0), candidate(2, 4, 4)];
        let pinned = Request { pinned: Some(candidates[1].controller.id), ..request(1, &labels) };
        assert!(matches!(place(&pinned, &candidates, 0), Decision::Nowhere(_)));
    }

    #[test]
    fn a_saved_guest_goes_only_where_driver_version_processor_and_kernel_are_its_own() {
        let labels = Labels::default();
        let base = candidate(1, 4, 0);
        let platform = SnapshotPlatform::of(&base.controller.driver, None);
        let restore = Request { platform: Some(&platform), ..request(1, &labels) };
        assert!(matches!(place(&restore, std::slice::from_ref(&base), 0), Decision::Place(_)));
        type Edit = fn(&mut DriverInfo);
        let changes: [(&str, Edit); 5] = [
            ("no snapshots", |driver| driver.snapshot = false),
            ("driver is other", |driver| driver.name = "other".into()),
            ("version", |driver| driver.version = Some("2".into())),
            ("processor", |driver| driver.cpu.features = "x".into()),
            ("kernel", |driver| driver.default_kernel = Some("sha256:1".into())),
        ];
        for (said, change) in changes {
            let mut other = base.clone();
            change(&mut Arc::make_mut(&mut other.controller).driver);
            let (needs, hosts) = match said {
                // Only a guest that runs the default kernel needs it.
                "kernel" => (SnapshotPlatform::of(&other.controller.driver, None), [base.clone()]),
                _ => (platform.clone(), [other]),
            };
            let restore = Request { platform: Some(&needs), ..request(1, &labels) };
            let Decision::Nowhere(reason) = place(&restore, &hosts, 0) else { panic!("{said}: placed") };
            assert_eq!(reason.code, ReasonCode::Incompatible);
            assert!(reason.message.contains(said), "{said}: {reason:?}");
        }
    }

    fn with_block(number: u128, left: u32) -> Candidate {
        let mut candidate = candidate(number, 4, 0);
        let controller = Arc::make_mut(&mut candidate.controller);
        controller.driver.network = DriverNetwork::Tap;
        controller.address_block = Some(AddressBlock { ipv4: "10.0.0.0/28".parse().unwrap(), ipv6: None });
        Candidate { addresses_left: Some(left), ..candidate }
    }

    #[test]
    fn a_vm_goes_only_where_its_network_can_be_as_it_asks_and_the_reason_says_so() {
        let labels = Labels::default();
        let hosts = [candidate(1, 4, 0), with_block(2, 4)];
        let asked = |change: fn(&mut NetworkSpec)| {
            let mut network = NetworkSpec::default();
            change(&mut network);
            network
        };
        let only_tap = [
            asked(|network| network.egress = Egress::Allow { named: Vec::new() }),
            asked(|network| network.private_network = Some("team".to_owned().try_into().unwrap())),
            asked(|network| network.upload = Some(Bandwidth::of(1_000_000))),
        ];
        for network in &only_tap {
            let request = Request { network, ..request(1, &labels) };
            for pick in 0..4 {
                assert_eq!(place(&request, &hosts, pick), Decision::Place(hosts[1].controller.id));
            }
            let Decision::Nowhere(reason) = place(&request, &hosts[..1], 0) else { panic!("placed") };
            assert_eq!(reason.code, ReasonCode::Incompatible);
            assert!(reason.message.contains("host-1") && reason.message.contains("simulated"), "{reason:?}");
        }
        let open = asked(|network| network.egress = Egress::Unrestricted);
        for host in &hosts {
            let request = Request { network: &open, ..request(1, &labels) };
            assert!(matches!(place(&request, std::slice::from_ref(host), 0), Decision::Place(_)));
        }
        let request = Request { host_port: true, ..request(1, &labels) };
        assert_eq!(place(&request, &hosts, 1), Decision::Place(hosts[0].controller.id));
        let Decision::Nowhere(reason) = place(&request, &hosts[1..], 0) else { panic!("placed") };
        assert!(reason.message.contains("port of the host"), "{reason:?}");
    }

    #[test]
    fn a_block_without_an_address_left_is_passed_over_and_the_reason_says_so() {
        let labels = Labels::default();
        let hosts = [with_block(1, 0), with_block(2, 1)];
        assert_eq!(place(&request(1, &labels), &hosts, 0), Decision::Place(hosts[1].controller.id));
        let Decision::Nowhere(reason) = place(&request(1, &labels), &hosts[..1], 0) else { panic!("placed") };
        assert_eq!(reason.code, ReasonCode::NoCapacity);
        assert!(reason.message.contains("No address is left"), "{reason:?}");
        let Decision::Nowhere(reason) = place(&request(5, &labels), &hosts[..1], 0) else { panic!("placed") };
        assert!(reason.message.contains("5 vCPUs"), "what is lacking beside is told first: {reason:?}");
    }

    impl Candidate {
        fn cordoned_for_test(&mut self) {
            Arc::make_mut(&mut self.controller).cordoned = true;
        }
    }
}
