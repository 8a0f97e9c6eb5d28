//! Talking to the guest, and reading what it writes.

use flames_error::ErrorKind;
use flames_vmm::{AGENT_PORT, MAX_CONSOLE_CHUNK, Phase};

use crate::Fixture;
use crate::lab::{Lab, fresh_name, refused};

pub(crate) async fn a_running_vm_can_be_connected_to(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    for _ in 0..3 {
        // One after the other: the guest serves the next connection when the last is gone.
        drop(lab.talk(&name).await);
    }
}

pub(crate) async fn connecting_to_what_does_not_run_is_a_conflict(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    for name in [lab.prepared().await, lab.exited().await] {
        refused(lab.call("connect", lab.driver().connect(&name, AGENT_PORT)).await, ErrorKind::Conflict);
    }
}

pub(crate) async fn a_newer_connection_ends_the_older(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let mut older = lab.talk(&name).await;
    let newer = lab.talk(&name).await;
    lab.ends(&mut older).await;
    drop((older, newer));
    lab.talk(&name).await;
}

pub(crate) async fn many_connections_are_open_at_once(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(lab.talk(&name).await);
    }
    for stream in &mut open {
        lab.call("an answer", fixture.converse(stream)).await.unwrap();
    }
}

pub(crate) async fn a_connection_ends_with_its_vm(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let mut stream = lab.talk(&name).await;
    lab.kill(&name).await;
    lab.ends(&mut stream).await;
}

pub(crate) async fn a_guest_answers_the_next_driver(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    drop(lab.talk(&name).await);
    fixture.reopen().await;
    assert_eq!(lab.adopt().await[&name].phase, Phase::Running);
    lab.talk(&name).await;
}

pub(crate) async fn the_console_reads_on_from_an_offset(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let written = lab.console(&name, 0).await;
    assert!(written.data.len() <= MAX_CONSOLE_CHUNK);
    let middle = written.data.len() / 2;
    let from = written.offset + middle as u64;
    let rest = lab.console(&name, from).await;
    assert_eq!(rest.offset, from, "what was just read is still there");
    assert!(rest.data.starts_with(&written.data[middle..]), "the same bytes stand at the same offset");
    let end = rest.offset + rest.data.len() as u64;
    let beyond = lab.driver().console(&name, end).await.unwrap();
    assert!(beyond.offset >= end, "nothing comes twice");
}

pub(crate) async fn the_console_is_read_after_the_exit(fixture: &dyn Fixture) {
    let lab = Lab::new(fixture);
    let name = lab.running().await;
    let written = lab.console(&name, 0).await;
    lab.kill(&name).await;
    for _ in 0..2 {
        let read = lab.console(&name, written.offset).await;
        assert_eq!(read.offset, written.offset);
        assert!(read.data.starts_with(&written.data));
        fixture.reopen().await;
        lab.adopt().await;
    }
    lab.destroy(&name).await;
    refused(lab.driver().console(&name, 0).await, ErrorKind::NotFound);
}

pub(crate) async fn the_console_of_what_is_not_there_is_not_found(fixture: &dyn Fixture) {
    refused(Lab::new(fixture).driver().console(&fresh_name(), 0).await, ErrorKind::NotFound);
}
