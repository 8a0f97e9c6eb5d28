//! CacheStore in Redis or Valkey: one cache for all servers of a fleet.
//!
//! * Each call is one command, or one script, on one key. So it is atomic, and works on a cluster as on a single node.
//! * All calls share one connection (pipelined). It is made when it is first needed, and made anew after anything went wrong with it.
//!   A call waits no longer than [`RedisConfig::call`], and while the server is away calls fail at once.
//! * Redis may forget what it was told (`maxmemory-policy`), which a cache may. But a server that starts again with an old file, or
//!   a replica that takes over, brings back *older* values, which a cache may not. So keys carry the id of the server's run (`run_id` of
//!   `INFO server`, which changes with each start): what an earlier run held is not found any more, and expires. A cluster has
//!   no such id: run its nodes without persistence.
//! * Times to live are judged by the server's clock, in whole milliseconds.
//!
//! Commands used, for an access list: `GET`, `SET`, `DEL`, `EVALSHA`, `SCRIPT LOAD`, `INFO`, `PING`, `CLIENT SETINFO`; for a cluster also
//! `CLUSTER SLOTS`. Tested against Redis 7.

mod cache;
mod config;
mod error;
mod link;

pub use cache::RedisCache;
pub use config::{RedisConfig, Secret};
