//! A reconciler repairs drift by what is listed.

use flames_error::ErrorKind;
use flames_ingress::{IngressProvider, MAX_PAGE, Registration, Route, RouteKey, Target};

use crate::{Fixture, address, key, list_all, owner, refused, route};

/// Keys in ascending order, that sort otherwise when their port is compared as text or their VM as a number.
fn ascending() -> Vec<RouteKey> {
    [("vm_1", 9), ("vm_1", 80), ("vm_1", 443), ("vm_10", 1), ("vm_10", 65_535), ("vm_2", 10), ("vm_a", 5)]
        .map(|(vm, port)| key(vm, port))
        .to_vec()
}

pub(crate) async fn an_empty_table_lists_nothing(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let page = ingress.list(None, MAX_PAGE).await.unwrap();
    assert_eq!((page.registrations, page.next), (vec![], None));
}

pub(crate) async fn a_listing_is_ordered_and_pages_meet(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let keys = ascending();
    for key in keys.iter().rev() {
        ingress.register(route(key.vm.as_str(), key.port, &[]), address(9001)).await.unwrap();
    }
    for limit in [1, 2, 3, 6, 7, MAX_PAGE] {
        let listed: Vec<_> = list_all(&*ingress, limit).await.into_iter().map(|r| r.route.key).collect();
        assert_eq!(listed, keys, "pages of {limit}");
    }
    let page = ingress.list(Some(&key("vm_1", 100)), 2).await.unwrap();
    let behind: Vec<_> = page.registrations.into_iter().map(|r| r.route.key).collect();
    assert_eq!(behind, [key("vm_1", 443), key("vm_10", 1)], "behind a key that is not there");
}

pub(crate) async fn a_page_that_ends_with_the_table_is_the_last(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let keys = ascending();
    for key in &keys {
        ingress.register(route(key.vm.as_str(), key.port, &[]), address(9001)).await.unwrap();
    }
    let count = keys.len();
    for (limit, is_last) in [(count - 1, false), (count, true), (count + 1, true)] {
        let page = ingress.list(None, limit).await.unwrap();
        assert_eq!(page.registrations.len(), limit.min(count), "pages of {limit}");
        assert_eq!(page.next.is_none(), is_last, "pages of {limit}");
    }
    let page = ingress.list(Some(&keys[count - 3]), 2).await.unwrap();
    assert_eq!((page.registrations.len(), page.next), (2, None), "a full page at the end");
    let page = ingress.list(keys.last(), 1).await.unwrap();
    assert_eq!((page.registrations, page.next), (vec![], None), "behind the last");
}

pub(crate) async fn a_table_of_many_routes_is_listed_whole(fixture: &dyn Fixture) {
    const ROUTES: usize = 120;
    let ingress = fixture.ingress();
    let mut wanted: Vec<RouteKey> = (0..ROUTES)
        .map(|number| key(&format!("vm_{}", number / 3), 8_000 + u16::try_from(number % 3).unwrap()))
        .collect();
    let all = wanted.iter().map(|key| {
        let host = format!("{}-of-{}.example", key.port, key.vm.as_str().replace('_', "-"));
        ingress.register(route(key.vm.as_str(), key.port, &[&host]), address(9001))
    });
    for registered in futures::future::join_all(all).await {
        registered.unwrap();
    }
    wanted.sort();
    for limit in [7, ROUTES / 2, ROUTES, MAX_PAGE] {
        let listed: Vec<_> = list_all(&*ingress, limit).await.into_iter().map(|r| r.route.key).collect();
        assert_eq!(listed, wanted, "pages of {limit}");
    }
}

/// One run of a reconciler: what is listed and not wanted so goes, what is wanted and not listed so comes. Answers how many calls
/// that took.
async fn repair(ingress: &dyn IngressProvider, wanted: &[(Route, Target)]) -> usize {
    let listed = list_all(ingress, 3).await;
    let is_right = |listed: &Registration| {
        wanted.iter().any(|(route, target)| *route == listed.route && *target == listed.target)
    };
    let mut calls = 0;
    for wrong in listed.iter().filter(|listed| !is_right(listed)) {
        ingress.unregister_port(&wrong.route.key).await.unwrap();
        calls += 1;
    }
    for (route, target) in wanted {
        if !listed.iter().any(|listed| is_right(listed) && listed.route.key == route.key) {
            ingress.register(route.clone(), target.clone()).await.unwrap();
            calls += 1;
        }
    }
    calls
}

pub(crate) async fn a_reconciler_repairs_the_table_by_what_is_listed(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let wanted = [
        (route("vm_1", 80, &["a.example"]), address(9001)),
        (route("vm_1", 81, &[]), address(9001)),
        (route("vm_2", 80, &["b.example", "c.example"]), address(9002)),
        (route("vm_3", 80, &["d.example"]), address(9003)),
    ];
    // Right, another target, other names (one of them another VM's), a port too many, and a VM that is gone.
    for (drifted, target) in [
        (route("vm_1", 80, &["a.example"]), address(9001)),
        (route("vm_1", 81, &[]), address(9009)),
        (route("vm_2", 80, &["c.example", "d.example"]), address(9002)),
        (route("vm_2", 443, &[]), address(9002)),
        (route("vm_9", 80, &["b.example"]), address(9008)),
    ] {
        ingress.register(drifted, target).await.unwrap();
    }
    assert!(repair(&*ingress, &wanted).await > 0);
    let listed: Vec<_> =
        list_all(&*ingress, 1_000).await.into_iter().map(|listed| (listed.route, listed.target)).collect();
    assert_eq!(listed, wanted);
    assert_eq!(repair(&*ingress, &wanted).await, 0, "what is right is left alone");
}

pub(crate) async fn a_route_that_stays_is_listed_once_while_others_come_and_go(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let keys = ascending();
    for key in &keys {
        ingress.register(route(key.vm.as_str(), key.port, &[]), address(9001)).await.unwrap();
    }
    let (mut listed, mut after) = (Vec::new(), None);
    for step in 0..50_u16 {
        let page = ingress.list(after.as_ref(), 2).await.unwrap();
        listed.extend(page.registrations.into_iter().map(|r| r.route.key));
        after = page.next;
        if after.is_none() {
            break;
        }
        match &after {
            // The very place behind which the next page starts goes away.
            Some(reached) if step % 2 == 0 => ingress.unregister_port(reached).await.unwrap(),
            // Others come before it.
            _ => {
                for port in [2 * step, 2 * step + 1] {
                    ingress.register(route("vm_0", port, &[]), address(9001)).await.unwrap();
                }
            }
        }
        ingress.register(route("vm_z", step + 1, &[]), address(9001)).await.unwrap();
    }
    listed.retain(|key| key.vm != owner("vm_z"));
    assert_eq!(listed, keys);
}

pub(crate) async fn a_page_limit_out_of_range_is_refused(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    for limit in [0, MAX_PAGE + 1] {
        refused(ingress.list(None, limit).await, ErrorKind::InvalidInput);
    }
}
