//! A host name belongs to one VM.

use std::sync::Arc;

use flames_error::ErrorKind;

use crate::{Fixture, address, key, list_all, owner, refused, route};

pub(crate) async fn a_host_name_belongs_to_one_vm(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let first = ingress.register(route("vm_1", 80, &["a.example"]), address(9001)).await.unwrap();
    let answer = ingress.register(route("vm_2", 80, &["b.example", "a.example"]), address(9002)).await;
    refused(answer, ErrorKind::AlreadyExists);
    assert_eq!(list_all(&*ingress, 1_000).await, [first]);
    ingress.register(route("vm_2", 80, &["b.example"]), address(9002)).await.unwrap();
}

pub(crate) async fn a_refused_route_changes_nothing(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    ingress.register(route("vm_1", 80, &["a.example"]), address(9001)).await.unwrap();
    ingress.register(route("vm_2", 80, &["b.example"]), address(9002)).await.unwrap();
    let before = list_all(&*ingress, 1_000).await;
    let answer = ingress.register(route("vm_2", 80, &["c.example", "a.example"]), address(9003)).await;
    refused(answer, ErrorKind::AlreadyExists);
    assert_eq!(list_all(&*ingress, 1_000).await, before);
    // The names of the refused route are free, and those of the standing one are not.
    refused(
        ingress.register(route("vm_3", 80, &["b.example"]), address(9004)).await,
        ErrorKind::AlreadyExists,
    );
    ingress.register(route("vm_3", 80, &["c.example"]), address(9004)).await.unwrap();
}

pub(crate) async fn one_of_many_who_want_a_host_name_gets_it(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let rivals = (0..8).map(|number| {
        let ingress = Arc::clone(&ingress);
        tokio::spawn(async move {
            ingress.register(route(&format!("vm_{number}"), 80, &["a.example"]), address(9001)).await
        })
    });
    let mut winners = Vec::new();
    for outcome in futures::future::join_all(rivals).await {
        match outcome.unwrap() {
            Ok(registration) => winners.push(registration),
            Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists),
        }
    }
    assert_eq!(winners.len(), 1, "just one gets it");
    assert_eq!(list_all(&*ingress, 1_000).await, winners);
}

pub(crate) async fn a_host_name_may_serve_several_ports_of_its_vm(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    for port in [80, 81, 82] {
        ingress.register(route("vm_1", port, &["a.example"]), address(9001)).await.unwrap();
    }
    let taken = async || {
        let answer = ingress.register(route("vm_2", 80, &["a.example"]), address(9002)).await;
        refused(answer, ErrorKind::AlreadyExists);
    };
    taken().await;
    // The name is the VM's as long as one of its ports has it, however the others lose it.
    ingress.register(route("vm_1", 81, &[]), address(9001)).await.unwrap();
    taken().await;
    ingress.unregister_port(&key("vm_1", 80)).await.unwrap();
    taken().await;
    assert!(ingress.unregister_target(&key("vm_1", 82), &address(9001)).await.unwrap());
    ingress.register(route("vm_2", 80, &["a.example"]), address(9002)).await.unwrap();
}

pub(crate) async fn a_freed_host_name_can_be_taken_by_another_vm(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    ingress.register(route("vm_1", 80, &["a.example"]), address(9001)).await.unwrap();
    ingress.register(route("vm_1", 81, &["b.example"]), address(9001)).await.unwrap();
    ingress.unregister_port(&key("vm_1", 81)).await.unwrap();
    ingress.register(route("vm_2", 81, &["b.example"]), address(9002)).await.unwrap();
    ingress.unregister(&owner("vm_1")).await.unwrap();
    ingress.register(route("vm_2", 80, &["a.example"]), address(9002)).await.unwrap();
    let keys: Vec<_> = list_all(&*ingress, 1_000).await.into_iter().map(|listed| listed.route.key).collect();
    assert_eq!(keys, [key("vm_2", 80), key("vm_2", 81)]);
}

pub(crate) async fn a_host_name_that_was_given_up_can_be_taken_by_another_vm(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    ingress.register(route("vm_1", 80, &["a.example", "b.example"]), address(9001)).await.unwrap();
    ingress.register(route("vm_1", 80, &["b.example"]), address(9001)).await.unwrap();
    ingress.register(route("vm_2", 80, &["a.example"]), address(9002)).await.unwrap();
    refused(
        ingress.register(route("vm_2", 81, &["b.example"]), address(9002)).await,
        ErrorKind::AlreadyExists,
    );
}
