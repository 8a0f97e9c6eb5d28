//! The settings of the state store.

use super::Kind::{Amount, Choice, Count, Duration, Path, Secret, Text, Url, Urls};
use super::Section::State;
use super::{Key, key, set};

const STATE_BACKENDS: &[&str] = &["memory", "sqlite", "postgres", "etcd"];
const SQLITE: &[&str] = &["sqlite"];
const POSTGRES: &[&str] = &["postgres"];
const ETCD: &[&str] = &["etcd"];

pub(super) const KEYS: &[Key] = &[
    set(
        State,
        "backend",
        Choice(STATE_BACKENDS),
        &[],
        "sqlite",
        "Where records are kept: `memory` forgets them at the end, `sqlite` is one file of this host, `postgres` and `etcd` are servers for a fleet.",
    ),
    key(
        State,
        "path",
        Path,
        SQLITE,
        None,
        "/var/lib/flames/state.sqlite",
        "The file [default: `state.sqlite` in the data folder].",
    ),
    key(
        State,
        "max_size",
        Amount,
        SQLITE,
        None,
        "10G",
        "How large the file may become [default: as large as the disk allows].",
    ),
    set(State, "readers", Count, SQLITE, "4", "How many connections read at the same time."),
    key(
        State,
        "url",
        Url,
        POSTGRES,
        None,
        "postgres://flames@db.example:5432/flames?sslmode=verify-full",
        "The server, user and database. The password goes into `password_file`.",
    ),
    set(
        State,
        "schema",
        Text,
        POSTGRES,
        "flames",
        "The schema that holds the tables; it is made when it is not there.",
    ),
    set(
        State,
        "max_connections",
        Count,
        POSTGRES,
        "16",
        "How many connections run operations at the same time. Two more serve hints.",
    ),
    set(
        State,
        "connect_deadline",
        Duration,
        &["postgres", "etcd"],
        "5s",
        "How long making a connection may take.",
    ),
    set(
        State,
        "acquire_deadline",
        Duration,
        &["postgres", "etcd"],
        "5s",
        "How long an operation may wait for its turn.",
    ),
    set(State, "max_requests", Count, ETCD, "32", "How many requests are under way at the same time."),
    key(
        State,
        "endpoints",
        Urls,
        ETCD,
        None,
        "http://127.0.0.1:2379",
        "The members' client URLs. When one does not answer, the next is asked.",
    ),
    key(State, "username", Text, ETCD, None, "flames", "The user, where the server has users."),
    key(
        State,
        "password",
        Secret,
        &["postgres", "etcd"],
        None,
        "/run/secrets/flames-state",
        "The user's password.",
    ),
    set(State, "prefix", Text, ETCD, "flames/", "What all keys begin with, so that a cluster can be shared."),
    set(
        State,
        "operation_deadline",
        Duration,
        &["sqlite", "postgres", "etcd"],
        "10s",
        "How long an operation may take as a whole.",
    ),
];
