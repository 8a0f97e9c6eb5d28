//! The settings of the blob store.

use super::Kind::{Amount, Choice, Duration, Path, Secret, Switch, Text, Url};
use super::Section::Blob;
use super::{Key, key, set};

const BLOB_BACKENDS: &[&str] = &["memory", "fs", "s3", "gcs", "azure"];
const CLOUDS: &[&str] = &["s3", "gcs", "azure"];
const S3: &[&str] = &["s3"];
const AZURE: &[&str] = &["azure"];

pub(super) const KEYS: &[Key] = &[
    set(
        Blob,
        "backend",
        Choice(BLOB_BACKENDS),
        &[],
        "fs",
        "Where images are kept: `memory` forgets them at the end, `fs` is a folder of this host, `s3`, `gcs` and `azure` are buckets.",
    ),
    key(Blob, "max_size", Amount, &["memory"], None, "4G", "How much is kept at most [default: no limit]."),
    key(
        Blob,
        "path",
        Path,
        &["fs"],
        None,
        "/var/lib/flames/blobs",
        "The folder [default: `blobs` in the data folder].",
    ),
    key(Blob, "bucket", Text, &["s3", "gcs"], None, "flames-images", "The bucket. It must be there."),
    key(Blob, "account", Text, AZURE, None, "flamesimages", "The storage account."),
    key(Blob, "container", Text, AZURE, None, "images", "The container. It must be there."),
    key(
        Blob,
        "prefix",
        Text,
        CLOUDS,
        Some(""),
        "flames/blobs",
        "What the names of all objects begin with, so that a bucket can be shared.",
    ),
    key(
        Blob,
        "endpoint",
        Url,
        CLOUDS,
        None,
        "https://s3.example.org",
        "Where the server is [default: the cloud's own].",
    ),
    set(
        Blob,
        "region",
        Text,
        S3,
        "us-east-1",
        "The region. Servers that are not Amazon's mostly want `us-east-1`.",
    ),
    set(
        Blob,
        "virtual_hosted",
        Switch,
        S3,
        "false",
        "Whether the bucket is part of the host name (`bucket.host`) instead of the path.",
    ),
    key(
        Blob,
        "access_key",
        Text,
        S3,
        None,
        "AKIAIOSFODNN7EXAMPLE",
        "The access key [default, with `secret_key`: the role of this machine].",
    ),
    key(Blob, "secret_key", Secret, S3, None, "/run/secrets/flames-s3", "The secret key."),
    key(
        Blob,
        "session_token",
        Secret,
        S3,
        None,
        "/run/secrets/flames-s3-session",
        "The token that goes with temporary keys.",
    ),
    key(
        Blob,
        "service_account_key",
        Secret,
        &["gcs"],
        None,
        "/run/secrets/flames-gcs.json",
        "The JSON key of a service account [default: the account of this machine].",
    ),
    key(
        Blob,
        "account_key",
        Secret,
        AZURE,
        None,
        "/run/secrets/flames-azure",
        "The account's access key [default: the managed identity of this machine].",
    ),
    set(Blob, "connect_deadline", Duration, CLOUDS, "5s", "How long making a connection may take."),
    set(Blob, "call_deadline", Duration, CLOUDS, "30s", "How long one request may take."),
];
