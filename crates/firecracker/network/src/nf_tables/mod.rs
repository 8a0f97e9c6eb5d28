//! nf_tables as the kernel takes it: changes in the words of libnftables-json(5) become messages of its netlink protocol
//! (`linux/netfilter/nf_tables.h`, version of the protocol 0), and one batch of them is one transaction.
//!
//! What `nft` would do with the same words, without starting it: that takes longer than all the rest of a network. Only the words
//! that this crate uses are known; any other is an error of this crate's and changes nothing.

mod command;
mod field;
mod interval;
mod message;
mod rule;
mod socket;

use flames_error::{Error, Result};
use serde_json::Value;

pub(crate) use socket::{Generation, Outcome};

const OPERATION: &str = "network.nf_tables";

/// Applies the changes to the calling thread's namespace: all of them, or none. `at`: only while the rules of the namespace are those of
/// that generation.
///
/// Errors: `NotFound` when a change is about what is not there, `AlreadyExists`, `Exhausted` when a set is full, `NotSupported` when the
/// kernel lacks what is asked, `PermissionDenied`, `Internal`.
pub(crate) fn commit(changes: &[Value], at: Option<Generation>) -> Result<Outcome> {
    let mut batch = message::Batch::new(at.map(Generation::number));
    for change in changes {
        command::encode(&mut batch, change)?;
    }
    socket::send(batch, changes)
}

/// The error for words that this does not know.
fn unknown(what: &'static str, words: &Value) -> Error {
    let words: String = words.to_string().chars().take(200).collect();
    Error::internal(OPERATION, format!("{what} cannot be said to the kernel")).with_context("words", words)
}

fn text_of<'a>(object: &'a Value, name: &'static str) -> Result<&'a str> {
    object.get(name).and_then(Value::as_str).ok_or_else(|| unknown(name, object))
}
