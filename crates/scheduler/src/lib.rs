//! Pure placement: a request and the controllers in view give a decision.
//!
//! The view may be old and two replicas may decide at once: the commit that follows checks the controller's allocation, so a
//! wrong guess costs a retry and never an overcommitted host. To keep replicas from guessing alike, the choice among the best
//! few is random.

use std::sync::Arc;

use flames_model::{Controller, ControllerId, Labels, Reason, ReasonCode, Resources, SnapshotPlatform};

/// Among how many of the best controllers the choice is random.
pub const CHOICE: usize = 3;

/// What needs a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// What it takes.
    pub resources: Resources,
    /// Labels that the controller must have.
    pub placement: &'a Labels,
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

    use flames_model::{DriverInfo, SessionToken, Timestamp, VmName};
    use uuid::Uuid;

    use super::*;

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
                    cpu: Default::default(),
                    default_kernel: None,
                },
                cordoned: false,
                session: SessionToken::from_uuid(Uuid::from_u128(number)),
                created_at: Timestamp::UNIX_EPOCH,
                registered_at: Timestamp::UNIX_EPOCH,
            }),
            reserved: Resources { vcpus: used, ..Resources::default() },
            alive: true,
        }
    }

    fn request(vcpus: u64, placement: &Labels) -> Request<'_> {
        Request {
            resources: Resources { vcpus, memory_mib: 128, disk_mib: 64, vms: 1 },
            placement,
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

    impl Candidate {
        fn cordoned_for_test(&mut self) {
            Arc::make_mut(&mut self.controller).cordoned = true;
        }
    }
}
