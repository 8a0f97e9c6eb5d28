//! Kills an operation at a chosen step, as `kill -9` would: nothing behind the step is done.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    static STEPS_LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Killed;

pub(crate) fn here(_place: &str) {
    let Some(left) = STEPS_LEFT.get() else { return };
    if left == 0 {
        STEPS_LEFT.set(None);
        resume_unwind(Box::new(Killed));
    }
    STEPS_LEFT.set(Some(left - 1));
}

/// Runs the work, and kills it at its step with this number (from zero). None when it was killed.
pub(crate) fn killed_at<T>(step: usize, work: impl FnOnce() -> T) -> Option<T> {
    STEPS_LEFT.set(Some(step));
    let done = catch_unwind(AssertUnwindSafe(work));
    STEPS_LEFT.set(None);
    match done {
        Ok(done) => Some(done),
        Err(cause) if cause.is::<Killed>() => None,
        Err(cause) => resume_unwind(cause),
    }
}

mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use flames_clock::SystemClock;

    use super::killed_at;
    use crate::*;

    struct Host {
        folder: tempfile::TempDir,
        is_root: bool,
    }

    impl Host {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["image", "disk"] {
                std::fs::write(folder.path().join(name), name).unwrap();
            }
            Self { folder, is_root: rustix::process::geteuid().is_root() }
        }

        /// Without root, everything is our own user's; what needs another one is left out.
        fn open(&self) -> Jails {
            // It ends at once, whatever it is told.
            self.open_with(Path::new("/bin/false"))
        }

        fn open_with(&self, jailer: &Path) -> Jails {
            let first_user = if self.is_root { 2_100_000 } else { rustix::process::geteuid().as_raw() };
            let config = JailConfig {
                jailer: jailer.to_owned(),
                firecracker: "/bin/true".into(),
                users: SlotRange { first_user, count: if self.is_root { 4 } else { 1 } },
                ..JailConfig::new(self.folder.path().join("jails"), "clu")
            };
            Jails::open_now(config, Arc::new(SystemClock::new())).unwrap()
        }

        fn spec(&self) -> JailSpec {
            let inside = |path| Inside::new(path).unwrap();
            let source = |name| self.folder.path().join(name);
            let mut artefacts = vec![Artefact::Empty { inside: inside("scratch/disk"), bytes: 1 << 20 }];
            if self.is_root {
                artefacts.push(Artefact::Shared { source: source("image"), inside: inside("image") });
                artefacts.push(Artefact::Owned { source: source("disk"), inside: inside("disk") });
            }
            JailSpec { artefacts, ..JailSpec::default() }
        }

        fn assert_clean(&self, step: usize) {
            let names = |folder: &Path| {
                let mut names: Vec<_> =
                    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                names
            };
            let base = self.folder.path().join("jails");
            assert_eq!(names(&base.join("clu")), [".lock"], "step {step}");
            assert_eq!(names(&base.join(".slots")), [".lock"], "step {step}");
            for name in ["image", "disk"] {
                let path = self.folder.path().join(name);
                let found = std::fs::metadata(&path).unwrap();
                assert_eq!((found.nlink(), found.uid()), (1, rustix::process::geteuid().as_raw()));
                assert_eq!(std::fs::read_to_string(path).unwrap(), name);
            }
        }
    }

    /// A whole life: made, started, ended, removed.
    fn live(host: &Host, name: &JailName) {
        let jails = host.open();
        let jail = jails.create_now(name, host.spec()).unwrap();
        let vmm = jail.start_now(&Launch::default(), false).unwrap();
        while vmm.process.is_alive() {
            std::thread::sleep(Duration::from_millis(1));
        }
        vmm.process.reap();
        jails.shared.remove_files(name, &jails.shared.folder(name), Some(&jail.record)).unwrap();
    }

    #[test]
    fn a_controller_killed_between_any_two_steps_leaves_what_the_next_adopts_or_removes() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let _within = runtime.enter();
        let name = JailName::new("inc_1").unwrap();
        let mut states = std::collections::BTreeSet::new();
        for step in 0.. {
            let host = Host::new();
            let done = killed_at(step, || live(&host, &name));
            let jails = host.open();
            let found = jails.find_now(&name).unwrap();
            let slots = jails.shared.slots.all().unwrap();
            states.insert(match &found {
                None => {
                    assert!(slots.is_empty(), "step {step}: a slot of nothing is free again");
                    "nothing"
                }
                Some(Found { jail: Some(jail), state, .. }) => {
                    assert_eq!(slots.get(&name), Some(&jail.slot()), "step {step}: its slot is its own");
                    match state {
                        State::Prepared => "prepared",
                        State::Waiting(_) => panic!("step {step}: nobody asked for a process that waits"),
                        State::Unfinished(_) => "unfinished",
                        State::Started(_) | State::Gone => "started",
                        State::Damaged(error) => panic!("step {step}: {error:?}"),
                    }
                }
                Some(damaged) => panic!("step {step}: {damaged:?}"),
            });
            // What is prepared can be started, and what is not there can be made.
            if found.as_ref().is_none_or(|found| matches!(found.state, State::Prepared)) {
                let jail = jails.create_now(&name, host.spec()).unwrap();
                let vmm = runtime.block_on(jail.start(Launch::default())).unwrap();
                runtime.block_on(vmm.process.ended()).unwrap();
                vmm.process.reap();
            }
            runtime.block_on(jails.remove(&name)).unwrap();
            host.assert_clean(step);
            if done.is_some() {
                assert!(step >= 20, "{step} places to be killed at");
                break;
            }
        }
        assert!(["nothing", "prepared", "started"].iter().all(|state| states.contains(state)), "{states:?}");
    }

    /// A jailer that stands there, with what it was told on its command line.
    fn waits(host: &Host) -> std::path::PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = host.folder.path().join("jailer");
        // A pipe that nobody writes to.
        drop(flames_host::process::open_bounded_pipe(&host.folder.path().join("jailer.pipe")).unwrap());
        std::fs::write(&path, "#!/bin/sh\nread nothing <\"$0.pipe\"\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_controller_killed_while_it_gives_a_spare_away_leaves_one_jail_or_the_other() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let _within = runtime.enter();
        let (spare, name) = (JailName::of_spare(7), JailName::new("inc_1").unwrap());
        assert!(spare.is_spare() && !name.is_spare());
        let mut states = std::collections::BTreeSet::new();
        for step in 0.. {
            let host = Host::new();
            let jailer = waits(&host);
            let done = killed_at(step, || {
                let jails = host.open_with(&jailer);
                let jail = jails.create_now(&spare, JailSpec::default()).unwrap();
                jail.start_now(&Launch::default(), true).unwrap();
                // Nobody is given one that has not answered, and until it is its program it cannot be known by its words.
                while !matches!(jails.find_now(&spare).unwrap().unwrap().state, State::Waiting(_)) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let given = jail.give_now(&name, host.spec()).unwrap();
                let found = jails.find_now(&name).unwrap().unwrap();
                let State::Waiting(process) = found.state else { panic!("{found:?}") };
                let identity = process.identity();
                assert_eq!(given.take_waiting(process).unwrap().process.identity(), identity);
            });
            let jails = host.open_with(&jailer);
            let found = jails.scan_now().unwrap();
            assert!(found.len() <= 1, "step {step}: {found:?}");
            assert_eq!(jails.shared.slots.all().unwrap().len(), found.len(), "step {step}");
            for Found { name: whose, jail, state } in found {
                states.insert(format!(
                    "{} {}",
                    whose.is_spare(),
                    match (&jail, &state) {
                        (_, State::Damaged(_)) => "half given",
                        (_, State::Waiting(process)) => {
                            assert!(process.is_alive());
                            "waits"
                        }
                        (_, State::Started(_)) => "started",
                        _ => "none",
                    }
                ));
                if jail.is_some() {
                    assert!(jails.shared.slots.all().unwrap().contains_key(&whose), "step {step}");
                }
                runtime.block_on(jails.remove(&whose)).unwrap();
            }
            assert!(jails.scan_now().unwrap().is_empty());
            host.assert_clean(step);
            if done.is_some() {
                break;
            }
        }
        for expected in ["true waits", "true half given", "false waits", "false started"] {
            assert!(states.contains(expected), "{expected}: {states:?}");
        }
    }
}
