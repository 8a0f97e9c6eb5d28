//! The suite's own test: ingresses that are wrong in one way each, and the case that catches each.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use flames_conformance_runner::{Caught, WrongProviders, caught};
use flames_error::{Error, ErrorKind, Result};
use flames_ingress::{
    IngressCapabilities, IngressProvider, MAX_PAGE, Registration, RegistrationPage, Route, RouteKey,
    RouteOwner, Target,
};
use flames_ingress_conformance::{Fixture, Harness, Time, async_trait, suite};
use flames_ingress_noop::NoopIngress;

/// The one way in which a [`BrokenIngress`] is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// It cannot serve guests, says so, and is right.
    NoGuests,
    /// It cannot serve guests, says so, and takes them all the same.
    GuestsTakenUndeclared,
    RegistrationLost,
    FirstTargetStays,
    /// Host names of an earlier registration of the route stay.
    HostNamesPileUp,
    /// A second registration of a route is refused.
    RegisterOnce,
    /// A host name goes to whoever asks last.
    HostNameStolen,
    /// The old route is removed before the new one is known to be right.
    RemoveThenCheck,
    /// Looks whether a host name is free, and takes it later.
    CheckThenRegister,
    HostNamesNeverFreed,
    UnregisterDoesNothing,
    UnregisterTakesPrefix,
    UnregisterOfAbsentFails,
    PortTakesTheVm,
    GetTakesPrefix,
    NothingValidated,
    ListingUnordered,
    PagesRepeat,
    PagesSkip,
    /// A page starts at a place that is counted, not named.
    PagesByOffset,
    LimitBent,
    /// A full page always promises another.
    FullPageGoesOn,
    /// The longest names are refused.
    LimitsTooNarrow,
    /// A route is removed whatever its target.
    TargetIgnored,
    /// Removing by target does nothing, and says that it did.
    TargetNeverRemoved,
    /// Looks where a route leads, and removes it later.
    LookThenUnregister,
    /// A route's names are set, and its target later.
    NamesThenTarget,
    /// A host name that one port gives up is free, though another port has it.
    SharedNameFreedEarly,
    /// A host name is one port's.
    NoSharedNames,
    /// What is listed is what was first registered.
    ListsTheFirst,
    /// Only so many routes are listed.
    ListsFewerThanAHundred,
    /// It tells of a URL that no registration has.
    UrlUntrue,
    /// Every tenth registration is answered and lost.
    TenthLost,
    /// Where there is no route, one is listed.
    ListsAGhost,
}

#[derive(Debug)]
struct BrokenIngress {
    flaw: Flaw,
    right: NoopIngress,
    hosts: Mutex<BTreeMap<String, RouteOwner>>,
    pages: Mutex<usize>,
    freed: Mutex<Vec<String>>,
    first: Mutex<BTreeMap<RouteKey, Registration>>,
    registered: Mutex<usize>,
}

impl BrokenIngress {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    async fn all(&self) -> Vec<Registration> {
        self.right.list(None, MAX_PAGE).await.unwrap().registrations
    }

    async fn standing(&self, key: &RouteKey) -> Option<Registration> {
        self.all().await.into_iter().find(|registration| registration.route.key == *key)
    }

    /// Remembers the names that a route is about to lose.
    async fn note_freed(&self, key: &RouteKey) {
        let hosts = self.standing(key).await.map(|standing| standing.route.hosts).unwrap_or_default();
        self.freed.lock().unwrap().extend(hosts);
    }

    /// The VMs that `vm` is mistaken for.
    async fn beginning_with(&self, vm: &RouteOwner) -> Vec<RouteOwner> {
        let owners = self.all().await.into_iter().map(|registration| registration.route.key.vm);
        owners.filter(|owner| owner.as_str().starts_with(vm.as_str())).collect()
    }
}

#[async_trait]
impl IngressProvider for BrokenIngress {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn capabilities(&self) -> IngressCapabilities {
        capabilities(self.flaw)
    }

    fn url(&self, _: &Route) -> Option<String> {
        self.is(Flaw::UrlUntrue).then(|| "http://elsewhere.example/".to_owned())
    }

    async fn register(&self, mut route: Route, mut target: Target) -> Result<Registration> {
        let standing = self.standing(&route.key).await;
        let refused = |kind| Err(Error::new(kind, "ingress.register", "refused"));
        match self.flaw {
            Flaw::NoGuests if matches!(target, Target::Guest { .. }) => {
                return refused(ErrorKind::NotSupported);
            }
            Flaw::RegistrationLost => {
                route.validate()?;
                return Ok(Registration { route, target, url: None });
            }
            Flaw::FirstTargetStays => target = standing.map_or(target, |standing| standing.target),
            Flaw::HostNamesPileUp => {
                let mut old = standing.map(|standing| standing.route.hosts).unwrap_or_default();
                old.retain(|host| !route.hosts.contains(host));
                route.hosts.extend(old);
            }
            Flaw::RegisterOnce if standing.is_some() => return refused(ErrorKind::AlreadyExists),
            Flaw::HostNameStolen => {
                for other in self.all().await {
                    if other.route.key.vm != route.key.vm
                        && other.route.hosts.iter().any(|host| route.hosts.contains(host))
                    {
                        self.right.unregister_port(&other.route.key).await?;
                    }
                }
            }
            Flaw::RemoveThenCheck => self.right.unregister_port(&route.key).await?,
            Flaw::CheckThenRegister => {
                let taken = |other: &Registration| {
                    other.route.key.vm != route.key.vm
                        && other.route.hosts.iter().any(|host| route.hosts.contains(host))
                };
                if self.all().await.iter().any(taken) {
                    return refused(ErrorKind::AlreadyExists);
                }
                tokio::task::yield_now().await;
                for other in self.all().await.into_iter().filter(taken) {
                    self.right.unregister_port(&other.route.key).await?;
                }
            }
            Flaw::LimitsTooNarrow if route.hosts.iter().any(|host| host.len() > 200) => {
                return refused(ErrorKind::InvalidInput);
            }
            Flaw::NamesThenTarget => {
                let is_odd = {
                    let mut registered = self.registered.lock().unwrap();
                    *registered += 1;
                    *registered % 2 == 1
                };
                let old = standing.map_or_else(|| target.clone(), |standing| standing.target);
                self.right.register(route.clone(), old).await?;
                for _ in 0..if is_odd { 2 } else { 1 } {
                    tokio::task::yield_now().await;
                }
                let named =
                    self.standing(&route.key).await.map_or_else(|| route.clone(), |named| named.route);
                self.right.register(named, target.clone()).await?;
                return Ok(Registration { route, target, url: None });
            }
            Flaw::NoSharedNames => {
                let shares = |other: &Registration| {
                    other.route.key != route.key
                        && other.route.hosts.iter().any(|host| route.hosts.contains(host))
                };
                if self.all().await.iter().any(shares) {
                    return refused(ErrorKind::AlreadyExists);
                }
            }
            Flaw::SharedNameFreedEarly => {
                for other in self.all().await {
                    let is_freed = |host: &String| {
                        self.freed.lock().unwrap().contains(host) && other.route.hosts.contains(host)
                    };
                    if other.route.key.vm != route.key.vm && route.hosts.iter().any(is_freed) {
                        self.right.unregister_port(&other.route.key).await?;
                    }
                }
                self.note_freed(&route.key).await;
                self.freed.lock().unwrap().retain(|host| !route.hosts.contains(host));
            }
            Flaw::TenthLost => {
                let number = {
                    let mut registered = self.registered.lock().unwrap();
                    *registered += 1;
                    *registered
                };
                if number % 10 == 0
                    && !self.all().await.iter().any(|other| other.route.key.vm != route.key.vm)
                {
                    route.validate()?;
                    return Ok(Registration { route, target, url: None });
                }
            }
            Flaw::HostNamesNeverFreed => {
                let mut hosts = self.hosts.lock().unwrap();
                for host in &route.hosts {
                    if hosts.entry(host.clone()).or_insert(route.key.vm.clone()) != &route.key.vm {
                        return refused(ErrorKind::AlreadyExists);
                    }
                }
            }
            Flaw::NothingValidated => {
                route.key.port = route.key.port.max(1);
                route.hosts.clear();
            }
            _ => {}
        }
        let registered = self.right.register(route, target).await?;
        let key = registered.route.key.clone();
        self.first.lock().unwrap().entry(key).or_insert_with(|| registered.clone());
        Ok(registered)
    }

    async fn unregister_target(&self, key: &RouteKey, target: &Target) -> Result<bool> {
        self.note_freed(key).await;
        match self.flaw {
            Flaw::TargetIgnored => {
                let was_there = self.standing(key).await.is_some();
                self.right.unregister_port(key).await?;
                Ok(was_there)
            }
            Flaw::TargetNeverRemoved => {
                Ok(self.standing(key).await.is_some_and(|standing| standing.target == *target))
            }
            Flaw::LookThenUnregister => {
                let leads_there = self.standing(key).await.is_some_and(|standing| standing.target == *target);
                if leads_there {
                    tokio::task::yield_now().await;
                    self.right.unregister_port(key).await?;
                }
                Ok(leads_there)
            }
            _ => self.right.unregister_target(key, target).await,
        }
    }

    async fn unregister_port(&self, key: &RouteKey) -> Result<()> {
        self.note_freed(key).await;
        match self.flaw {
            Flaw::UnregisterOfAbsentFails if self.standing(key).await.is_none() => {
                Err(Error::not_found("ingress.unregister_port", "route", key.vm.as_str()))
            }
            Flaw::PortTakesTheVm => self.right.unregister(&key.vm).await,
            _ => self.right.unregister_port(key).await,
        }
    }

    async fn unregister(&self, vm: &RouteOwner) -> Result<()> {
        if self.is(Flaw::UnregisterDoesNothing) {
            return Ok(());
        }
        if self.is(Flaw::UnregisterTakesPrefix) {
            for owner in self.beginning_with(vm).await {
                self.right.unregister(&owner).await?;
            }
        }
        self.right.unregister(vm).await
    }

    async fn get(&self, vm: &RouteOwner) -> Result<Vec<Registration>> {
        if !self.is(Flaw::GetTakesPrefix) {
            return self.right.get(vm).await;
        }
        let owners = self.beginning_with(vm).await;
        let mut all = self.all().await;
        all.retain(|registration| owners.contains(&registration.route.key.vm));
        Ok(all)
    }

    async fn list(&self, after: Option<&RouteKey>, limit: usize) -> Result<RegistrationPage> {
        let mut page = match self.flaw {
            Flaw::LimitBent => self.right.list(after, limit.clamp(1, MAX_PAGE)).await?,
            Flaw::PagesRepeat => self.right.list(None, limit).await?,
            Flaw::PagesByOffset => {
                let offset = {
                    let mut pages = self.pages.lock().unwrap();
                    *pages = if after.is_none() { 0 } else { *pages + 1 };
                    *pages * limit
                };
                let all = self.all().await;
                let registrations: Vec<_> = all.iter().skip(offset).take(limit).cloned().collect();
                let more = all.len() > offset + limit;
                let next = registrations.last().filter(|_| more).map(|last| last.route.key.clone());
                RegistrationPage { registrations, next }
            }
            _ => self.right.list(after, limit).await?,
        };
        match self.flaw {
            Flaw::ListingUnordered => page.registrations.reverse(),
            Flaw::FullPageGoesOn if page.registrations.len() == limit => {
                page.next = page.registrations.last().map(|last| last.route.key.clone());
            }
            Flaw::ListsAGhost if page.registrations.is_empty() => {
                let key = RouteKey { vm: RouteOwner::new("vm_ghost").unwrap(), port: 80 };
                let (route, target) =
                    (Route { key, hosts: Vec::new() }, Target::Address(([127, 0, 0, 1], 9).into()));
                page.registrations.push(Registration { route, target, url: None });
            }
            Flaw::ListsTheFirst => {
                let first = self.first.lock().unwrap();
                for listed in &mut page.registrations {
                    *listed = first[&listed.route.key].clone();
                }
            }
            Flaw::ListsFewerThanAHundred => {
                let mut all: Vec<_> = self.all().await.into_iter().map(|listed| listed.route.key).collect();
                all.truncate(99);
                page.registrations.retain(|listed| all.contains(&listed.route.key));
            }
            Flaw::PagesSkip if page.next.is_some() => {
                let behind = self.right.list(page.next.as_ref(), 1).await?;
                page.next = behind.registrations.into_iter().next().map(|first| first.route.key);
            }
            _ => {}
        }
        Ok(page)
    }
}

fn capabilities(flaw: Flaw) -> IngressCapabilities {
    let guest_targets = !matches!(flaw, Flaw::NoGuests | Flaw::GuestsTakenUndeclared);
    IngressCapabilities { forwards: false, guest_targets }
}

struct Broken(Flaw);

struct Fresh(Arc<BrokenIngress>);

#[async_trait]
impl Harness<dyn Fixture> for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }
    fn time(&self) -> Time {
        Time::Paused
    }
    async fn fresh(&self) -> Box<dyn Fixture> {
        Box::new(Fresh(Arc::new(BrokenIngress {
            flaw: self.0,
            right: NoopIngress::new(),
            hosts: Mutex::default(),
            pages: Mutex::default(),
            freed: Mutex::default(),
            first: Mutex::default(),
            registered: Mutex::default(),
        })))
    }
}

impl Fixture for Fresh {
    fn ingress(&self) -> Arc<dyn IngressProvider> {
        self.0.clone()
    }
}

const CAUGHT: &Caught<Flaw> = caught![Flaw:
    RegistrationLost => a_registered_route_is_listed;
    UrlUntrue => a_registered_route_has_the_url_that_is_told_of_it;
    FirstTargetStays => registering_again_replaces_the_target;
    HostNamesPileUp => registering_again_replaces_the_host_names,
        a_host_name_that_was_given_up_can_be_taken_by_another_vm, any_order_of_calls_gives_the_table_of_the_model;
    RegisterOnce => registering_the_same_twice_changes_nothing;
    HostNameStolen => a_host_name_belongs_to_one_vm;
    RemoveThenCheck => a_refused_route_changes_nothing;
    CheckThenRegister => one_of_many_who_want_a_host_name_gets_it;
    HostNamesNeverFreed => a_freed_host_name_can_be_taken_by_another_vm,
        a_reconciler_repairs_the_table_by_what_is_listed;
    UnregisterDoesNothing => an_unregistered_vm_has_no_routes;
    UnregisterTakesPrefix => an_unregistered_vm_has_no_routes;
    UnregisterOfAbsentFails => unregistering_twice_is_no_error;
    PortTakesTheVm => removing_one_port_leaves_the_others;
    GetTakesPrefix => a_vms_routes_are_its_own;
    NothingValidated => a_route_that_is_none_is_refused;
    GuestsTakenUndeclared => a_guest_target_is_served_or_refused_as_declared;
    ListingUnordered => a_listing_is_ordered_and_pages_meet;
    PagesRepeat => a_listing_is_ordered_and_pages_meet;
    PagesSkip => a_listing_is_ordered_and_pages_meet;
    PagesByOffset => a_route_that_stays_is_listed_once_while_others_come_and_go;
    LimitBent => a_page_limit_out_of_range_is_refused;
    FullPageGoesOn => a_page_that_ends_with_the_table_is_the_last;
    LimitsTooNarrow => names_and_numbers_at_the_limit_are_taken;
    TargetIgnored => what_an_older_incarnation_takes_away_is_only_its_own,
        any_order_of_calls_gives_the_table_of_the_model;
    TargetNeverRemoved => a_route_is_taken_away_with_the_target_it_has;
    LookThenUnregister => a_new_incarnation_keeps_its_route_however_the_old_one_ends;
    NamesThenTarget => of_two_incarnations_registering_at_once_one_stands_whole;
    SharedNameFreedEarly => a_host_name_may_serve_several_ports_of_its_vm,
        any_order_of_calls_gives_the_table_of_the_model;
    NoSharedNames => a_host_name_may_serve_several_ports_of_its_vm;
    ListsTheFirst => a_reconciler_repairs_the_table_by_what_is_listed;
    ListsFewerThanAHundred => a_table_of_many_routes_is_listed_whole;
    ListsAGhost => an_empty_table_lists_nothing;
    TenthLost => any_order_of_calls_gives_the_table_of_the_model;
];

fn main() -> ExitCode {
    let broken = |flaw| suite(Broken(flaw), capabilities(flaw));
    WrongProviders::new().add("ingress", broken, &[Flaw::None, Flaw::NoGuests], CAUGHT).run()
}
