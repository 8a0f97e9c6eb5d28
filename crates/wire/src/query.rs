//! What stands behind the `?` of a path: read by the server, written by the client.

use std::collections::BTreeMap;

use flames_error::{Error, Result};
use flames_model::{Labels, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::{DeviceNodes, ImageKind, VmState, codes};

macro_rules! query {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
        #[serde(deny_unknown_fields)]
        #[into_params(parameter_in = Query)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind),* }
    };
}

query!(
    /// Which VMs to list.
    #[derive(Default)]
    VmListQuery {
        /// Only VMs that have all these labels: `key=value`, several joined by `,`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(pattern = "^[a-zA-Z0-9._/-]{1,63}=[a-zA-Z0-9._-]{0,63}$", example = "team=web")]
        labels: Option<String>,
        /// Only VMs that look so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(inline)]
        state: Option<VmState>,
        /// Only VMs whose current incarnation is on this controller.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(pattern = "^ctl_[0-9a-f]{32}$")]
        controller: Option<String>,
        /// Where the page begins: `next_cursor` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(pattern = "^vm_[0-9a-f]{32}$")]
        cursor: Option<String>,
        /// The most entries: 50 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(minimum = 1, maximum = 200)]
        limit: Option<u32>,
    }
);
query!(
    /// Which page to read.
    #[derive(Default)]
    PageQuery {
        /// Where the page begins: `next_cursor` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(min_length = 1, max_length = 200)]
        cursor: Option<String>,
        /// The most entries: 50 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(minimum = 1, maximum = 200)]
        limit: Option<u32>,
    }
);

query!(
    /// Which snapshots to list.
    #[derive(Default)]
    SnapshotListQuery {
        /// Only snapshots of this VM, by id. It may be gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(pattern = "^vm_[0-9a-f]{32}$")]
        vm: Option<String>,
        /// Where the page begins: `next_cursor` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(pattern = "^snap_[0-9a-f]{32}$")]
        cursor: Option<String>,
        /// The most entries: 50 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(minimum = 1, maximum = 200)]
        limit: Option<u32>,
    }
);

query!(
    /// How long to wait for a snapshot.
    #[derive(Default)]
    SnapshotWaitQuery {
        /// How long to wait at most, in milliseconds: 10000 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(minimum = 0, maximum = 3600000)]
        timeout_ms: Option<u64>,
    }
);

query!(
    /// What to wait for.
    WaitQuery {
        /// A state (`running`, `paused`, `stopped`, `failed`, `deleted`, …), `ended` (the run is over), `released` (and has given
        /// back all that it held), or `network` (its machine is under what `spec.network` says).
        #[serde(rename = "for")]
        #[param(pattern = "^(pending|scheduled|preparing|starting|restoring|running|pausing|paused|stopping|stopped|failed|lost|restarting|deleting|deleted|ended|released|network)$", example = "running")]
        hope: String,
        /// How long at most, in milliseconds: 10,000 when absent. What is longer than the server's longest wait is cut to it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(minimum = 0, maximum = 3600000)]
        timeout_ms: Option<u64>,
    }
);

/// A time, with a sentence for whoever wrote something else.
fn moment<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Timestamp>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = |_| serde::de::Error::custom("a time is RFC 3339, as 2026-01-31T12:00:00Z");
    text.parse().map(Some).map_err(wrong)
}

query!(
    /// Which output to read.
    #[derive(Default)]
    LogQuery {
        /// Go on as it grows.
        #[serde(default)]
        #[param(default = false, required = false)]
        follow: bool,
        /// Only output at or behind this time.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "moment")]
        #[param(value_type = Option<String>, format = DateTime)]
        since: Option<Timestamp>,
        /// Only this many lines at the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(minimum = 0, maximum = 1000000000)]
        tail: Option<u64>,
    }
);

query!(
    /// How to read a console.
    ConsoleQuery {
        /// Go on as it grows.
        #[serde(default)]
        #[param(default = false, required = false)]
        follow: bool,
    }
);

query!(
    /// Which process to attach to.
    #[derive(Default)]
    AttachQuery {
        /// The process; `main`, the workload, when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(pattern = "^[A-Za-z0-9_-]{1,64}$")]
        process: Option<String>,
        /// From which offset of its output on.
        #[serde(default)]
        #[param(default = 0, minimum = 0, required = false)]
        from: u64,
    }
);

query!(
    /// Which events to read.
    #[derive(Default)]
    EventQuery {
        /// Only events behind this position, or `newest`: only those that come from now on. Absent: from the oldest one kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(pattern = "^([0-9]{1,19}-[0-9]{1,19}|newest)$")]
        after: Option<String>,
        /// Stay connected and send each further event as it comes, as server-sent events.
        #[serde(default)]
        #[param(default = false, required = false)]
        follow: bool,
        /// The most events of a page: 100 when absent. Following has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(minimum = 1, maximum = 1000)]
        limit: Option<u32>,
    }
);

query!(
    /// What to import.
    ImageImport {
        /// The image's name.
        #[param(pattern = "^[a-z0-9_][a-z0-9._-]*(/[a-z0-9_][a-z0-9._-]*)*(:[a-z0-9_][a-z0-9._-]*(/[a-z0-9_][a-z0-9._-]*)*)?$", min_length = 1, max_length = 200)]
        name: String,
        /// What it is for.
        #[param(inline)]
        kind: ImageKind,
        /// The digest of the body. When given, a body with another one is refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(pattern = "^sha256:[0-9a-f]{64}$")]
        digest: Option<String>,
        /// What becomes of device nodes in an archive. A guest's `/dev` is made by its kernel: few need any.
        #[serde(default)]
        #[param(inline, required = false)]
        device_nodes: DeviceNodes,
    }
);

query!(
    /// How to remove a controller.
    ControllerDelete {
        /// An operator confirms that its host is dead: what ran there is ended.
        #[serde(default)]
        #[param(default = false, required = false)]
        confirmed_dead: bool,
    }
);

query!(
    /// Which file.
    FilePath {
        /// An absolute path in the guest.
        #[param(pattern = "^/[^\\u0000]*$", min_length = 1, max_length = 4096)]
        path: String,
    }
);

query!(
    /// What to look at.
    FileStat {
        /// An absolute path in the guest.
        #[param(pattern = "^/[^\\u0000]*$", min_length = 1, max_length = 4096)]
        path: String,
        /// Whether a symbolic link is followed.
        #[serde(default)]
        #[param(default = false, required = false)]
        follow: bool,
    }
);

query!(
    /// Which directory to list.
    FileList {
        /// An absolute path in the guest.
        #[param(pattern = "^/[^\\u0000]*$", min_length = 1, max_length = 4096)]
        path: String,
        /// Only names behind this one: `next_cursor` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(min_length = 1, max_length = 255)]
        cursor: Option<String>,
        /// The most entries: 1,000 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(minimum = 1, maximum = 10000)]
        limit: Option<u32>,
    }
);

query!(
    /// Where to write.
    FileWrite {
        /// An absolute path in the guest.
        #[param(pattern = "^/[^\\u0000]*$", min_length = 1, max_length = 4096)]
        path: String,
        /// Permission bits, as a decimal number (420 is `0644`). Absent: those of the file that is replaced, else 420.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(minimum = 0, maximum = 4095)]
        mode: Option<u32>,
        /// Fail when the file is there, in place of replacing it.
        #[serde(default)]
        #[param(default = false, required = false)]
        keep_existing: bool,
    }
);

query!(
    /// What to remove.
    FileRemove {
        /// An absolute path in the guest.
        #[param(pattern = "^/[^\\u0000]*$", min_length = 1, max_length = 4096)]
        path: String,
        /// Whether a directory goes with what is in it.
        #[serde(default)]
        #[param(default = false, required = false)]
        recursive: bool,
    }
);

query!(
    /// What to rename.
    FileMove {
        /// The present path, absolute.
        #[param(pattern = "^/[^\\u0000]*$", min_length = 1, max_length = 4096)]
        from: String,
        /// The new path, absolute; a file that stands there is replaced.
        #[param(pattern = "^/[^\\u0000]*$", min_length = 1, max_length = 4096)]
        to: String,
    }
);

query!(
    /// Which directory to make.
    MakeDirectory {
        /// An absolute path in the guest.
        #[param(pattern = "^/[^\\u0000]*$", min_length = 1, max_length = 4096)]
        path: String,
        /// Whether missing parents are made too, and an existing directory is no error.
        #[serde(default)]
        #[param(default = false, required = false)]
        parents: bool,
        /// Permission bits, as a decimal number. Absent: 493 (`0755`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[param(minimum = 0, maximum = 4095)]
        mode: Option<u32>,
    }
);

/// Reads a filter of labels (`key=value`, several joined by `,`). `InvalidInput` naming `labels`.
pub fn parse_label_filter(text: &str) -> Result<Labels> {
    let refuse = || {
        Error::invalid("wire.labels", "labels", "A label filter is `key=value`, several joined by `,`.")
            .with_code(codes::INVALID_FIELD)
    };
    let mut pairs = BTreeMap::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(refuse)?;
        if pairs.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(refuse());
        }
    }
    Labels::new(pairs, "labels").map_err(|error| error.with_code(codes::INVALID_FIELD))
}

/// The filter that takes what has all these labels; none when there are none.
pub fn label_filter(labels: &BTreeMap<String, String>) -> Option<String> {
    let parts: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    (!parts.is_empty()).then(|| parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_filter_reads_back_as_it_was_written() {
        let labels =
            BTreeMap::from([("a/b".to_owned(), String::new()), ("team".to_owned(), "web".to_owned())]);
        let text = label_filter(&labels).unwrap();
        assert_eq!(parse_label_filter(&text).unwrap().pairs(), &labels);
        assert_eq!(label_filter(&BTreeMap::new()), None);
        for wrong in ["", "a", "a=b,", "a=b,a=c", "a=b=c\u{7}"] {
            assert_eq!(parse_label_filter(wrong).unwrap_err().field(), Some("labels"), "{wrong}");
        }
    }
}
