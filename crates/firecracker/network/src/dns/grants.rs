//! What names made reachable, and under which policy.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flames_error::{Error, ErrorKind, Result};

use crate::kernel::namespace::Namespace;
use crate::kernel::on_own_thread;
use crate::networks::lock;
use crate::plan::Plan;
use crate::policy::{Egress, Policy};
use crate::rules::guest::{self, Resolved};

/// An address stays reachable for so much longer than its answer lives: a connection takes a moment to be opened.
const GRACE: Duration = Duration::from_secs(10);

/// The most names that are remembered for one address.
const MOST_NAMES: usize = 16;

/// The policy of a machine, and the addresses that are reachable because a name resolved to them.
#[derive(Debug)]
pub(crate) struct Grants {
    namespace: Namespace,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    plan: Arc<Plan>,
    /// As this process knows it. What an earlier one resolved is in the kernel's set and not here.
    reachable: HashMap<IpAddr, Grant>,
}

#[derive(Debug, Clone)]
struct Grant {
    names: BTreeSet<String>,
    until: Instant,
}

/// Whether an answer may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Its addresses are reachable.
    Admitted,
    /// The policy does not list the name any more.
    Refused,
}

impl Grants {
    pub(crate) fn new(plan: Arc<Plan>, namespace: Namespace) -> Self {
        Self { namespace, inner: Mutex::new(Inner { plan, reachable: HashMap::new() }) }
    }

    pub(crate) fn plan(&self) -> Arc<Plan> {
        Arc::clone(&lock(&self.inner).plan)
    }

    /// Runs `work` on a thread inside of the machine's namespace. Blocks.
    pub(crate) fn in_namespace<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            self.namespace.enter()?;
            work()
        })
    }

    /// Puts a new policy in place by `apply`, which is told the policy before and the addresses that stay reachable. While it
    /// runs, no address becomes reachable. When it fails, the old policy is still known as the one in place.
    pub(crate) fn replace_policy(
        &self,
        plan: &Arc<Plan>,
        apply: impl FnOnce(&Policy, &[Resolved]) -> Result<()>,
    ) -> Result<()> {
        let mut inner = lock(&self.inner);
        let (old, new) = (Arc::clone(&inner.plan), &plan.request.policy);
        let now = Instant::now();
        inner.reachable.retain(|_, grant| grant.until > now);
        let mut kept = inner.reachable.clone();
        for grant in kept.values_mut() {
            grant.names.retain(|name| new.resolves(name));
        }
        kept.retain(|_, grant| !grant.names.is_empty());
        // Under the same names the set is the same, and all that is in it stays by itself.
        let same_set = old.request.policy.domains_digest() == new.domains_digest();
        let resolved: Vec<Resolved> = if same_set || !matches!(new.egress, Egress::AllowList { .. }) {
            Vec::new()
        } else {
            kept.iter().map(|(address, grant)| (*address, grant.until - now)).collect()
        };
        apply(&old.request.policy, &resolved)?;
        inner.plan = Arc::clone(plan);
        inner.reachable = kept;
        Ok(())
    }

    /// Makes the addresses that `name` resolved to reachable for `lifetime` at least, where the policy goes by names. Blocks.
    ///
    /// Errors: `Exhausted` when too many are; those of the kernel's rules. Then the answer must not be told.
    pub(crate) fn admit(&self, name: &str, addresses: &[IpAddr], lifetime: Duration) -> Result<Admission> {
        let mut inner = lock(&self.inner);
        let plan = Arc::clone(&inner.plan);
        let policy = &plan.request.policy;
        // It may have changed since the name was asked for.
        if !policy.resolves(name) || !addresses.iter().all(|address| policy.may_resolve_to(*address)) {
            return Ok(Admission::Refused);
        }
        if !matches!(policy.egress, Egress::AllowList { .. }) {
            return Ok(Admission::Admitted);
        }
        let now = Instant::now();
        inner.reachable.retain(|_, grant| grant.until > now);
        let dns = &plan.config.dns;
        let lifetime = lifetime.clamp(dns.shortest_lifetime, dns.longest_lifetime);
        // Resolvers count TTLs down, so most answers end when the one before them did: those need no change.
        let enough = now + lifetime;
        let lacking: Vec<IpAddr> = addresses
            .iter()
            .copied()
            .filter(|address| inner.reachable.get(address).is_none_or(|grant| grant.until < enough))
            .collect();
        let fresh = lacking.iter().filter(|address| !inner.reachable.contains_key(address)).count();
        if inner.reachable.len() + fresh > dns.resolved_addresses as usize {
            return Err(Error::new(ErrorKind::Exhausted, "network.admit", "too many resolved addresses")
                .with_resource("incarnation", plan.request.incarnation.as_str()));
        }
        if !lacking.is_empty() {
            let resolved: Vec<Resolved> =
                lacking.iter().map(|address| (*address, lifetime + GRACE)).collect();
            let rules = guest::resolve(&plan, &resolved);
            self.in_namespace(|| rules.apply())?;
            for address in lacking {
                let names = inner.reachable.remove(&address).map(|grant| grant.names).unwrap_or_default();
                inner.reachable.insert(address, Grant { names, until: now + lifetime + GRACE });
            }
        }
        for address in addresses {
            if let Some(grant) =
                inner.reachable.get_mut(address).filter(|grant| grant.names.len() < MOST_NAMES)
            {
                grant.names.insert(name.to_owned());
            }
        }
        Ok(Admission::Admitted)
    }
}
