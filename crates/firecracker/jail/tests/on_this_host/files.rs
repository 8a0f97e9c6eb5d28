//! Files in and out of a jail.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;

use flames_error::ErrorKind;
use flames_firecracker_jail::{Artefact, JailSpec, Way};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, answers, inside, launch, name, remove, running, spec};

fn shared(source: &std::path::Path, place: &str) -> Artefact {
    Artefact::Shared { source: source.to_owned(), inside: inside(place) }
}

pub(crate) async fn a_shared_file_is_linked_and_stays_as_it_was(host: &Host) {
    let jails = host.open().await;
    let (open, closed) = (host.file("image", "image", 0o444), host.file("secret", "secret", 0o600));
    let artefacts = vec![shared(&open, "image"), shared(&closed, "boot/secret")];
    let spec = JailSpec { artefacts, ..spec() };
    let jail = jails.create(&name("inc_1"), spec).await.unwrap();
    assert_eq!(jail.way(&inside("image")), Some(Way::Linked));
    assert!(matches!(jail.way(&inside("boot/secret")), Some(Way::Copied | Way::Reflinked)));
    let vmm = jail.start(launch()).await.unwrap();
    answers(&jail, &vmm).await;
    let user = jail.slot().user;
    for (path, mode, links) in [(&open, 0o444, 2), (&closed, 0o600, 1)] {
        let found = std::fs::metadata(path).unwrap();
        assert_eq!(
            (found.uid(), found.mode() & 0o777, found.nlink()),
            (0, mode, links),
            "{}",
            path.display()
        );
    }
    let copy = std::fs::metadata(jail.root().join("boot/secret")).unwrap();
    assert_eq!((copy.uid(), copy.mode() & 0o777), (user, 0o400));
    remove(&jails, "inc_1").await;
    assert_eq!(std::fs::read_to_string(&open).unwrap(), "image");
    assert_eq!(std::fs::metadata(&open).unwrap().nlink(), 1);
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_folder_whose_making_was_killed_midway_is_the_vmms_when_it_is_asked_for_again(
    host: &Host,
) {
    let jails = host.open().await;
    let jail = jails.create(&name("inc_1"), spec()).await.unwrap();
    // As it is between the making and the giving.
    std::fs::create_dir(jail.root().join("load")).unwrap();
    assert_eq!(std::fs::metadata(jail.root().join("load")).unwrap().uid(), 0);
    jail.make_folder(&inside("load")).unwrap();
    assert_eq!(std::fs::metadata(jail.root().join("load")).unwrap().uid(), jail.slot().user);
    remove(&jails, "inc_1").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_shared_file_of_another_file_system_is_seen_by_the_vmm_alone_and_cannot_be_written(
    host: &Host,
) {
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let source = elsewhere.path().join("image");
    std::fs::write(&source, "from elsewhere").unwrap();
    let disk = elsewhere.path().join("disk");
    std::fs::write(&disk, "its disk").unwrap();
    let jails = host.open().await;
    let owned = Artefact::Owned { source: disk.clone(), inside: inside("disk") };
    let spec = JailSpec { artefacts: vec![shared(&source, "images/root"), owned], ..spec() };
    let jail = jails.create(&name("inc_1"), spec).await.unwrap();
    assert_eq!(jail.way(&inside("images/root")), Some(Way::Mounted));
    let vmm = jail.start(launch()).await.unwrap();
    answers(&jail, &vmm).await;
    let pid = vmm.process.identity().pid;
    let seen = format!("/proc/{pid}/root/images/root");
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), "from elsewhere");
    let written = std::fs::OpenOptions::new().write(true).open(&seen).unwrap_err();
    assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "not even by root");
    assert_eq!(std::fs::read_to_string(jail.root().join("images/root")).unwrap(), "", "not seen on the host");
    let mut its_disk =
        std::fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/root/disk")).unwrap();
    its_disk.write_all(b"ITS").unwrap();
    assert_eq!(std::fs::read_to_string(&disk).unwrap(), "ITS disk");
    assert_eq!(std::fs::metadata(&disk).unwrap().uid(), jail.slot().user);
    let here = host.folder.path().to_str().unwrap();
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(here));
    drop(its_disk);
    remove(&jails, "inc_1").await;
    assert_eq!(std::fs::metadata(&disk).unwrap().uid(), 0);
    assert_eq!(std::fs::read_to_string(&source).unwrap(), "from elsewhere");
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_disk_is_the_microvms_for_a_while_and_then_roots_again(host: &Host) {
    let jails = host.open().await;
    let disk = host.file("disk", "content", 0o644);
    let owned = Artefact::Owned { source: disk.clone(), inside: inside("disks/data") };
    let empty = Artefact::Empty { inside: inside("disks/scratch"), bytes: 1 << 30 };
    let spec = JailSpec { artefacts: vec![owned, empty], ..spec() };
    let jail = jails.create(&name("inc_1"), spec).await.unwrap();
    let user = jail.slot().user;
    let found = std::fs::metadata(&disk).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (user, user, 0o600));
    let scratch = std::fs::metadata(jail.root().join("disks/scratch")).unwrap();
    assert_eq!((scratch.uid(), scratch.len(), scratch.blocks()), (user, 1 << 30, 0));
    remove(&jails, "inc_1").await;
    let found = std::fs::metadata(&disk).unwrap();
    assert_eq!((found.uid(), found.gid(), found.nlink()), (0, 0, 1));
    assert_eq!(std::fs::read_to_string(&disk).unwrap(), "content");
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_file_that_takes_a_disks_place_is_not_given_away(host: &Host) {
    let jails = host.open().await;
    let disk = host.file("disk", "content", 0o600);
    let image = host.file("image", "image", 0o444);
    let owned = Artefact::Owned { source: disk.clone(), inside: inside("disk") };
    let spec = JailSpec { artefacts: vec![owned, shared(&image, "image")], ..spec() };
    let jail = jails.create(&name("inc_1"), spec).await.unwrap();
    // As a VMM could do, whose the chroot is.
    std::fs::rename(jail.root().join("image"), jail.root().join("disk")).unwrap();
    let listener = jail.listen(&inside("disk"));
    assert!(listener.is_ok(), "what had the name is removed, and only the socket is given to the user");
    assert_eq!(std::fs::metadata(&image).unwrap().uid(), 0);
    std::os::unix::fs::symlink("/etc/passwd", jail.root().join("link")).unwrap();
    assert_eq!(jail.open_file(&inside("link")).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(jail.connect(&inside("link")).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    remove(&jails, "inc_1").await;
    assert_eq!(std::fs::metadata(&disk).unwrap().uid(), 0, "found under its other name");
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn a_file_for_a_running_vmm_is_added_and_a_mount_is_refused(host: &Host) {
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let far = elsewhere.path().join("far");
    std::fs::File::create(&far).unwrap().set_len(host.config.largest_copy + 1).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&far, std::fs::Permissions::from_mode(0o444)).unwrap();
    let jails = host.open().await;
    let (jail, _vmm) = running(&jails, "inc_1").await;
    let image = host.file("image", "image", 0o444);
    assert_eq!(jail.add(shared(&image, "snapshots/1/memory")).await.unwrap(), Way::Linked);
    assert_eq!(
        jail.add(shared(&image, "snapshots/1/memory")).await.unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    assert_eq!(jail.add(shared(&far, "far")).await.unwrap_err().kind(), ErrorKind::NotSupported);
    let mut text = String::new();
    jail.open_file(&inside("snapshots/1/memory")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "image");
    jail.remove_file(&inside("snapshots/1/memory")).unwrap();
    assert_eq!(jail.open_file(&inside("snapshots/1/memory")).unwrap_err().kind(), ErrorKind::NotFound);
    remove(&jails, "inc_1").await;
    assert_eq!(host.residue(), Vec::<String>::new());
}

pub(crate) async fn sockets_of_both_sides_are_reached(host: &Host) {
    let jails = host.open().await;
    let (jail, vmm) = running(&jails, "inc_1").await;
    let place = inside("run/vsock.sock_1024");
    for _ in 0..2 {
        let listener = jail.listen(&place).unwrap();
        let path = format!("/proc/{}/root/{place}", vmm.process.identity().pid);
        assert_eq!(std::fs::metadata(&path).unwrap().uid(), jail.slot().user);
        let (near, far) = tokio::join!(jail.connect(&place), listener.accept());
        near.unwrap().write_all(b"hello").await.unwrap();
        let mut heard = String::new();
        far.unwrap().0.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
    }
    assert_eq!(jail.connect(&place).await.unwrap_err().kind(), ErrorKind::Unavailable);
    remove(&jails, "inc_1").await;
}

pub(crate) async fn output_is_bounded_and_kept_while_nobody_reads(host: &Host) {
    let jails = host.open().await;
    let (jail, vmm) = running(&jails, "inc_1").await;
    let output = std::path::PathBuf::from(format!("/proc/{}/fd/1", vmm.process.identity().pid));
    let mut writer = std::fs::OpenOptions::new().write(true).open(output).unwrap();
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
    let refused = loop {
        if let Err(error) = writer.write_all(&[b'x'; 4096]) {
            break error;
        }
    };
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock, "the kernel keeps no more");
    let words = jail.last_words().unwrap();
    assert!(words.len() <= 2048 && words.ends_with('x'));
    writer.write_all(b"later\n").unwrap();
    let mut read = [0; 6];
    jail.output().unwrap().read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"later\n");
    let mut pipe = jail.pipe(&inside("run/serial")).unwrap();
    let their_end = format!("/proc/{}/root/run/serial", vmm.process.identity().pid);
    std::fs::OpenOptions::new().write(true).open(their_end).unwrap().write_all(b"guest!").unwrap();
    pipe.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"guest!");
    remove(&jails, "inc_1").await;
}
