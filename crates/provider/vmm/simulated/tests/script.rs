//! Misbehaviour on demand.

mod support;

use std::collections::BTreeMap;

use flames_error::ErrorKind;
use flames_vmm::{ExitCause, Phase, StopHow, VmDriver};
use flames_vmm_simulated::{Applied, Death, Lie, Misbehaviour, Operation, Rule, SimulatedConfig};
use futures::{FutureExt, StreamExt};
use support::{SECOND, given_up, host, name, observe, pass, refused, running, spec, start};

fn fail(applied: Applied) -> Misbehaviour {
    Misbehaviour::Fail { kind: ErrorKind::OutcomeUnknown, applied }
}

#[tokio::test(start_paused = true)]
async fn a_call_fails_before_or_after_it_was_applied() {
    let (host, driver) = host(SimulatedConfig::default());
    let vm = name("vm");
    host.script().add(Rule::once(Operation::Prepare, fail(Applied::No)));
    host.script().add(Rule::once(Operation::Start, fail(Applied::Yes)));
    refused(driver.prepare(&vm, &spec()).await, ErrorKind::OutcomeUnknown);
    refused(driver.observe(&vm).await, ErrorKind::NotFound);
    driver.prepare(&vm, &spec()).await.unwrap();
    refused(start(&driver, &vm).await, ErrorKind::OutcomeUnknown);
    assert_eq!(observe(&driver, &vm).await.phase, Phase::Running);
    start(&driver, &vm).await.unwrap();
    assert_eq!(host.life(&vm).starts, 1);
    assert_eq!(host.script().pending(), 0);
    let fired =
        BTreeMap::from([((Operation::Prepare, "fail before"), 1), ((Operation::Start, "fail after"), 1)]);
    assert_eq!(host.script().fired(), fired);
}

#[tokio::test(start_paused = true)]
async fn a_call_hangs_before_or_after_it_was_applied() {
    let (host, driver) = host(SimulatedConfig::default());
    let vm = running(&driver, "vm").await;
    for applied in [Applied::No, Applied::Yes] {
        host.script().add(Rule::once(Operation::Stop, Misbehaviour::Hang { applied }));
        given_up(1_000 * SECOND, driver.stop(&vm, StopHow::Kill)).await;
        assert_eq!(host.running().is_empty(), applied == Applied::Yes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_takes_longer_and_fails_too() {
    let (host, driver) = host(SimulatedConfig::default());
    host.script().add(Rule::once(Operation::Adopt, Misbehaviour::Delay(3 * SECOND)));
    host.script().add(Rule::once(Operation::Adopt, fail(Applied::No)));
    let begun = tokio::time::Instant::now();
    refused(driver.adopt().await, ErrorKind::OutcomeUnknown);
    assert_eq!(begun.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn rules_are_for_one_incarnation_and_for_so_many_times() {
    let (host, driver) = host(SimulatedConfig::default());
    let (one, other) = (running(&driver, "one").await, running(&driver, "other").await);
    host.script().add(Rule::always(Operation::Observe, fail(Applied::No)).of(&one).times(2));
    observe(&driver, &other).await;
    for _ in 0..2 {
        refused(driver.observe(&one).await, ErrorKind::OutcomeUnknown);
    }
    observe(&driver, &one).await;
    host.script().add(Rule::always(Operation::Observe, fail(Applied::No)));
    refused(driver.observe(&other).await, ErrorKind::OutcomeUnknown);
    host.script().clear();
    observe(&driver, &other).await;
}

#[tokio::test(start_paused = true)]
async fn a_rule_fires_as_often_as_its_chance_says() {
    let (host, driver) = host(SimulatedConfig::default());
    host.script().add(Rule::always(Operation::Adopt, fail(Applied::No)).with_chance(250_000));
    let mut failed = 0;
    for _ in 0..1_000 {
        failed += u64::from(driver.adopt().await.is_err());
    }
    assert!((150..350).contains(&failed), "{failed}");
    assert_eq!(host.script().fired(), BTreeMap::from([((Operation::Adopt, "fail before"), failed)]));
}

#[tokio::test(start_paused = true)]
async fn a_driver_lies_once() {
    let (host, driver) = host(SimulatedConfig::default());
    let vm = running(&driver, "vm").await;
    driver.stop(&vm, StopHow::Kill).await.unwrap();
    for (lie, phase) in [(Lie::Unknown, Phase::Unknown), (Lie::EarlierPhase, Phase::Running)] {
        host.script().add(Rule::once(Operation::Observe, Misbehaviour::Lie(lie)));
        host.script().add(Rule::once(Operation::Adopt, Misbehaviour::Lie(lie)).of(&vm));
        let observed = observe(&driver, &vm).await;
        assert_eq!((observed.phase, observed.exit), (phase, None));
        assert_eq!(driver.adopt().await.unwrap()[0].observation.phase, phase);
        assert_eq!(observe(&driver, &vm).await.phase, Phase::Exited);
        assert_eq!(driver.adopt().await.unwrap()[0].observation.phase, Phase::Exited);
    }
    assert_eq!(host.script().fired().values().sum::<u64>(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_monitor_dies_while_starting() {
    let (host, driver) = host(SimulatedConfig::default());
    let vm = name("vm");
    driver.prepare(&vm, &spec()).await.unwrap();
    let message = "cannot set up guest memory".to_owned();
    host.script().add(Rule::once(Operation::Start, Misbehaviour::DieStarting { message: message.clone() }));
    let error = start(&driver, &vm).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Internal, message.as_str()));
    let exit = observe(&driver, &vm).await.exit.unwrap();
    assert_eq!((exit.cause, exit.message), (ExitCause::Crashed, Some(message)));
    refused(start(&driver, &vm).await, ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn a_guest_dies_at_a_chosen_time() {
    let (host, driver) = host(SimulatedConfig::default());
    for (text, how, cause) in
        [("crash", Death::Crash, ExitCause::Crashed), ("off", Death::PowerOff, ExitCause::Guest)]
    {
        let die = Misbehaviour::Die { after: 5 * SECOND, how };
        host.script().add(Rule::once(Operation::Start, die));
        let vm = running(&driver, text).await;
        pass(4 * SECOND).await;
        assert_eq!(observe(&driver, &vm).await.phase, Phase::Running);
        pass(2 * SECOND).await;
        assert_eq!(observe(&driver, &vm).await.exit.unwrap().cause, cause);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_lost() {
    let (host, driver) = host(SimulatedConfig::default());
    let mut hints = driver.exits().await.unwrap();
    let (one, other) = (running(&driver, "one").await, running(&driver, "other").await);
    host.script().add(Rule::once(Operation::Exits, Misbehaviour::LoseHint).of(&one));
    assert!(host.crash_vm(&one) && host.crash_vm(&other));
    assert_eq!(hints.next().await, Some(other));
    assert_eq!(hints.next().now_or_never(), None);
}
