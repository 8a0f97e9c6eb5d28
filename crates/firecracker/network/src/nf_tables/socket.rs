//! What the kernel says to a batch.

use std::io;
use std::os::fd::OwnedFd;

use flames_error::{Error, ErrorKind, Result};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
use serde_json::Value;

use super::OPERATION;
use super::message::{Batch, HEADER, SUBSYSTEM, single};
use crate::kernel::refused;

/// `NLMSG_ERROR` (linux/netlink.h).
const ERROR: u16 = 2;
/// `NFT_MSG_NEWGEN`, `NFT_MSG_GETGEN`.
const NEW_GENERATION: u16 = 15;
const GET_GENERATION: u16 = 16;
/// What a socket takes at once without being told otherwise is some 200 KiB; a policy with all its ranges has less than this.
const LARGEST_BATCH: usize = 4 * 1024 * 1024;
/// The longest answer that is looked at. An error carries the message that it is about.
const BUFFER: usize = 128 * 1024;

/// The number of the rules that a namespace has: each transaction, whoever makes it, leads to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u32);

impl Generation {
    pub(super) fn number(self) -> u32 {
        self.0
    }

    /// That of the calling thread's namespace.
    pub(crate) fn current() -> Result<Self> {
        let failed = |error: Errno| refused(OPERATION, "asking for the rules' generation", error.into());
        let socket = open()?;
        rustix::net::send(&socket, &single(GET_GENERATION), SendFlags::empty()).map_err(failed)?;
        let mut buffer = vec![0; 4096];
        // The answer is there when `send` returns.
        let (length, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT).map_err(failed)?;
        let answer = buffer.get(..length).unwrap_or_default();
        let is_answer = two(answer, 4) == Some((SUBSYSTEM << 8) | NEW_GENERATION);
        // Behind `struct nfgenmsg` and the header of the first attribute, `NFTA_GEN_ID`.
        let number = answer.get(HEADER + 8..HEADER + 12).and_then(|bytes| bytes.try_into().ok());
        match number {
            Some(bytes) if is_answer && two(answer, HEADER + 6) == Some(1) => {
                Ok(Self(u32::from_be_bytes(bytes)))
            }
            _ => Err(Error::internal(OPERATION, "the kernel does not tell the rules' generation")),
        }
    }

    /// The one after it.
    pub(crate) fn next(self) -> Self {
        // 0 is none (`nft_base_seq`, nf_tables_api.c).
        Self(self.0.checked_add(1).unwrap_or(1))
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is applied.
    Applied,
    /// The rules are no longer of the generation that it is for; nothing was changed.
    Outdated,
}

fn open() -> Result<OwnedFd> {
    rustix::net::socket_with(
        rustix::net::AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )
    .map_err(|error| match error {
        Errno::PROTONOSUPPORT => {
            let sentence = "This kernel has no nf_tables. Load the kernel's module `nf_tables`.";
            Error::new(ErrorKind::NotSupported, OPERATION, sentence).with_user_message(sentence)
        }
        _ => refused(OPERATION, "opening a socket to nf_tables", error.into()),
    })
}

/// Sends a batch and reads all answers. The kernel is done with it when `send` returns, so this waits for nothing.
pub(super) fn send(batch: Batch, changes: &[Value]) -> Result<Outcome> {
    if batch.changes == 0 {
        return Ok(Outcome::Applied);
    }
    let last = batch.changes;
    let bytes = batch.finish();
    if bytes.len() > LARGEST_BATCH {
        return Err(Error::new(ErrorKind::Exhausted, OPERATION, "a transaction is too large"));
    }
    let failed = |error: Errno| refused(OPERATION, "changing the rules", error.into());
    let socket = open()?;
    if bytes.len() > 64 * 1024 {
        sockopt::set_socket_send_buffer_size_force(&socket, 2 * LARGEST_BATCH).map_err(failed)?;
    }
    rustix::net::send(&socket, &bytes, SendFlags::empty()).map_err(failed)?;
    let mut buffer = vec![0; BUFFER];
    let mut is_acknowledged = false;
    loop {
        let length = match rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC)
        {
            Ok((length, _)) => length,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(failed(error)),
        };
        let mut rest = buffer.get(..length.min(BUFFER)).unwrap_or_default();
        while let Some(answer) = Answer::first(rest) {
            rest = rest.get(answer.taken..).unwrap_or_default();
            match answer.error {
                None => {}
                Some(0) => is_acknowledged |= answer.sequence == last,
                // `ERESTART` of the kernel's own errors: a generation that is past.
                Some(85) => return Ok(Outcome::Outdated),
                Some(number) => return Err(explained(number, answer.sequence, changes)),
            }
        }
    }
    if is_acknowledged {
        Ok(Outcome::Applied)
    } else {
        Err(Error::internal(OPERATION, "the kernel says nothing to a transaction"))
    }
}

/// The error of a change, by its number from 1 on; 0 when it is of all.
fn explained(number: i32, change: u32, changes: &[Value]) -> Error {
    let change = usize::try_from(change).ok().and_then(|change| changes.get(change.checked_sub(1)?));
    let error = refused(OPERATION, "changing the rules", io::Error::from_raw_os_error(number));
    match change {
        Some(change) => {
            error.with_context("change", change.to_string().chars().take(500).collect::<String>())
        }
        None => error,
    }
}

/// The head of one answer.
struct Answer {
    sequence: u32,
    /// The error's number, 0 for an acknowledgement; none for another kind of message.
    error: Option<i32>,
    taken: usize,
}

impl Answer {
    fn first(bytes: &[u8]) -> Option<Self> {
        let length = usize::try_from(four(bytes, 0)?).ok()?.max(HEADER);
        let error = if two(bytes, 4)? == ERROR {
            Some(i32::from_ne_bytes(four(bytes, HEADER)?.to_ne_bytes()).wrapping_neg())
        } else {
            None
        };
        Some(Self { sequence: four(bytes, 8)?, error, taken: length.next_multiple_of(4) })
    }
}

fn two(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn four(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
