//! IngressProvider: how traffic from outside reaches a guest's port, as an interface.
//!
//! A provider holds a table of routes. It is told the table by a reconciler, which repairs drift through
//! [`IngressProvider::list`]. Guarantees are proven by cases of `flames-ingress-conformance` (named behind each method).

use std::fmt::{Debug, Display};
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use flames_error::{Error, Result};
use futures::future::BoxFuture;

/// The most entries of one page.
pub const MAX_PAGE: usize = 1_000;

/// Whose route it is: the VM's id, opaque here. 1 to 64 bytes of `a-z 0-9 _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteOwner(String);

impl RouteOwner {
    /// Checks and wraps an owner. `InvalidInput` when it is none.
    pub fn new(id: impl Into<String>) -> Result<Self> {
        let id = id.into();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        if (1..=64).contains(&id.len()) && id.bytes().all(allowed) {
            Ok(Self(id))
        } else {
            Err(Error::invalid(
                "ingress.owner",
                "vm",
                "A route's owner is 1 to 64 bytes of a-z, 0-9, `_` and `-`.",
            ))
        }
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for RouteOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What identifies a route: one port of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// The VM.
    pub vm: RouteOwner,
    /// The port inside the guest, 1 to 65,535.
    pub port: u16,
}

/// A route: under which host names one port of one VM is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which port of which VM.
    pub key: RouteKey,
    /// Host names, lower case, without a port. Empty: the provider names it by its own convention. Several ports of one VM may share a
    /// name; which of them answers there is the provider's to say.
    pub hosts: Vec<String>,
}

impl Route {
    /// `InvalidInput` when the port is 0 or a host name is none (RFC 1123, section 2.1: labels of 1 to 63 letters, digits and
    /// inner hyphens; at most 253 bytes) or there are more than 32. Every adapter calls it first.
    pub fn validate(&self) -> Result<()> {
        const OPERATION: &str = "ingress.register";
        if self.key.port == 0 {
            return Err(Error::invalid(OPERATION, "port", "A port is 1 to 65535."));
        }
        let label_fits = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if self.hosts.len() > 32
            || self.hosts.iter().any(|host| host.len() > 253 || !host.split('.').all(label_fits))
        {
            return Err(Error::invalid(
                OPERATION,
                "hosts",
                "A route has at most 32 host names, each a lower-case DNS name.",
            ));
        }
        Ok(())
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An address that the provider can connect to.
    Address(SocketAddr),
    /// A guest's port, dialled through the injected [`Dial`].
    Guest {
        /// The incarnation that answers, opaque here.
        incarnation: String,
        /// The port inside the guest.
        port: u16,
    },
}

/// A byte stream in both directions.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<D: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for D {}

/// How an adapter reaches a port inside a guest.
pub trait Dial: Debug + Send + Sync + 'static {
    /// Connects to `port` inside `incarnation`. Errors: `NotFound`, `Unavailable`.
    fn dial(&self, incarnation: &str, port: u16) -> BoxFuture<'_, Result<Box<dyn Duplex>>>;
}

/// A route with its target, as registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The route.
    pub route: Route,
    /// Where it leads.
    pub target: Target,
    /// The URL under which it is reached, when the provider serves one.
    pub url: Option<String>,
}

/// One page of registrations, by route key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistrationPage {
    /// The registrations.
    pub registrations: Vec<Registration>,
    /// Where to continue behind; none when this was the last page.
    pub next: Option<RouteKey>,
}

/// What an ingress can do. Known without connecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IngressCapabilities {
    /// Whether traffic is really forwarded (the no-op only remembers).
    pub forwards: bool,
    /// Whether a [`Target::Guest`] can be served.
    pub guest_targets: bool,
}

/// A table of routes. See the crate's docs for the guarantees.
#[async_trait]
pub trait IngressProvider: Debug + Send + Sync + 'static {
    /// The adapter's name (`noop`, `proxy`, `caddy`).
    fn name(&self) -> &'static str;

    /// What this ingress can do.
    fn capabilities(&self) -> IngressCapabilities;

    /// The URL under which `route` is reached once it is registered: that of its [`Registration`]. Known without connecting; none when the
    /// provider serves none.
    ///
    /// Cases: `a_registered_route_has_the_url_that_is_told_of_it`.
    fn url(&self, route: &Route) -> Option<String> {
        let _ = route;
        None
    }

    /// Makes `route` lead to `target`; an idempotent upsert by the route's key.
    ///
    /// Errors: `InvalidInput` for a route that is none; `NotSupported` for a target that it cannot serve; `AlreadyExists` when a host
    /// name belongs to another VM's route; `Unavailable`; `OutcomeUnknown`.
    ///
    /// Atomic: it is there whole or not at all, and of several calls at once for one key the last one stands whole.
    ///
    /// Cases: `a_registered_route_is_listed`, `registering_again_replaces_the_target`, `registering_again_replaces_the_host_names`,
    /// `registering_the_same_twice_changes_nothing`, `a_host_name_belongs_to_one_vm`, `a_refused_route_changes_nothing`,
    /// `one_of_many_who_want_a_host_name_gets_it`, `a_host_name_may_serve_several_ports_of_its_vm`, `a_route_that_is_none_is_refused`,
    /// `names_and_numbers_at_the_limit_are_taken`, `a_guest_target_is_served_or_refused_as_declared`,
    /// `of_two_incarnations_registering_at_once_one_stands_whole`, `any_order_of_calls_gives_the_table_of_the_model`.
    async fn register(&self, route: Route, target: Target) -> Result<Registration>;

    /// Removes one port's route. No error when it is not there.
    ///
    /// Cases: `removing_one_port_leaves_the_others`.
    async fn unregister_port(&self, key: &RouteKey) -> Result<()>;

    /// Removes all routes of a VM. No error when it has none.
    ///
    /// Cases: `an_unregistered_vm_has_no_routes`, `unregistering_twice_is_no_error`,
    /// `a_freed_host_name_can_be_taken_by_another_vm`.
    async fn unregister(&self, vm: &RouteOwner) -> Result<()>;

    /// Removes one port's route when it still leads to `target`, and answers whether it did; atomic. How an incarnation that ends takes
    /// its own routes away: a route that meanwhile leads to the VM's next incarnation stands, whatever the order in which the two are
    /// told. (An incarnation's id is never reused, so a target that names one cannot come back.)
    ///
    /// Every adapter has its own: the default answers `NotSupported`, because it cannot be made of the other calls without a race.
    ///
    /// Errors: `Unavailable`; `OutcomeUnknown`.
    ///
    /// Cases: `what_an_older_incarnation_takes_away_is_only_its_own`, `a_route_is_taken_away_with_the_target_it_has`,
    /// `a_new_incarnation_keeps_its_route_however_the_old_one_ends`.
    async fn unregister_target(&self, key: &RouteKey, target: &Target) -> Result<bool> {
        let _ = (key, target);
        Err(Error::new(
            flames_error::ErrorKind::NotSupported,
            "ingress.unregister_target",
            "this adapter cannot remove a route by its target",
        ))
    }

    /// All routes of a VM, by port.
    ///
    /// Cases: `a_vms_routes_are_its_own`.
    async fn get(&self, vm: &RouteOwner) -> Result<Vec<Registration>>;

    /// All routes, by key, behind `after`, at most `limit` (1 to [`MAX_PAGE`]) a page.
    ///
    /// Errors: `InvalidInput` when `limit` is out of range; `Unavailable`.
    ///
    /// A route that is there during the whole of a listing is listed once, whatever comes and goes meanwhile.
    ///
    /// Cases: `an_empty_table_lists_nothing`, `a_listing_is_ordered_and_pages_meet`, `a_page_that_ends_with_the_table_is_the_last`,
    /// `a_table_of_many_routes_is_listed_whole`, `a_route_that_stays_is_listed_once_while_others_come_and_go`,
    /// `a_page_limit_out_of_range_is_refused`, `a_reconciler_repairs_the_table_by_what_is_listed`.
    async fn list(&self, after: Option<&RouteKey>, limit: usize) -> Result<RegistrationPage>;
}

#[async_trait]
impl<I: IngressProvider + ?Sized> IngressProvider for Arc<I> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    fn capabilities(&self) -> IngressCapabilities {
        (**self).capabilities()
    }
    fn url(&self, route: &Route) -> Option<String> {
        (**self).url(route)
    }
    async fn register(&self, route: Route, target: Target) -> Result<Registration> {
        (**self).register(route, target).await
    }
    async fn unregister_port(&self, key: &RouteKey) -> Result<()> {
        (**self).unregister_port(key).await
    }
    async fn unregister(&self, vm: &RouteOwner) -> Result<()> {
        (**self).unregister(vm).await
    }
    async fn unregister_target(&self, key: &RouteKey, target: &Target) -> Result<bool> {
        (**self).unregister_target(key, target).await
    }
    async fn get(&self, vm: &RouteOwner) -> Result<Vec<Registration>> {
        (**self).get(vm).await
    }
    async fn list(&self, after: Option<&RouteKey>, limit: usize) -> Result<RegistrationPage> {
        (**self).list(after, limit).await
    }
}
