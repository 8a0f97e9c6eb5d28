//! The networks of a host's machines: the one door to this crate.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flames_clock::Random;
use flames_error::{Error, ErrorKind, Result};

use crate::config::NetworkConfig;
use crate::dns::{Forwarder, ForwarderSockets, Grants};
use crate::kernel::namespace::{self, Namespace};
use crate::kernel::netlink::Netlink;
use crate::kernel::{on_own_thread, settings, tap};
use crate::names::{Incarnation, Slot};
use crate::nft;
use crate::plan::{Attachment, NetworkRequest, Plan};
use crate::rules::host::HostRules;
use crate::stand::{self, Host, State};

/// What stands on the host for an incarnation of this cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whose it is.
    pub incarnation: Incarnation,
    /// Its slot, where something tells it.
    pub slot: Option<Slot>,
    /// Whether its namespace, its interface and its rules on the host are all there, and its making came to its end.
    pub whole: bool,
}

/// The networks of this host's machines. One of it per cluster and host at a time.
///
/// Every call runs to its end on a thread of its own even when its future is dropped, and those of one incarnation one after
/// the other. Dropping this ends the DNS forwarders (machines then resolve nothing) and nothing else.
#[derive(Debug)]
pub struct Networks {
    shared: Arc<Shared>,
    forwarders: Mutex<HashMap<Incarnation, Forwarder>>,
    random: Arc<dyn Random>,
}

#[derive(Debug)]
struct Shared {
    config: Arc<NetworkConfig>,
    /// The host's.
    namespace: Namespace,
    /// One network is made at a time. The kernel's lock of all links (rtnetlink's) makes it so anyway, but not in turn: whoever writes a
    /// setting while another has it begins anew at once, again and again (`rtnl_trylock`, `restart_syscall` in devinet.c, addrconf.c), so
    /// that many at once take more time than one after the other.
    building: Mutex<()>,
    /// One change of the host's table at a time: each reads what is there before.
    host_rules: Mutex<HostRules>,
    busy: Mutex<HashMap<Incarnation, Arc<Mutex<()>>>>,
}

impl Networks {
    /// Checks the host, and switches forwarding on where that is needed and allowed. Nothing else is changed.
    ///
    /// Errors: `InvalidInput` for a wrong configuration; `NotSupported` without `nft`, without `/dev/net/tun`, or when the host
    /// does not forward; `PermissionDenied` without root.
    pub async fn open(config: NetworkConfig, random: Arc<dyn Random>) -> Result<Self> {
        config.validate()?;
        let config = Arc::new(config);
        let opened = Arc::clone(&config);
        let namespace = flames_host::blocking(move || on_own_thread(|| open_host(&opened))).await?;
        let shared = Shared {
            config,
            namespace,
            building: Mutex::default(),
            host_rules: Mutex::default(),
            busy: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), forwarders: Mutex::default(), random })
    }

    /// What [`Networks::create`] will answer; nothing is made. `InvalidInput`, or `Exhausted` for a slot behind the block's end.
    pub fn attachment(&self, request: &NetworkRequest) -> Result<Attachment> {
        Ok(Plan::new(&self.shared.config, request)?.attachment())
    }

    /// Makes an incarnation's network, all of it, and starts its DNS forwarder. What is whole is left standing under the
    /// request's policy; what is half made is made anew.
    ///
    /// Errors: `InvalidInput`; `Exhausted` when the address block has no such slot; `Conflict` when another's interface is in the
    /// slot; `NotSupported`, with what is missing, for a kernel or a tool that lacks something; `PermissionDenied`; `Unavailable`
    /// when a tool did not end in time. After an error, either this or [`Networks::remove`] may be called.
    pub async fn create(&self, request: &NetworkRequest) -> Result<Attachment> {
        self.bring_up(request, true, None).await
    }

    /// As [`Networks::create`], from what [`Networks::create_spare`] has made for the same user, under whatever name; nothing of that name is left.
    ///
    /// Errors: `NotFound` when there is no such spare; those of create.
    pub async fn create_from(&self, spare: &Incarnation, request: &NetworkRequest) -> Result<Attachment> {
        self.bring_up(request, true, Some(spare)).await
    }

    /// Makes ahead what needs no address: a namespace with a tap in it that this user may open, under a name that is no incarnation's.
    /// [`Networks::remove`] takes it away. Its file, for the jailer's `--netns`, leads to it also when it has another name.
    ///
    /// Errors: `AlreadyExists`; those of create.
    pub async fn create_spare(&self, spare: &Incarnation, tap_owner: u32) -> Result<PathBuf> {
        let (shared, name) = (Arc::clone(&self.shared), self.shared.config.cluster.namespace(spare));
        let path = namespace::path(&name);
        flames_host::blocking(move || {
            on_own_thread(|| {
                shared.namespace.enter()?;
                let _alone = lock(&shared.building);
                stand::build_spare(&shared.config, &name, tap_owner).map(drop)
            })
        })
        .await?;
        Ok(path)
    }

    /// Takes over an incarnation's network after a restart: its rules are written anew under the request's policy, what was
    /// resolved under the same names stays reachable, and its DNS forwarder is started. Connections go on.
    ///
    /// Errors: `NotFound` when it is not there or not whole (then [`Networks::create`] or [`Networks::remove`]); those of create.
    pub async fn adopt(&self, request: &NetworkRequest) -> Result<Attachment> {
        self.bring_up(request, false, None).await
    }

    /// Puts a live machine under the request's policy, in one transaction; when its private network is another, or the policy before is not
    /// known (after an adoption, which makes it known), the host's rules follow in a second one. Connections are judged anew, by their next packet: what the new policy does not admit is cut. Resolved addresses stay reachable for as
    /// long as the new policy lists the name that was asked.
    ///
    /// Errors: `NotFound` when its network is not whole; those of create.
    pub async fn set_policy(&self, request: &NetworkRequest) -> Result<()> {
        self.bring_up(request, false, None).await.map(drop)
    }

    /// Takes an incarnation's network away. Nothing there: no error. Its monitor must have ended: a process that is still in the
    /// namespace keeps it, without a name and without a way out of it.
    ///
    /// Errors: `PermissionDenied`; `Unavailable` when a tool did not end in time; `Internal`. It may be called again.
    pub async fn remove(&self, incarnation: &Incarnation) -> Result<()> {
        let forwarder = lock(&self.forwarders).remove(incarnation);
        if let Some(forwarder) = forwarder {
            forwarder.stop().await;
        }
        let shared = Arc::clone(&self.shared);
        let incarnation = incarnation.clone();
        flames_host::blocking(move || {
            on_own_thread(|| {
                let turn = shared.turn(&incarnation);
                let _turn = lock(&turn);
                let done = stand::demolish(&shared.config, &incarnation, &shared.host()?);
                shared.forget(&incarnation, &turn);
                done
            })
        })
        .await
    }

    /// What stands on the host in the name of this cluster: whoever sweeps removes what belongs to no incarnation that it knows.
    ///
    /// Errors: `PermissionDenied`; `Unavailable` when a tool did not end in time; `Internal`.
    pub async fn scan(&self) -> Result<Vec<Found>> {
        let shared = Arc::clone(&self.shared);
        let found =
            flames_host::blocking(move || on_own_thread(|| stand::survey(&shared.config, &shared.host()?)));
        let found = found.await?.into_iter().map(|(incarnation, standing)| Found {
            incarnation,
            slot: standing.slot,
            whole: standing.namespace && standing.complete && standing.rules,
        });
        Ok(found.collect())
    }

    async fn bring_up(
        &self,
        request: &NetworkRequest,
        may_build: bool,
        spare: Option<&Incarnation>,
    ) -> Result<Attachment> {
        let plan = Arc::new(Plan::new(&self.shared.config, request)?);
        let known = lock(&self.forwarders).get(&request.incarnation).map(Forwarder::grants);
        let (shared, planned, spare) = (Arc::clone(&self.shared), Arc::clone(&plan), spare.cloned());
        let fresh = flames_host::blocking(move || {
            on_own_thread(|| shared.bring_up(&planned, may_build, spare.as_ref(), known))
        })
        .await?;
        if let Some((sockets, grants)) = fresh {
            let forwarder = Forwarder::start(&plan.config, sockets, grants, Arc::clone(&self.random))?;
            let displaced = lock(&self.forwarders).insert(request.incarnation.clone(), forwarder);
            if let Some(displaced) = displaced {
                displaced.stop().await;
            }
        }
        Ok(plan.attachment())
    }
}

impl Shared {
    /// Whoever holds this lock works on the incarnation.
    fn turn(&self, incarnation: &Incarnation) -> Arc<Mutex<()>> {
        Arc::clone(lock(&self.busy).entry(incarnation.clone()).or_default())
    }

    /// Forgets the incarnation's lock, unless somebody waits for it.
    fn forget(&self, incarnation: &Incarnation, turn: &Arc<Mutex<()>>) {
        let mut busy = lock(&self.busy);
        // The map's and the caller's: nobody can take another while the map is locked.
        if Arc::strong_count(turn) == 2 {
            busy.remove(incarnation);
        }
    }

    fn host(&self) -> Result<Host<'_>> {
        self.namespace.enter()?;
        Ok(Host { netlink: Netlink::open()?, namespace: &self.namespace, rules: &self.host_rules })
    }

    /// What a forwarder needs, unless one serves already.
    fn bring_up(
        &self,
        plan: &Arc<Plan>,
        may_build: bool,
        spare: Option<&Incarnation>,
        known: Option<Arc<Grants>>,
    ) -> Result<Option<(ForwarderSockets, Arc<Grants>)>> {
        let turn = self.turn(&plan.request.incarnation);
        let _turn = lock(&turn);
        let host = self.host()?;
        let namespace = match (stand::state(plan, &host)?, known) {
            (State::Whole(namespace), Some(grants)) => {
                return grants
                    .replace_policy(plan, |replaced, resolved| {
                        stand::apply_policy(plan, &namespace, &host, Some(replaced), resolved)
                    })
                    .map(|()| None);
            }
            (State::Whole(namespace), None) => {
                stand::apply_policy(plan, &namespace, &host, None, &[])?;
                namespace
            }
            (State::Absent | State::Half, _) if !may_build => {
                return Err(Error::not_found("network.adopt", "network", plan.request.incarnation.as_str()));
            }
            (state, _) => {
                if matches!(state, State::Half) {
                    stand::demolish(&plan.config, &plan.request.incarnation, &host)?;
                }
                let _alone = lock(&self.building);
                stand::build(plan, &host, spare)?
            }
        };
        // This thread is the work's own; one more would only have to be waited for.
        namespace.enter()?;
        let gateways = plan.attachment().resolvers;
        let mut tries = 0;
        let sockets = loop {
            match ForwarderSockets::open(&gateways) {
                // A forwarder of this process that was just dropped takes a moment to close its sockets.
                Err(error) if error.kind() == ErrorKind::Conflict && tries < 50 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                opened => break opened?,
            }
        };
        let grants = Arc::new(Grants::new(Arc::clone(plan), namespace));
        Ok(Some((sockets.with_host(self.namespace.try_clone()?), grants)))
    }
}

/// The host's namespace, after everything that is needed of the host was tried.
fn open_host(config: &NetworkConfig) -> Result<Namespace> {
    const OPERATION: &str = "network.open";
    let host = match &config.host_namespace {
        None => Namespace::current()?,
        Some(path) => Namespace::open(path)?.ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, OPERATION, "there is no network namespace")
                .with_context("path", path.display())
        })?,
    };
    host.enter()?;
    nft::version(config.command_deadline)?;
    if !Path::new("/dev/net/tun").exists() {
        let sentence = "There is no /dev/net/tun. Load the kernel's module `tun`.";
        return Err(Error::new(ErrorKind::NotSupported, OPERATION, sentence).with_user_message(sentence));
    }
    settings::require_forwarding(config.blocks.ipv6.is_some(), config.enable_forwarding)?;
    Ok(host)
}

/// Nothing that is held here is left half changed by a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attachment {
    /// Opens the tap as Firecracker does, in the namespace: for whoever stands in for a monitor. Blocks for a moment.
    ///
    /// Errors: `NotFound` when the namespace is gone; `Unavailable` while another has the tap open; `PermissionDenied`.
    pub fn open_tap(&self) -> Result<File> {
        on_own_thread(|| {
            let namespace = Namespace::open(&self.namespace)?.ok_or_else(|| {
                Error::not_found("network.tap", "namespace", self.namespace.display().to_string())
            })?;
            namespace.enter()?;
            tap::attach(&self.tap)
        })
    }
}
