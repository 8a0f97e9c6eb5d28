//! What bad input gets: an error kind, a sentence that says what to do, and a host without residue.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use flames_error::{Error, ErrorKind};
use flames_vmm::{Drive, Phase, SnapshotArtefacts, SnapshotKind, StartFrom, Usability, VmDriver};
use flames_vmm_firecracker::FirecrackerConfig;

use crate::support::{Host, base, driver_of, from, name, phase, running, spec, talk};

fn base_artefacts() -> SnapshotArtefacts {
    let StartFrom::Snapshot(artefacts) = base::plain() else { panic!("the base is a snapshot") };
    artefacts
}

/// A copy of the base, with its record or without, to be damaged.
fn copied(to: &Path, with_record: bool) -> SnapshotArtefacts {
    let source = base_artefacts().state.parent().unwrap().to_owned();
    std::fs::create_dir_all(to).unwrap();
    let files = if with_record { &["state", "memory", "snapshot.json"][..] } else { &["state", "memory"] };
    for file in files {
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--no-preserve=mode"]).arg(source.join(file)).arg(to);
        assert!(copy.status().unwrap().success());
    }
    base::artefacts(to)
}

fn sentence(error: &Error) -> &str {
    error.user_message().unwrap_or_else(|| panic!("a sentence for users: {error:?}"))
}

pub(crate) async fn a_damaged_snapshot_is_corrupt_and_the_incarnation_still_prepared(host: &Host) {
    let driver = host.driver();
    let incarnation = name("inc_damaged");
    driver.prepare(&incarnation, &spec()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let damage = |kind: &str, at: &SnapshotArtefacts| {
        let open = |path: &Path| std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let (state, memory) = (open(&at.state), open(at.memory.as_ref().unwrap()));
        match kind {
            "short memory" => memory.set_len(1 << 20).unwrap(),
            "short state" => state.set_len(100).unwrap(),
            "no state" => state.set_len(0).unwrap(),
            "wrong state" => state.write_all_at(&[0xff; 64], 600).unwrap(),
            unknown => panic!("{unknown}"),
        }
    };
    for kind in ["short memory", "short state", "no state", "wrong state"] {
        for with_record in [false, true] {
            let at = copied(&folder.path().join(format!("{kind}-{with_record}")), with_record);
            damage(kind, &at);
            let error = driver.start(&incarnation, from(at), false).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{kind}: {error:?}");
            assert!(sentence(&error).contains("new one"), "{error:?}");
            assert_eq!(phase(&*driver, &incarnation).await, Phase::Prepared, "{kind}");
            assert_eq!(host.monitors(), 0, "{kind}");
        }
    }
    driver.start(&incarnation, base::plain(), false).await.unwrap();
    talk(&*driver, &incarnation).await;
    driver.destroy(&incarnation).await.unwrap();
    assert!(host.residue().is_empty(), "{:?}", host.residue());
}

pub(crate) async fn a_snapshot_of_another_machine_is_refused_with_the_reason(host: &Host) {
    let driver = host.driver();
    let disk = host.folder.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let mut larger = spec();
    larger.memory_mib *= 2;
    let mut with_disk = spec();
    with_disk.drives.push(Drive { name: "more".into(), path: disk, read_only: true });
    for (text, spec, words) in
        [("inc_larger", larger, "64 MiB"), ("inc_disk", with_disk, "of another machine")]
    {
        let incarnation = name(text);
        driver.prepare(&incarnation, &spec).await.unwrap();
        let error = driver.start(&incarnation, base::plain(), false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported, "{error:?}");
        assert!(sentence(&error).contains(words), "{error:?}");
        assert_eq!(phase(&*driver, &incarnation).await, Phase::Prepared);
        driver.destroy(&incarnation).await.unwrap();
    }
    assert!(host.residue().is_empty());
}

pub(crate) async fn a_kernel_that_only_looks_like_one_fails_the_start_and_not_the_host(host: &Host) {
    let driver = host.driver();
    let kernel = host.folder.path().join("kernel");
    let mut bytes = vec![0; 4096];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[18] = 62;
    std::fs::write(&kernel, bytes).unwrap();
    let mut spec = spec();
    spec.boot.kernel = kernel;
    let incarnation = name("inc_kernel");
    driver.prepare(&incarnation, &spec).await.unwrap();
    for _ in 0..2 {
        let error = driver.start(&incarnation, StartFrom::Boot, false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        assert!(sentence(&error).contains("kernel"), "{error:?}");
        assert_eq!(phase(&*driver, &incarnation).await, Phase::Prepared);
    }
    driver.destroy(&incarnation).await.unwrap();
    assert!(host.residue().is_empty());
}

/// A static program that says it is Firecracker, or its jailer, of the version, and otherwise does what it says.
fn fake(folder: &Path, program: &str, version: &str, does: &str) -> PathBuf {
    let (source, path) = (folder.join(format!("{program}.c")), folder.join(program));
    let text = format!(
        "#include <stdio.h>\n#include <string.h>\nint main(int count, char **words) {{\n\
         if (count > 1 && !strcmp(words[1], \"--version\")) {{ puts(\"{program} v{version}\"); return 0; }}\n{does}\n}}\n"
    );
    std::fs::write(&source, text).unwrap();
    let built = Command::new("cc").args(["-static", "-O1", "-w", "-o"]).args([&path, &source]).status();
    assert!(built.unwrap().success());
    path
}

pub(crate) async fn a_firecracker_that_dies_at_once_is_told_with_its_words(host: &Host) {
    let real = host.config().jail;
    let version = Command::new(&real.jailer).arg("--version").output().unwrap().stdout;
    let version = String::from_utf8(version).unwrap();
    let version = version.lines().next().unwrap().rsplit_once('v').unwrap().1.to_owned();
    let dies = "fputs(\"I was made to die\\n\", stderr); return 3;";
    let mut config = host.config();
    config.jail.firecracker = fake(host.folder.path(), "firecracker", &version, dies);
    let driver = driver_of(config);
    assert_eq!(driver.capabilities().await.unwrap().usability, Usability::Usable);
    let incarnation = name("inc_dies");
    driver.prepare(&incarnation, &spec()).await.unwrap();
    for from in [StartFrom::Boot, base::plain()] {
        let error = driver.start(&incarnation, from, false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{error:?}");
        assert!(error.message().contains("I was made to die"), "{error:?}");
        assert!(sentence(&error).contains("Firecracker"), "{error:?}");
        assert_eq!(phase(&driver, &incarnation).await, Phase::Prepared);
    }
    driver.destroy(&incarnation).await.unwrap();
    assert!(host.residue().is_empty());
}

pub(crate) async fn a_firecracker_that_is_too_old_is_told_with_what_to_install(host: &Host) {
    let mut config = host.config();
    config.jail.firecracker = fake(host.folder.path(), "firecracker", "1.13.0", "return 1;");
    config.jail.jailer = fake(host.folder.path(), "jailer", "1.13.0", "return 1;");
    let driver = driver_of(config);
    let told = driver.capabilities().await.unwrap();
    let Usability::Unusable(why) = &told.usability else { panic!("{told:?}") };
    assert!(why.contains("too old") && why.contains("Install"), "{why}");
    let error = driver.prepare(&name("inc_old"), &spec()).await.unwrap_err();
    assert_eq!((error.kind(), error.user_message()), (ErrorKind::NotSupported, Some(why.as_str())));
    let mut absent = host.config();
    absent.jail.firecracker = "/nowhere/firecracker".into();
    let told = driver_of(absent).capabilities().await.unwrap();
    assert!(matches!(&told.usability, Usability::Unusable(why) if why.contains("/nowhere")), "{told:?}");
    assert!(host.residue().is_empty());
}

/// A file system of its own, for as long as it lives.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn at(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=512m", "flames-test"]).arg(&path).status();
        assert!(mount.unwrap().success());
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub(crate) async fn jails_on_another_file_system_work(host: &Host) {
    let mounted = Mounted::at(host.folder.path().join("elsewhere"));
    let config = FirecrackerConfig {
        jail: flames_vmm_firecracker::JailConfig {
            base: mounted.0.join("jails"),
            // The slots are there too, so the users must be no other test's.
            users: flames_vmm_firecracker::SlotRange { first_user: 3_200_000, count: 4 },
            ..host.config().jail
        },
        ..host.config()
    };
    let driver = driver_of(config.clone());
    let incarnation = name("inc_elsewhere");
    running(&driver, &incarnation).await;
    talk(&driver, &incarnation).await;
    let artefacts = driver.snapshot(&incarnation, "there", SnapshotKind::Full).await.unwrap();
    driver.stop(&incarnation, flames_vmm::StopHow::Kill).await.unwrap();
    let restored = name("inc_restored");
    driver.prepare(&restored, &spec()).await.unwrap();
    driver.start(&restored, from(artefacts), false).await.unwrap();
    talk(&driver, &restored).await;
    for incarnation in [incarnation, restored] {
        driver.destroy(&incarnation).await.unwrap();
    }
    let left = crate::support::traces::of(&config);
    assert!(left.is_empty(), "{left:?}");
}

pub(crate) async fn an_image_larger_than_its_disk_is_refused_with_both_sizes(host: &Host) {
    let disk = host.folder.path().join("disk");
    let mut image = vec![0; 4096];
    image[..4].copy_from_slice(b"hsqs");
    image[40..48].copy_from_slice(&1_000_000_u64.to_le_bytes());
    std::fs::write(&disk, image).unwrap();
    let mut spec = spec();
    spec.drives.push(Drive { name: "root".into(), path: disk, read_only: true });
    let error = host.driver().prepare(&name("inc_image"), &spec).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("drives.path")));
    assert!(sentence(&error).contains("4096") && sentence(&error).contains("1000000"));
    assert!(host.residue().is_empty());
}

pub(crate) async fn a_host_without_a_free_slot_says_so_and_takes_the_next_when_one_is_free(host: &Host) {
    let mut config = host.config();
    config.jail.base = host.folder.path().join("own-jails");
    config.jail.users = flames_vmm_firecracker::SlotRange { first_user: 3_300_000, count: 1 };
    let driver = driver_of(config.clone());
    let (first, second) = (name("inc_first"), name("inc_second"));
    driver.prepare(&first, &spec()).await.unwrap();
    let error = driver.prepare(&second, &spec()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
    assert!(sentence(&error).contains("Stop one"), "{error:?}");
    assert_eq!(driver.observe(&second).await.unwrap_err().kind(), ErrorKind::NotFound);
    driver.destroy(&first).await.unwrap();
    driver.prepare(&second, &spec()).await.unwrap();
    driver.destroy(&second).await.unwrap();
    let left = crate::support::traces::of(&config);
    assert!(left.is_empty(), "{left:?}");
}
