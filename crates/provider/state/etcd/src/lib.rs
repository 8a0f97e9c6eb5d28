//! StateStore in etcd 3.4 or newer, by its HTTP/JSON gateway (`/v3/…`, on by default): no protocol compiler, no gRPC.
//!
//! # How it keeps the contract
//!
//! * **A commit is one `txn`**: its checks are compares on create and mod revisions, its writes and appends the puts and deletes. etcd
//!   applies a transaction whole or not at all, and serializably.
//! * **Versions** are mod revisions: etcd counts one revision for the whole cluster and never gives one twice. All keys of a
//!   transaction get the same.
//! * **Reads** are linearizable, as etcd's are unless asked otherwise. The parts of a page are read at one revision.
//! * **A log** has one key for each commit that appends to it, and its order is that of the keys' *create* revisions, which are assigned as commits
//!   are applied: nothing can appear before what was seen. A transaction cannot use its own revision in a key, so that etcd's
//!   order of keys is not that of the log, and to find what lies behind a position would mean to list all of it. Hence
//!   *segments*: a key of a log begins with the segment's number, which is the revision that the store's segment key was written at last; each commit that
//!   appends compares that this is still so; and every 500 revisions somebody writes the segment key anew. So segments follow each other in the
//!   order of keys, and only what is in one needs to be sorted. A [`Position`](flames_state::Position) carries its segment.
//! * **Hints** come from one `watch` for each process, fanned out in memory. A watch that was cut goes on from the revision that it
//!   had seen.
//!
//! # Limits
//!
//! etcd takes 128 operations a transaction (`--max-txn-ops`) and counts compares, puts and reads apart; a commit has at most 64 checks and
//! writes, one compare for the segment and one put for each log. A request is at most 1.5 MiB (`--max-request-bytes`); a commit is at most 1 MiB of
//! keys and values, and adds less than 100 bytes and the prefix for each operation. Both fit with etcd's defaults. A prefix is at most 64 bytes.
//!
//! # What to know before using it
//!
//! * etcd keeps every revision until it is compacted, and takes no more writes at 2 GiB (`Exhausted`). Run it with
//!   `--auto-compaction-mode=periodic --auto-compaction-retention=10m`, and a larger `--quota-backend-bytes` where needed.
//! * Values live in one database that is meant to fit into memory: good for thousands of VMs, and not for millions.
//! * `etcdctl snapshot restore` takes the revision back, so that versions and positions may be given again. After it, restore into a
//!   store that nobody has read since the snapshot, or use etcd 3.6's `--bump-revision --mark-compacted`.
//! * Plain HTTP: for a private network, or behind a local proxy that adds TLS. With authentication, the user needs all rights on the keys below
//!   the prefix.
//! * A watch that a user's expired token refuses is begun anew with a new one; the watches' own rights are checked when they begin.
//!
//! One page of a scan or of a log also ends when its values reach 8 MiB, so that a reader's memory stays bounded.

mod config;
mod error;
mod hints;
mod http;
mod layout;
mod log;
mod store;
mod wire;

pub use config::EtcdConfig;
pub use store::EtcdStore;
