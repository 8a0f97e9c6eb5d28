//! A broken network: cut, stalled, half-open.

use std::time::Duration;

use bytes::Bytes;
use flames_clock::{RandomExt, SeededRandom};
use flames_conformance_runner::seeds;
use flames_error::{ErrorKind, Result};
use flames_state::{
    Check, Commit, Entry, Hint, KeyRange, LogEntry, PageRequest, Position, StateStore, StateStoreExt,
};
use futures::StreamExt;
use futures::future::join_all;

use crate::Fixture;
use crate::support::{Store, key, put};
use crate::truth::{
    Attempt, Ledger, attempt, attempts_log, commit_of, in_time, is_out_of_reach, limit, once_reachable,
    operation_key, some_bytes,
};

/// Brings a connection up again, so that the next fault hits one that is in use.
async fn warm(fixture: &dyn Fixture) {
    once_reachable(fixture, "a read", async |store| store.get(&key("warm")).await).await;
}

pub(crate) async fn a_commit_cut_at_any_byte_is_told_truthfully(fixture: &dyn Fixture) {
    let faults = fixture.faults();
    let started = std::time::Instant::now();
    let mut ledger = Ledger::default();
    // Closely where a commit's own words are, then further apart for back-ends that use more of them.
    for bytes in (0..480).step_by(12).chain((480..2_600).step_by(53)) {
        if started.elapsed() > Duration::from_secs(25) {
            break;
        }
        warm(fixture).await;
        faults.cut_after(bytes).await;
        let name = format!("{bytes}");
        let tried = attempt(fixture, name.clone(), commit_of(&name, 0, 40)).await;
        faults.heal().await;
        ledger.settle(fixture, &tried, &format!("cut after {bytes} bytes")).await;
    }
    ledger.close(fixture, "at the end").await;
    assert!(
        ledger.unknown + ledger.refused > 0,
        "no commit was hit: is the fixture's proxy in between? {ledger:?}"
    );
}

pub(crate) async fn an_answer_that_never_comes_is_an_unknown_outcome(fixture: &dyn Fixture) {
    let faults = fixture.faults();
    let mut ledger = Ledger::default();
    for round in 0..3 {
        warm(fixture).await;
        faults.stall_answers().await;
        let name = format!("{round}");
        let tried = attempt(fixture, name.clone(), commit_of(&name, 0, 0)).await;
        assert!(tried.outcome.is_err(), "no answer came, and yet it is known: {:?}", tried.outcome);
        faults.heal().await;
        ledger.settle(fixture, &tried, &format!("round {round}")).await;
    }
    ledger.close(fixture, "at the end").await;
}

pub(crate) async fn the_same_commit_again_tells_what_became_of_it(fixture: &dyn Fixture) {
    for seed in seeds("the_same_commit_again_tells_what_became_of_it", [41]) {
        let random = SeededRandom::new(seed);
        let mut ledger = Ledger::default();
        for round in 0..30 {
            let when = format!("seed {seed}, round {round}");
            warm(fixture).await;
            let name = format!("{seed}.{round}");
            let (own, commit) = (operation_key(&name), commit_of(&name, round % 3, 0));
            fixture.faults().cut_after(some_bytes(&random)).await;
            let healing = async {
                tokio::time::sleep(Duration::from_millis(random.below(40))).await;
                fixture.faults().heal().await;
            };
            let store = fixture.store();
            let (outcome, ()) = futures::join!(store.commit_knowing(&commit, &own, 5), healing);
            let outcome = match outcome {
                Ok(Some(committed)) => Ok(committed),
                // Applied, and its answer lost: the version is the one that its key has.
                Ok(None) => {
                    let read = async |store: Store| store.get(&own).await;
                    let found = once_reachable(fixture, "a read", read).await;
                    let version = found.map(|entry| entry.version);
                    let version = version.unwrap_or_else(|| panic!("{when}: it is not there: {name}"));
                    Ok(flames_state::Committed { version })
                }
                Err(error) => {
                    assert_ne!(error.kind(), ErrorKind::Conflict, "{when}: nothing conflicts: {error:?}");
                    Err(error)
                }
            };
            ledger.settle(fixture, &Attempt { name, commit, outcome }, &when).await;
        }
        ledger.close(fixture, &format!("seed {seed}")).await;
    }
}

/// Breaks the network in one of several ways at a random byte, for so long as the `work` takes.
async fn through_a_fault<T>(
    fixture: &dyn Fixture,
    random: &SeededRandom,
    work: impl Future<Output = T>,
) -> T {
    let faults = fixture.faults();
    let sort = random.below(20);
    if sort >= 6 {
        faults.cut_after(some_bytes(random)).await;
    }
    let breaking = async {
        match sort {
            0..5 => {
                for _ in 0..random.below(16) {
                    tokio::task::yield_now().await;
                }
                if random.below(2) == 0 {
                    tokio::time::sleep(Duration::from_micros(random.below(6_000))).await;
                }
                faults.cut_connections().await;
            }
            5 => {
                tokio::time::sleep(Duration::from_micros(random.below(3_000))).await;
                faults.stall_answers().await;
            }
            _ => {}
        }
    };
    let (done, ()) = futures::join!(work, breaking);
    faults.heal().await;
    done
}

pub(crate) async fn no_commit_reports_success_for_what_is_not_there(fixture: &dyn Fixture) {
    for seed in seeds("no_commit_reports_success_for_what_is_not_there", [51]) {
        let random = SeededRandom::new(seed);
        let mut ledger = Ledger::default();
        let started = std::time::Instant::now();
        for round in 0..40 {
            if started.elapsed() > Duration::from_secs(25) {
                break;
            }
            warm(fixture).await;
            let commits = (0..4).map(|number| {
                let name = format!("{seed}.{round}.{number}");
                let padding = usize::try_from(random.below(2_000)).unwrap();
                let commit = commit_of(&name, random.below(3), padding);
                attempt(fixture, name, commit)
            });
            let tried = through_a_fault(fixture, &random, join_all(commits)).await;
            for tried in &tried {
                let when = format!("seed {seed}, round {round}");
                if let Err(error) = &tried.outcome {
                    assert_ne!(
                        error.kind(),
                        ErrorKind::Conflict,
                        "{when}: nothing conflicts with it: {error:?}"
                    );
                }
                ledger.settle(fixture, tried, &when).await;
            }
        }
        ledger.close(fixture, &format!("seed {seed}")).await;
        let hit = ledger.unknown + ledger.refused;
        assert!(hit > 0 && ledger.succeeded > 0, "seed {seed}: the faults hit none, or all: {ledger:?}");
    }
}

/// Adds one to a counter that all write, with a key of its own beside it.
async fn count(fixture: &dyn Fixture, name: String) -> Option<Attempt> {
    let counter = key("counter");
    let read = in_time(fixture, "a read", fixture.store().get(&counter)).await.ok()?;
    let (check, next) = match read {
        Some(entry) => {
            let count: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
            (Check::At(counter.clone(), entry.version), count + 1)
        }
        None => (Check::Absent(counter.clone()), 1),
    };
    let mut commit = Commit::new();
    commit.check(check).put(counter, next.to_string()).put(operation_key(&name), name.clone());
    commit.append(attempts_log(), name.clone());
    Some(attempt(fixture, name, commit).await)
}

pub(crate) async fn an_error_that_is_definite_changed_nothing(fixture: &dyn Fixture) {
    for seed in seeds("an_error_that_is_definite_changed_nothing", [61]) {
        let random = SeededRandom::new(seed);
        let (mut there, mut definite, mut refused) = (Vec::new(), 0, Vec::new());
        let started = std::time::Instant::now();
        for round in 0..40 {
            if started.elapsed() > Duration::from_secs(25) {
                break;
            }
            warm(fixture).await;
            let counting = (0..4).map(|number| count(fixture, format!("{seed}.{round}.{number}")));
            let tried = through_a_fault(fixture, &random, join_all(counting)).await;
            for Attempt { name, outcome, .. } in tried.into_iter().flatten() {
                let own = operation_key(&name);
                let found = once_reachable(fixture, "a read", async |store| store.get(&own).await).await;
                let when = format!("seed {seed}, round {round}, {name}");
                match outcome {
                    Ok(committed) => {
                        assert_eq!(
                            found.map(|entry| entry.version),
                            Some(committed.version),
                            "{when}: {committed:?}"
                        );
                        there.push(name);
                    }
                    // Not submitted again: its check is on a counter that others move. It may also be under way still, so it is
                    // known only at the end.
                    Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {}
                    Err(error) => {
                        let kind = error.kind();
                        assert!(is_out_of_reach(kind) || kind == ErrorKind::Conflict, "{when}: {error:?}");
                        assert_eq!(found, None, "{when}: the error says that nothing was changed: {error:?}");
                        definite += 1;
                        refused.push(name);
                    }
                }
            }
        }
        // What is still under way on the server ends before the count.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let log = once_reachable(fixture, "the log", async |store| {
            store.read_log(&attempts_log(), Position::START, 1_000).await
        })
        .await;
        let logged: Vec<String> =
            log.iter().map(|entry| String::from_utf8(entry.payload.to_vec()).unwrap()).collect();
        for name in &refused {
            assert!(!logged.contains(name), "seed {seed}: {name} was refused, and is in the log");
        }
        for name in &there {
            assert_eq!(logged.iter().filter(|logged| *logged == name).count(), 1, "seed {seed}: {name}");
        }
        let counter = once_reachable(fixture, "a read", async |store| store.get(&key("counter")).await).await;
        assert_eq!(
            counter.map(|entry| entry.value),
            Some(Bytes::from(logged.len().to_string())),
            "seed {seed}: the counter counts the commits that are in the log"
        );
        assert!(definite > 0, "seed {seed}: no commit was refused");
    }
}

/// The entries and the log that the reads of a case are to find.
async fn fill(store: &Store) -> (Vec<Entry>, Vec<LogEntry>) {
    for group in 0..10 {
        let mut commit = Commit::new();
        for number in 0..6 {
            commit.put(key(format!("k/{group}{number}")), format!("{group}{number}").repeat(40));
            commit.append(key("log"), format!("{group}{number}").repeat(30));
        }
        store.commit(&commit).await.unwrap();
    }
    let page = store.scan(&KeyRange::prefix(&key("k/")), PageRequest::first(100)).await.unwrap();
    let log = store.read_log(&key("log"), Position::START, 100).await.unwrap();
    assert_eq!((page.entries.len(), page.next, log.len()), (60, None, 60));
    (page.entries, log)
}

pub(crate) async fn a_read_through_faults_is_whole_or_refused(fixture: &dyn Fixture) {
    let (entries, log) = fill(&fixture.store()).await;
    for seed in seeds("a_read_through_faults_is_whole_or_refused", [71]) {
        let random = SeededRandom::new(seed);
        let (mut whole, mut refused) = (0, 0);
        for round in 0..40 {
            let when = format!("seed {seed}, round {round}");
            let mut judge = |what: &str, outcome: Result<bool>| match outcome {
                Ok(right) => {
                    assert!(right, "{when}: {what} was answered, and not with what is there");
                    whole += 1;
                }
                Err(error) => {
                    assert!(is_out_of_reach(error.kind()), "{when}: {what}: {error:?}");
                    refused += 1;
                }
            };
            warm(fixture).await;
            fixture.faults().cut_after(random.below(20_000)).await;
            let store = fixture.store();
            let one = &entries[usize::try_from(random.below(60)).unwrap()];
            let (range, name) = (KeyRange::prefix(&key("k/")), log_name());
            let (got, page, read) = futures::join!(
                in_time(fixture, "a get", store.get(&one.key)),
                in_time(fixture, "a scan", store.scan(&range, PageRequest::first(100))),
                in_time(fixture, "a log", store.read_log(&name, Position::START, 100)),
            );
            fixture.faults().heal().await;
            judge("a get", got.map(|found| found.as_ref() == Some(one)));
            judge("a scan", page.map(|page| page.entries == entries && page.next.is_none()));
            judge("a log", read.map(|read| read == log));
        }
        assert!(whole > 0 && refused > 0, "seed {seed}: {whole} reads were answered and {refused} refused");
    }
}

fn log_name() -> flames_state::Key {
    key("log")
}

pub(crate) async fn a_server_that_does_not_answer_is_told_within_the_deadline(fixture: &dyn Fixture) {
    let (_, log) = fill(&fixture.store()).await;
    fixture.faults().stall().await;
    let store = fixture.store();
    let (range, name) = (KeyRange::all(), log_name());
    let commit = attempt(fixture, "stalled".to_owned(), commit_of("stalled", 0, 0));
    let (got, page, read, tried, trimmed) = futures::join!(
        in_time(fixture, "a get", store.get(&name)),
        in_time(fixture, "a scan", store.scan(&range, PageRequest::first(10))),
        in_time(fixture, "a log", store.read_log(&name, Position::START, 10)),
        commit,
        in_time(fixture, "a trim", store.trim_log(&name, log[0].position)),
    );
    for (what, kind) in [("a get", got.map(drop)), ("a scan", page.map(drop)), ("a log", read.map(drop))] {
        let error = kind.expect_err("nothing passes");
        assert!(is_out_of_reach(error.kind()), "{what}: {error:?}");
    }
    for (what, outcome) in
        [("a commit", tried.outcome.as_ref().map(drop)), ("a trim", trimmed.as_ref().copied())]
    {
        let error = outcome.expect_err("nothing passes");
        let kind = error.kind();
        assert!(is_out_of_reach(kind) || kind == ErrorKind::OutcomeUnknown, "{what}: {error:?}");
    }
    fixture.faults().heal().await;
    let mut ledger = Ledger::default();
    ledger.settle(fixture, &tried, "stalled").await;
    ledger.close(fixture, "stalled").await;
}

pub(crate) async fn a_store_works_again_once_its_network_does(fixture: &dyn Fixture) {
    let a = key("a");
    put(&fixture.store(), &a, "before").await;
    for round in 0..4 {
        let faults = fixture.faults();
        match round {
            // While nothing is under way.
            0 => faults.cut_connections().await,
            // Not even a new connection comes up.
            1 => {
                faults.cut_after(0).await;
                let _ = in_time(fixture, "a read", fixture.store().get(&a)).await;
            }
            2 => {
                faults.stall().await;
                let _ = in_time(fixture, "a read", fixture.store().get(&a)).await;
            }
            _ => {
                faults.stall_answers().await;
                let _ = in_time(fixture, "a read", fixture.store().get(&a)).await;
            }
        }
        faults.heal().await;
        let value = Bytes::from(format!("round {round}"));
        let write = async |store: Store| store.commit(Commit::new().put(a.clone(), value.clone())).await;
        once_reachable(fixture, "a commit", write).await;
        let read = once_reachable(fixture, "a read", async |store| store.get(&a).await).await;
        assert_eq!(read.map(|entry| entry.value), Some(value));
        once_reachable(fixture, "a scan", async |store| {
            store.scan(&KeyRange::all(), PageRequest::first(10)).await
        })
        .await;
        once_reachable(fixture, "a log", async |store| store.read_log(&a, Position::START, 10).await).await;
    }
}

pub(crate) async fn hints_that_were_cut_off_are_made_up_for(fixture: &dyn Fixture) {
    let a = key("p/a");
    for round in 0..3 {
        let store = fixture.store();
        let mut hints =
            once_reachable(fixture, "a subscription", async |store| store.changes(&key("p/")).await).await;
        put(&store, &a, "a hint that may come").await;
        // Whatever hints there are have come when none came for a while.
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(300), hints.next()).await {}
        fixture.faults().cut_connections().await;
        // What is told of this one, or of one of those that follow: itself, that hints were lost, or that the subscription is over.
        let mut told = false;
        for _ in 0..10 {
            once_reachable(fixture, "a commit", async |store: Store| {
                store.commit(Commit::new().put(a.clone(), "behind the cut")).await
            })
            .await;
            told = match tokio::time::timeout(Duration::from_secs(1), hints.next()).await {
                Ok(Some(Hint::Changed(name))) => name == a,
                Ok(Some(Hint::Lost) | None) => true,
                Err(_) => false,
            };
            if told {
                break;
            }
        }
        assert!(
            told,
            "round {round}: hints were lost with their connection, and the subscriber is never told"
        );
    }
    // Nothing depends on a hint: who waits finds what changed.
    let store = fixture.store();
    let clock = flames_clock::SystemClock::new();
    let deadline = flames_clock::Clock::monotonic(&clock).saturating_add(2 * limit(fixture));
    let (prefix, poll) = (key("p/"), Duration::from_millis(200));
    let waiting = store.wait_until(&clock, &prefix, poll, deadline, || async {
        match store.read_log(&key("p/log"), Position::START, 1).await {
            Ok(entries) => Ok(entries.into_iter().next()),
            Err(error) if is_out_of_reach(error.kind()) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let changing = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fixture.faults().cut_connections().await;
        once_reachable(fixture, "an append", async |store: Store| {
            store.commit(Commit::new().append(key("p/log"), "found")).await
        })
        .await;
        fixture.faults().cut_connections().await;
    };
    let (waited, ()) = futures::join!(waiting, changing);
    assert!(matches!(waited, Ok(flames_state::Waited::Ready(_))), "{waited:?}");
}
