//! WorkQueue on NATS JetStream.
//!
//! # How jobs are kept
//!
//! One file stream, `<prefix>_jobs`, that keeps the newest message of each subject. A job has a subject, `<prefix>.jobs.<topic>.<id>`, and
//! its newest message is its whole record: state, lease, attempts, priority, payload, in a form that `nats stream view` shows. Every
//! change is one publication with `Nats-Expected-Last-Subject-Sequence`: the server does it if nobody else changed the job since, or not
//! at all. The id of a job with a dedupe key is made from the key, so two processes that enqueue one key meet in one subject. An
//! acknowledged job gets a last message that the server deletes by itself half a minute later (`Nats-TTL`).
//!
//! Every process follows the whole stream in one task (a push consumer without acknowledgements), keeps the jobs in memory in the orders that
//! they are asked for in, and picks from there; what it picks is its own only after the server agreed. An empty batch, statistics and
//! lists are answered only when everything that the stream's leader has at that moment was seen. So a process that is behind loses a
//! compare-and-set, never a job. Memory: some 600 bytes for each job that is not done, and its payload.
//!
//! # Guarantees, and where they differ
//!
//! All of [`flames_queue::WorkQueue`]'s hold, with these marks:
//!
//! * The clock that judges leases and times is the server's (the stream leader's), estimated from its answers to within half a round trip;
//!   local wall clocks play no part. In a cluster another leader may follow: keep its servers' clocks together (NTP). A wall clock that
//!   jumps on the server moves leases by as much. It never gives one job to two holders of a valid token: that is the compare-and-set's.
//! * Order by priority and readiness is exact within one process. Of several processes that dequeue at the same moment each passes over what
//!   the others take, and a job that another process enqueued in the last milliseconds may come after a lesser one.
//! * An operation that the connection's loss cuts off is `OutcomeUnknown` at its deadline; without a connection everything is `Unavailable`
//!   at once. A repeated `ack` after `OutcomeUnknown` is `LeaseLost` when the first one was done.
//! * The id of a job with a dedupe key is the same each time the key is enqueued.
//! * NATS answers a publication before it is on disk: by default it syncs every two minutes, so a *power failure* of the server (not a
//!   crash of its process) can lose what was answered. Set `jetstream { sync_interval: always }` there, or use `replicas = 3`. A client cannot
//!   see that setting; what it can see (a stream in memory, or one written behind) is warned of.
//!
//! # What of JetStream is not used, and why
//!
//! * *Work-queue retention with redelivery*: an `ack` from a worker whose delivery was superseded is accepted by the server, the wait for it is one for
//!   the whole consumer, and `MAX_DELIVERIES` is only an advisory; there is no fence. Leases are records here, and a job that is done
//!   is deleted the same way.
//! * *`Nats-Msg-Id`* deduplicates within a window of time only, and cannot coalesce; dedupe is by subject here.
//! * *Scheduled messages* (`Nats-Schedule: @at`): a delayed job that is brought forward, or signalled while it is leased, must change in one step
//!   with its record. Its time stands in the record instead; no message needs to come for it to be ready.
//! * *Dead letters in a stream of their own*: two streams cannot be changed in one step. A parked job is parked in its record, with the reason.

mod backend;
mod changes;
mod config;
mod connect;
mod error;
mod feed;
mod queue;
mod record;
mod time;
mod topic;
mod view;
mod wire;

pub use config::{Credentials, NatsConfig};
pub use queue::NatsQueue;
