//! A reconciler repairs drift by what is listed.

use flames_error::ErrorKind;
use flames_ingress::{MAX_PAGE, RouteKey};

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
