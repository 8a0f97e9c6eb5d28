//! The settings of the queue.

use super::Kind::{Amount, Choice, Count, Duration, Path, Secret, Switch, Text, Url, Urls};
use super::Section::Queue;
use super::{Key, key, set};

const QUEUE_BACKENDS: &[&str] = &["memory", "sqlite", "postgres", "nats"];
const SQLITE: &[&str] = &["sqlite"];
const POSTGRES: &[&str] = &["postgres"];
const NATS: &[&str] = &["nats"];
const SQL: &[&str] = &["sqlite", "postgres"];

pub(super) const KEYS: &[Key] = &[
    set(
        Queue,
        "backend",
        Choice(QUEUE_BACKENDS),
        &[],
        "sqlite",
        "Where jobs wait: `memory` forgets them at the end, `sqlite` is one file of this host, `postgres` and `nats` are servers for a fleet.",
    ),
    key(
        Queue,
        "path",
        Path,
        SQLITE,
        None,
        "/var/lib/flames/queue.sqlite",
        "The file, one of its own [default: `queue.sqlite` in the data folder].",
    ),
    set(
        Queue,
        "survives_power_loss",
        Switch,
        SQLITE,
        "false",
        "Whether each answer is on the disk before it is given. A crash of the process loses nothing either way, and what is due stands in the state store too.",
    ),
    key(
        Queue,
        "url",
        Url,
        POSTGRES,
        None,
        "postgres://flames@db.example:5432/flames?sslmode=verify-full",
        "The server, user and database. The password goes into `password_file`.",
    ),
    set(
        Queue,
        "schema",
        Text,
        POSTGRES,
        "flames_queue",
        "The schema that holds the tables; it is made when it is not there.",
    ),
    set(
        Queue,
        "max_connections",
        Count,
        POSTGRES,
        "10",
        "How many connections run operations at the same time. Two more serve hints.",
    ),
    set(Queue, "parked_retention", Duration, SQL, "14d", "How long parked jobs are kept."),
    key(
        Queue,
        "servers",
        Urls,
        NATS,
        None,
        "nats://127.0.0.1:4222",
        "The servers; one suffices to find the others of a cluster.",
    ),
    key(Queue, "user", Text, NATS, None, "flames", "The user, when it signs in with a password."),
    key(
        Queue,
        "password",
        Secret,
        &["postgres", "nats"],
        None,
        "/run/secrets/flames-queue",
        "The user's password.",
    ),
    key(
        Queue,
        "token",
        Secret,
        NATS,
        None,
        "/run/secrets/flames-nats-token",
        "The token, when it signs in with one.",
    ),
    key(
        Queue,
        "credentials",
        Path,
        NATS,
        None,
        "/run/secrets/flames.creds",
        "A credentials file, as `nsc generate creds` writes it.",
    ),
    key(
        Queue,
        "certificate_authorities",
        Path,
        NATS,
        None,
        "/etc/flames/nats-ca.pem",
        "The authorities that the servers' certificates are signed by [default: the system's].",
    ),
    set(
        Queue,
        "prefix",
        Text,
        NATS,
        "flames",
        "What sets this queue apart from others in one account; the stream is `<prefix>_jobs`.",
    ),
    set(Queue, "replicas", Count, NATS, "1", "On how many servers the stream is kept: 1, 3 or 5."),
    set(Queue, "max_jobs", Count, NATS, "1000000", "The most jobs that the queue holds."),
    key(
        Queue,
        "max_size",
        Amount,
        &["sqlite", "nats"],
        None,
        "4G",
        "How much the queue may take on disk [default: as much as there is].",
    ),
    set(
        Queue,
        "operation_deadline",
        Duration,
        &["sqlite", "postgres", "nats"],
        "10s",
        "How long an operation may take as a whole.",
    ),
];
