//! The settings of the cache.

use super::Kind::{Amount, Choice, Duration, Secret, Switch, Text, Urls};
use super::Section::Cache;
use super::{Key, key, set};

const CACHE_BACKENDS: &[&str] = &["memory", "redis"];
const REDIS: &[&str] = &["redis"];

pub(super) const KEYS: &[Key] = &[
    set(
        Cache,
        "backend",
        Choice(CACHE_BACKENDS),
        &[],
        "memory",
        "Where what may be forgotten is kept: `memory` is this process's, `redis` a Redis or Valkey that a fleet shares.",
    ),
    set(Cache, "max_size", Amount, &["memory"], "64M", "How much is kept at most."),
    key(
        Cache,
        "urls",
        Urls,
        REDIS,
        None,
        "redis://127.0.0.1:6379/0",
        "The server; for a cluster, one or more of its nodes. `rediss://` is TLS. The password goes into `password_file`.",
    ),
    set(Cache, "is_cluster", Switch, REDIS, "false", "Whether the nodes are those of a cluster."),
    key(Cache, "username", Text, REDIS, None, "flames", "The user, where the server has users."),
    key(Cache, "password", Secret, REDIS, None, "/run/secrets/flames-redis", "The password."),
    set(Cache, "prefix", Text, REDIS, "flames:", "What all keys begin with, so that a server can be shared."),
    set(
        Cache,
        "connect_deadline",
        Duration,
        REDIS,
        "800ms",
        "How long making a connection may take, with signing in.",
    ),
    set(Cache, "call_deadline", Duration, REDIS, "1s", "How long a call may take."),
];
