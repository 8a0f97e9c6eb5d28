//! A VM's incarnations follow each other, and what is told of an old one may come late.

use std::sync::Arc;

use flames_error::ErrorKind;

use crate::{Fixture, address, incarnation, key, list_all, ports_of, refused, route};

pub(crate) async fn what_an_older_incarnation_takes_away_is_only_its_own(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let [old, new] = [1, 2].map(|number| incarnation(&*ingress, number));
    ingress.register(route("vm_1", 80, &["a.example"]), old.clone()).await.unwrap();
    let standing = ingress.register(route("vm_1", 80, &["a.example"]), new.clone()).await.unwrap();
    assert!(!ingress.unregister_target(&key("vm_1", 80), &old).await.unwrap());
    assert_eq!(list_all(&*ingress, 1_000).await, [standing]);
    refused(
        ingress.register(route("vm_2", 80, &["a.example"]), address(9009)).await,
        ErrorKind::AlreadyExists,
    );
    assert!(!ingress.unregister_target(&key("vm_1", 81), &new).await.unwrap(), "a port without a route");
    assert!(!ingress.unregister_target(&key("vm_2", 80), &new).await.unwrap(), "a VM without routes");
    assert_eq!(ports_of(&*ingress, "vm_1").await, [80]);
}

pub(crate) async fn a_route_is_taken_away_with_the_target_it_has(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    let target = incarnation(&*ingress, 1);
    for port in [80, 81] {
        let host = format!("p{port}.example");
        ingress.register(route("vm_1", port, &[&host]), target.clone()).await.unwrap();
    }
    assert!(ingress.unregister_target(&key("vm_1", 80), &target).await.unwrap());
    assert_eq!(ports_of(&*ingress, "vm_1").await, [81], "the other port keeps its route");
    assert!(!ingress.unregister_target(&key("vm_1", 80), &target).await.unwrap(), "it is gone already");
    ingress.register(route("vm_2", 80, &["p80.example"]), address(9009)).await.unwrap();
}

pub(crate) async fn a_new_incarnation_keeps_its_route_however_the_old_one_ends(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    for round in 0..20 {
        let [old, new] = [2 * round, 2 * round + 1].map(|number| incarnation(&*ingress, number));
        ingress.register(route("vm_1", 80, &["a.example"]), old.clone()).await.unwrap();
        let ending = {
            let (ingress, old) = (Arc::clone(&ingress), old.clone());
            async move { ingress.unregister_target(&key("vm_1", 80), &old).await }
        };
        let starting = {
            let (ingress, new) = (Arc::clone(&ingress), new.clone());
            async move { ingress.register(route("vm_1", 80, &["a.example"]), new).await }
        };
        let (ended, started) = if round % 2 == 0 {
            let (ending, starting) = (tokio::spawn(ending), tokio::spawn(starting));
            (ending.await.unwrap(), starting.await.unwrap())
        } else {
            let (starting, ending) = (tokio::spawn(starting), tokio::spawn(ending));
            (ending.await.unwrap(), starting.await.unwrap())
        };
        ended.unwrap();
        let standing = started.unwrap();
        assert_eq!(standing.target, new);
        assert_eq!(list_all(&*ingress, 1_000).await, [standing], "round {round}");
    }
}

pub(crate) async fn of_two_incarnations_registering_at_once_one_stands_whole(fixture: &dyn Fixture) {
    let ingress = fixture.ingress();
    for round in 0..10 {
        let rivals = [1, 2].map(|number| {
            let ingress = Arc::clone(&ingress);
            let target = incarnation(&*ingress, 2 * round + number);
            let hosts = [format!("i{number}.example"), "both.example".to_owned()];
            tokio::spawn(async move {
                ingress.register(route("vm_1", 80, &hosts.each_ref().map(String::as_str)), target).await
            })
        });
        let mut answers = Vec::new();
        for answer in futures::future::join_all(rivals).await {
            answers.push(answer.unwrap().unwrap());
        }
        let listed = list_all(&*ingress, 1_000).await;
        assert_eq!(listed.len(), 1, "round {round}");
        assert!(answers.contains(&listed[0]), "round {round}: {listed:?} is neither's");
        // The names of the one that lost are free again.
        let lost = answers.iter().find(|answer| **answer != listed[0]).unwrap();
        let freed = lost.route.hosts[0].clone();
        ingress.register(route("vm_2", 80, &[&freed]), address(9009)).await.unwrap();
        for port in [80, 81] {
            ingress.unregister_port(&key("vm_2", port)).await.unwrap();
        }
    }
}
