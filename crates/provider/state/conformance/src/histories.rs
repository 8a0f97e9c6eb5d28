//! Random clients at the same time, and whether what they saw could have come from one after another.

use std::time::Duration;

use flames_clock::{RandomExt, SeededRandom};
use flames_conformance_runner::seeds;

use crate::Fixture;
use crate::linearizability::{Plan, check_store_history, record};
use crate::truth::some_bytes;

/// Steps of the search, per part of a history; one of the sizes here takes some thousand.
const MAX_STEPS: u64 = 2_000_000;

pub(crate) async fn concurrent_histories_are_linearizable(fixture: &dyn Fixture) {
    let store = fixture.store();
    for seed in seeds("concurrent_histories_are_linearizable", [21, 22, 23, 24]) {
        // Few keys and many clients, and the other way round.
        let plan = match seed % 2 {
            0 => Plan { clients: 10, operations: 20, sets: 1, keys: 2, ..Plan::default() },
            _ => Plan { clients: 6, operations: 30, sets: 2, keys: 4, ..Plan::default() },
        };
        let history = record(&store, &format!("history/{seed}"), seed, plan).await;
        assert_eq!(
            history.len(),
            plan.clients * plan.operations,
            "seed {seed}: an operation failed though nothing was broken"
        );
        assert!(
            history.iter().all(|operation| operation.output.is_some()),
            "seed {seed}: an answer was lost"
        );
        check_store_history(&history, MAX_STEPS).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

pub(crate) async fn histories_under_faults_are_linearizable(fixture: &dyn Fixture) {
    let store = fixture.store();
    let faults = fixture.faults();
    let mut hit = 0;
    for seed in seeds("histories_under_faults_are_linearizable", [31, 32, 33]) {
        let plan = Plan { clients: 6, operations: 16, sets: 2, keys: 3, pause: Duration::from_millis(12) };
        let prefix = format!("history/{seed}");
        let run = record(&store, &prefix, seed, plan);
        let random = SeededRandom::new(seed);
        let breaking = async {
            loop {
                tokio::time::sleep(Duration::from_millis(5 + random.below(30))).await;
                match random.below(3) {
                    0 => faults.cut_connections().await,
                    _ => faults.cut_after(some_bytes(&random)).await,
                }
                tokio::time::sleep(Duration::from_millis(5 + random.below(20))).await;
                faults.heal().await;
            }
        };
        let history = tokio::select! {
            history = run => history,
            () = breaking => unreachable!("it does not end"),
        };
        faults.heal().await;
        let lost = history.iter().filter(|operation| operation.output.is_none()).count();
        hit += plan.clients * plan.operations - history.len() + lost;
        check_store_history(&history, MAX_STEPS).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(hit > 0, "no fault hit an operation: is the fixture's proxy in between?");
}
