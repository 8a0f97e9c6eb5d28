//! What every driver over this crate has, with a monitor that only sleeps.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::Deref;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flames_clock::{Clock, SystemClock};
use flames_error::{Error, ErrorKind, Result};
use flames_host::process::Process;
use flames_vmm::{BootSource, Exit, ExitCause, IncarnationName, Phase, Prepared};
use flames_vmm_local::{Exits, Folder, Incarnation, Incarnations, Monitor, OnHost, Situation, Ties, seen};
use futures::StreamExt;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Sleeper {
    folder: Folder,
    process: Process,
    ties: Ties,
    has_run: AtomicBool,
}

impl Monitor for Sleeper {
    type Before = &'static str;

    fn process(&self) -> &Process {
        &self.process
    }

    fn ties(&self) -> &Ties {
        &self.ties
    }

    fn left_before(&self) -> Option<&'static str> {
        (!self.has_run.load(Ordering::Acquire)).then_some("left")
    }

    async fn look(&self) -> Option<Phase> {
        self.process.is_alive().then_some(Phase::Running)
    }

    async fn exit(&self) -> Result<Exit> {
        self.process.reap();
        let at = SystemClock::new().now();
        let exit = Exit { cause: ExitCause::Unknown, code: None, signal: None, at, message: None };
        self.folder.note_exit(exit).await
    }
}

#[derive(Debug)]
struct Vm(Incarnation<Sleeper>);

impl Deref for Vm {
    type Target = Incarnation<Sleeper>;

    fn deref(&self) -> &Incarnation<Sleeper> {
        &self.0
    }
}

impl OnHost for Vm {
    type Monitor = Sleeper;
    type Context = Exits;

    fn new(incarnation: Incarnation<Sleeper>) -> Result<Self> {
        match incarnation.name.as_str() {
            "inc_refused" => Err(Error::invalid("test", "incarnation", "Not this one.")),
            _ => Ok(Self(incarnation)),
        }
    }

    async fn situation(&self, exits: &Arc<Exits>) -> Result<Situation<Sleeper>> {
        self.known_or(exits, async { Ok(Situation::Before("found")) }).await
    }
}

fn name(text: &str) -> IncarnationName {
    IncarnationName::new(text).unwrap()
}

fn made(root: &Path, text: &str) -> IncarnationName {
    Folder::make(root, &name(text), |folder| folder.request_stop()).unwrap();
    name(text)
}

fn sleeper(root: &Path, incarnation: &IncarnationName, has_run: bool) -> (Arc<Sleeper>, Child) {
    let child = Command::new("sleep").arg("600").spawn().unwrap();
    let monitor = Sleeper {
        folder: Folder::of(root, incarnation),
        process: Process::of_child(child.id()).unwrap(),
        ties: Ties::default(),
        has_run: AtomicBool::new(has_run),
    };
    (Arc::new(monitor), child)
}

/// A folder of incarnations, and what is told of their ends.
fn host() -> (TempDir, Incarnations<Vm>, Arc<Exits>) {
    let root = tempfile::tempdir().unwrap();
    let incarnations = Incarnations::new(root.path().to_owned());
    (root, incarnations, Arc::default())
}

async fn attach(incarnations: &Incarnations<Vm>, of: &IncarnationName, to: &Arc<Sleeper>, exits: &Exits) {
    incarnations
        .on(of, |vm| async move {
            vm.attach(to, exits).await;
            Ok(())
        })
        .await
        .unwrap();
}

async fn situation(incarnations: &Incarnations<Vm>, of: &IncarnationName, exits: &Arc<Exits>) -> String {
    incarnations
        .on(of, |vm| async move {
            Ok(match vm.situation(exits).await? {
                Situation::Before(what) => what.to_owned(),
                Situation::Alive(_) => "alive".to_owned(),
                Situation::Exited(exit) => format!("exited: {:?}", exit.cause),
            })
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn a_monitor_is_followed_to_its_end_which_is_noted_and_told() {
    let (root, incarnations, exits) = host();
    let incarnation = made(root.path(), "inc_1");
    assert_eq!(situation(&incarnations, &incarnation, &exits).await, "found");
    let (monitor, _child) = sleeper(root.path(), &incarnation, true);
    let mut hints = exits.hints();
    attach(&incarnations, &incarnation, &monitor, &exits).await;
    assert_eq!(situation(&incarnations, &incarnation, &exits).await, "alive");
    let stats =
        incarnations.on(&incarnation, |vm| async move { vm.stats(&*vm.alive(&exits, "test").await?) });
    assert!(stats.await.unwrap().uptime < LIMIT);
    assert!(monitor.process().kill_within(&SystemClock::new(), LIMIT).await);
    let told = tokio::time::timeout(LIMIT, hints.next()).await.unwrap();
    assert_eq!(told.as_ref(), Some(&incarnation));
    assert!(Folder::of(root.path(), &incarnation).exit().unwrap().is_some());
    let later = Arc::default();
    assert_eq!(situation(&incarnations, &incarnation, &later).await, "exited: Unknown");
    let alive = incarnations.on(&incarnation, |vm| async move { vm.alive(&later, "test").await });
    assert_eq!(alive.await.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_monitor_whose_guest_ran_nothing_is_no_exit() {
    let (root, incarnations, exits) = host();
    let incarnation = made(root.path(), "inc_1");
    let (monitor, _child) = sleeper(root.path(), &incarnation, false);
    attach(&incarnations, &incarnation, &monitor, &exits).await;
    assert!(monitor.process().kill_within(&SystemClock::new(), LIMIT).await);
    monitor.process().reap();
    assert_eq!(situation(&incarnations, &incarnation, &exits).await, "left");
    assert!(Folder::of(root.path(), &incarnation).exit().unwrap().is_none());
    let release = incarnations.on(&incarnation, |vm| async move {
        vm.release().await;
        Ok(())
    });
    release.await.unwrap();
    assert_eq!(situation(&incarnations, &incarnation, &exits).await, "found");
}

#[tokio::test]
async fn a_monitor_runs_on_without_its_driver_and_nothing_follows_it() {
    let (root, incarnations, exits) = host();
    let incarnation = made(root.path(), "inc_1");
    let (monitor, _child) = sleeper(root.path(), &incarnation, true);
    let mut hints = exits.hints();
    attach(&incarnations, &incarnation, &monitor, &exits).await;
    drop((incarnations, exits));
    // The task that followed it held what tells of exits.
    assert_eq!(tokio::time::timeout(LIMIT, hints.next()).await.unwrap(), None);
    assert!(monitor.process().is_alive());
    assert!(monitor.process().kill_within(&SystemClock::new(), LIMIT).await);
    monitor.process().reap();
    assert!(Folder::of(root.path(), &incarnation).exit().unwrap().is_none());
}

#[tokio::test]
async fn what_is_found_is_told_in_order_and_what_cannot_be_seen_is_unknown() {
    let (root, incarnations, exits) = host();
    for text in ["inc_3", "inc_1", "inc_2"] {
        made(root.path(), text);
    }
    std::fs::create_dir(root.path().join(".new-inc_4-0")).unwrap();
    std::fs::create_dir(root.path().join("not a name")).unwrap();
    let names = incarnations.names().await.unwrap();
    assert_eq!(names.iter().map(IncarnationName::as_str).collect::<Vec<_>>(), ["inc_1", "inc_2", "inc_3"]);
    let observe = |incarnation: IncarnationName| async move {
        match incarnation.as_str() {
            "inc_1" => Err(Error::unavailable("test", "it does not say")),
            "inc_2" => Err(Error::not_found("test", "incarnation", "inc_2")),
            _ => Ok(seen(Phase::Prepared, Prepared::default())),
        }
    };
    let found = incarnations.found(names, observe).await;
    let found: Vec<_> =
        found.iter().map(|found| (found.incarnation.as_str(), found.observation.phase)).collect();
    assert_eq!(found, [("inc_1", Phase::Unknown), ("inc_3", Phase::Prepared)]);
    let left = Folder::left_over(root.path(), &[".new-", ".old-"]).unwrap();
    assert_eq!(left, [root.path().join(".new-inc_4-0")]);
    let boot = |folder: &Folder| {
        let kernel = folder.path().with_file_name("kernel");
        Ok(BootSource { kernel, initramfs: Some(folder.join("initramfs")), extra_arguments: Vec::new() })
    };
    assert_eq!(incarnations.boot_files(boot).await.unwrap().len(), 4, "one kernel for all three");
    let third = name("inc_3");
    let observed = incarnations.on(&third, |vm| async move {
        let situation = vm.situation(&exits).await?;
        vm.observed(situation, Prepared::default(), |before| match before {
            "found" => Phase::Prepared,
            _ => Phase::Unknown,
        })
        .await
    });
    assert_eq!(observed.await.unwrap(), seen(Phase::Prepared, Prepared::default()));
}

#[tokio::test]
async fn one_call_at_a_time_changes_an_incarnation() {
    let (root, incarnations, _) = host();
    let incarnation = made(root.path(), "inc_1");
    let clock = &SystemClock::new();
    let short = Duration::from_millis(50);
    let turns = incarnations.on(&incarnation, |vm| async move {
        let turn = vm.turn(clock, LIMIT, "test").await?;
        let late = vm.turn(clock, short, "test").await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Unavailable);
        drop(turn);
        let (turn, lock) = vm.turn_with_lock(clock, LIMIT, "test").await?;
        assert!(lock.is_some());
        drop(turn);
        // Work of a driver that was dropped holds the folder.
        assert!(vm.turn_with_lock(clock, short, "test").await.is_err());
        drop(lock);
        vm.turn_with_lock(clock, LIMIT, "test").await?;
        assert!(!vm.is_starting());
        let starting = vm.starting();
        assert!(vm.is_starting());
        drop(starting);
        assert!(!vm.is_starting());
        Ok(())
    });
    turns.await.unwrap();
    let absent = name("inc_absent");
    let absent = incarnations.on(&absent, |vm| async move { vm.turn_with_lock(clock, LIMIT, "test").await });
    assert!(absent.await.unwrap().1.is_none(), "there is no folder to lock");
}

#[tokio::test]
async fn nothing_is_made_while_what_is_half_made_is_cleared_away() {
    let (_root, incarnations, _) = host();
    let making = incarnations.making().await;
    let _making_too = incarnations.making().await;
    let clearing = tokio::time::timeout(Duration::from_millis(50), incarnations.clearing()).await;
    assert!(clearing.is_err());
    drop((making, _making_too));
    incarnations.clearing().await;
}

#[tokio::test]
async fn a_name_that_the_driver_refuses_is_refused_at_every_call() {
    let (_root, incarnations, _) = host();
    for _ in 0..2 {
        let refused = incarnations.on(&name("inc_refused"), |_| async { Ok(()) }).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[tokio::test]
async fn an_incarnation_is_forgotten_when_nothing_of_it_is_on_the_host() {
    let (root, incarnations, exits) = host();
    let incarnation = made(root.path(), "inc_1");
    let (monitor, _child) = sleeper(root.path(), &incarnation, true);
    let (incarnations, is_known) = (&incarnations, || format!("{incarnations:?}").contains("inc_1"));
    attach(incarnations, &incarnation, &monitor, &exits).await;
    std::fs::remove_dir_all(root.path().join("inc_1")).unwrap();
    incarnations.on(&incarnation, |_| async { Ok(()) }).await.unwrap();
    assert!(is_known(), "its monitor is followed");
    let (of, is_known_too) = (&incarnation, &is_known);
    let release = incarnations.on(of, |vm| async move {
        vm.release().await;
        incarnations.on(of, |_| async { Ok(()) }).await.unwrap();
        assert!(is_known_too(), "another call is at work on it");
        Ok(())
    });
    release.await.unwrap();
    assert!(!is_known());
    let incarnation = made(root.path(), "inc_1");
    incarnations.on(&incarnation, |_| async { Ok(()) }).await.unwrap();
    assert!(is_known(), "it has a folder");
    assert!(monitor.process().kill_within(&SystemClock::new(), LIMIT).await);
    monitor.process().reap();
}
