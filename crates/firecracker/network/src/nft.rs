//! nftables, in the words of libnftables-json(5): changes, which go straight to the kernel ([`crate::nf_tables`]), and what stands, which
//! the `nft` program tells.
//!
//! One call is one transaction: the kernel takes all of it or nothing, and packets see the rules before or those after.
//! Nothing is ever pasted into a text that is parsed as rules.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flames_error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use crate::nf_tables::{self, Generation, Outcome};

const OPERATION: &str = "network.nft";

/// The most bytes of an answer: some thousand machines' elements.
const LONGEST_ANSWER: u64 = 64 * 1024 * 1024;

/// Changes that happen together or not at all.
#[derive(Debug, Default, Clone)]
pub(crate) struct Transaction(Vec<Value>);

impl Transaction {
    pub(crate) fn add(&mut self, kind: &str, mut object: Value) {
        self.0.push(json!({ "add": { kind: object.take() } }));
    }

    /// As [`Transaction::add`], of what is not there.
    pub(crate) fn create(&mut self, kind: &str, mut object: Value) {
        self.0.push(json!({ "create": { kind: object.take() } }));
    }

    pub(crate) fn delete(&mut self, kind: &str, mut object: Value) {
        self.0.push(json!({ "delete": { kind: object.take() } }));
    }

    pub(crate) fn flush(&mut self, kind: &str, mut object: Value) {
        self.0.push(json!({ "flush": { kind: object.take() } }));
    }

    pub(crate) fn append(&mut self, mut more: Self) {
        self.0.append(&mut more.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Applies it to the calling thread's namespace.
    ///
    /// Errors: `NotFound` when it is about what is not there; `Exhausted` when a set is full; `NotSupported` when the kernel lacks what is
    /// asked; `PermissionDenied`; `Internal` when it is refused.
    pub(crate) fn apply(self) -> Result<()> {
        nf_tables::commit(&self.0, None).map(drop)
    }

    /// As [`Transaction::apply`], but only to the rules of this generation.
    pub(crate) fn apply_at(&self, generation: Generation) -> Result<Outcome> {
        nf_tables::commit(&self.0, Some(generation))
    }
}

/// What `nft -j list …` answers, for the calling thread's namespace. None when there is no such object.
pub(crate) fn list(what: &[&str], deadline: Duration) -> Result<Option<Vec<Value>>> {
    let mut arguments = vec!["-j", "list"];
    arguments.extend(what);
    let answer = match run(&arguments, deadline) {
        Ok(answer) => answer,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let unreadable = || Error::internal(OPERATION, "the answer of nft cannot be read");
    let mut answer: Value =
        serde_json::from_slice(&answer).map_err(|error| unreadable().with_source(error))?;
    match answer.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(Some(objects)),
        _ => Err(unreadable()),
    }
}

/// The version of `nft`, as it tells it. `NotSupported` when there is none.
pub(crate) fn version(deadline: Duration) -> Result<String> {
    let answer = run(&["--version"], deadline)?;
    Ok(String::from_utf8_lossy(&answer).trim().to_owned())
}

/// Output goes into files in memory, so that neither side ever waits for the other.
fn run(arguments: &[&str], deadline: Duration) -> Result<Vec<u8>> {
    let failed =
        |tried: &str, error: std::io::Error| Error::internal(OPERATION, tried.to_owned()).with_source(error);
    let in_memory = || {
        memfd_create("nft", MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(|error| failed("a file in memory cannot be made", error.into()))
    };
    let (mut stdout, mut stderr) = (in_memory()?, in_memory()?);
    let hand = |file: &File| {
        file.try_clone().map(Stdio::from).map_err(|error| failed("a file cannot be handed over", error))
    };
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::null()).stdout(hand(&stdout)?).stderr(hand(&stderr)?);
    let mut child =
        flames_host::process::forking(|| command.spawn()).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let sentence = "The program `nft` is not on PATH. Install nftables 1.0.6 or later.";
                Error::new(ErrorKind::NotSupported, OPERATION, sentence).with_user_message(sentence)
            }
            _ => failed("nft cannot be started", error),
        })?;
    let watched = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let ended = watched.is_ok_and(|process| ends_within(&process, deadline));
    if !ended {
        // It has not been waited for, so the pid is still its own.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| failed("nft cannot be waited for", error))?;
    if !ended {
        return Err(Error::unavailable(OPERATION, "nft did not end in time")
            .with_context("deadline", format!("{deadline:?}")));
    }
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.take(LONGEST_ANSWER).read_to_end(&mut bytes))
            .map_err(|error| failed("the answer of nft cannot be read", error))?;
        Ok(bytes)
    };
    if status.success() {
        return read(&mut stdout);
    }
    let complaint =
        String::from_utf8_lossy(&read(&mut stderr)?).trim().chars().take(1000).collect::<String>();
    let kind = if complaint.contains("No such file or directory") {
        ErrorKind::NotFound
    } else if complaint.contains("not supported") || complaint.contains("Protocol error") {
        ErrorKind::NotSupported
    } else if complaint.contains("Operation not permitted") {
        ErrorKind::PermissionDenied
    } else {
        ErrorKind::Internal
    };
    Err(Error::new(kind, OPERATION, "nft refuses").with_context("complaint", complaint))
}

fn ends_within(process: &OwnedFd, deadline: Duration) -> bool {
    let until = Instant::now() + deadline;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else { return false };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Left is right, or in the set that right is.
pub(crate) fn is(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right.into() } })
}

pub(crate) fn is_not(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "!=", "left": left, "right": right.into() } })
}

pub(crate) fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

pub(crate) fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

pub(crate) fn ct(key: &str) -> Value {
    json!({ "ct": { "key": key } })
}

/// Whether the packet's connection is in one of the states.
pub(crate) fn ct_state(states: &[&str]) -> Value {
    json!({ "match": { "op": "in", "left": ct("state"), "right": states } })
}

/// A set without a name.
pub(crate) fn set(elements: impl IntoIterator<Item = Value>) -> Value {
    json!({ "set": elements.into_iter().collect::<Vec<_>>() })
}

pub(crate) fn accept() -> Value {
    json!({ "accept": null })
}

pub(crate) fn drop_it() -> Value {
    json!({ "drop": null })
}

pub(crate) fn goto(chain: &str) -> Value {
    json!({ "goto": { "target": chain } })
}

/// Tells the sender that an administrator's rule forbids it, so that a program fails at once and not after a minute.
pub(crate) fn reject() -> Value {
    json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } })
}
