//! What comes in: bodies, queries, paths, headers. Each refusal names the field.

mod body;
mod change;
mod objects;
mod query;
mod words;

pub(crate) use body::{Json, NoBody, transfer};
pub(crate) use change::Change;
pub(crate) use query::{PathOf, QueryOf, VmPath, accepts, limit};
