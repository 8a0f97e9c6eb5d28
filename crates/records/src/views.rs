//! How an operator can see records as tables, as data: an adapter whose backend has views makes them from this.

/// A view over the records whose keys have one form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewDefinition {
    /// The view's name: of `a` to `z`, `0` to `9` and `_`.
    pub name: &'static str,
    /// The form of the keys: text that stands for itself, and `{name}` for one part without `/`, which becomes a column of that name.
    pub keys: &'static str,
    /// The columns from within the values.
    pub columns: &'static [ViewColumn],
}

/// A column of a [`ViewDefinition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewColumn {
    /// Its name.
    pub name: &'static str,
    /// The way to the value, from the outside to the inside. Where it leads nowhere, the column is null.
    pub path: &'static [&'static str],
    /// As what it shows.
    pub kind: ViewColumnKind,
}

/// As what a column shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewColumnKind {
    /// Text.
    Text,
    /// A number.
    Number,
    /// JSON, for what has parts.
    Json,
}

const fn text(name: &'static str, path: &'static [&'static str]) -> ViewColumn {
    ViewColumn { name, path, kind: ViewColumnKind::Text }
}

const fn number(name: &'static str, path: &'static [&'static str]) -> ViewColumn {
    ViewColumn { name, path, kind: ViewColumnKind::Number }
}

const fn json(name: &'static str, path: &'static [&'static str]) -> ViewColumn {
    ViewColumn { name, path, kind: ViewColumnKind::Json }
}

/// The views of all records, one for each kind that a key of its own tells. What has no value (indexes, due entries) has none.
pub fn views() -> &'static [ViewDefinition] {
    VIEWS
}

const VIEWS: &[ViewDefinition] = &[
    ViewDefinition {
        name: "vms",
        keys: "{project}/vm/{vm}",
        columns: &[
            text("name", &["record", "name"]),
            text("desired", &["record", "desired"]),
            number("run", &["record", "run"]),
            number("generation", &["record", "generation"]),
            text("incarnation", &["record", "incarnation"]),
            text("image", &["record", "spec", "image"]),
            json("labels", &["record", "labels"]),
            text("unplaced", &["record", "unplaced", "message"]),
            text("created_at", &["record", "created_at"]),
            text("updated_at", &["record", "updated_at"]),
        ],
    },
    ViewDefinition {
        name: "incarnations",
        keys: "{project}/vm/{vm}/inc/{incarnation}",
        columns: &[
            text("controller", &["record", "controller"]),
            text("state", &["record", "state"]),
            number("run", &["record", "run"]),
            number("sequence", &["record", "sequence"]),
            text("reason", &["record", "reason", "message"]),
            json("exit", &["record", "exit"]),
            json("resources", &["record", "resources"]),
            text("address", &["record", "address", "ipv4"]),
            json("timeline", &["record", "timeline"]),
            text("created_at", &["record", "created_at"]),
            text("released_at", &["record", "released_at"]),
        ],
    },
    ViewDefinition {
        name: "deleted_vms",
        keys: "{project}/gone/{vm}",
        columns: &[
            text("name", &["record", "vm", "name"]),
            text("deleted_at", &["record", "vm", "deleted_at"]),
        ],
    },
    ViewDefinition {
        name: "images",
        keys: "{project}/image/{image}",
        columns: &[
            text("digest", &["record", "manifest", "digest"]),
            text("kind", &["record", "manifest", "kind"]),
            number("size_bytes", &["record", "manifest", "size_bytes"]),
            text("created_at", &["record", "created_at"]),
        ],
    },
    ViewDefinition {
        name: "snapshots",
        keys: "{project}/snapshot/{snapshot}",
        columns: &[
            text("name", &["record", "name"]),
            text("vm", &["record", "vm"]),
            text("state", &["record", "state"]),
            text("reason", &["record", "reason", "message"]),
            number("logical_bytes", &["record", "sizes", "logical_bytes"]),
            number("stored_bytes", &["record", "sizes", "stored_bytes"]),
            text("manifest", &["record", "manifest"]),
            text("created_at", &["record", "created_at"]),
        ],
    },
    ViewDefinition {
        name: "disks",
        keys: "{project}/disk/{vm}",
        columns: &[
            text("disk", &["record", "id"]),
            text("controller", &["record", "controller"]),
            number("size_mib", &["record", "size_mib"]),
            text("created_at", &["record", "created_at"]),
        ],
    },
    ViewDefinition {
        name: "requests",
        keys: "{project}/idem/{digest}",
        columns: &[json("outcome", &["record", "outcome"]), text("expires_at", &["record", "expires_at"])],
    },
    ViewDefinition {
        name: "controllers",
        keys: "system/controller/{controller}",
        columns: &[
            text("name", &["record", "name"]),
            json("capacity", &["record", "capacity"]),
            json("labels", &["record", "labels"]),
            json("driver", &["record", "driver"]),
            json("address_block", &["record", "address_block"]),
            text("cordoned", &["record", "cordoned"]),
            text("registered_at", &["record", "registered_at"]),
        ],
    },
    ViewDefinition {
        name: "allocations",
        keys: "system/allocation/{controller}",
        columns: &[
            number("vcpus", &["record", "reserved", "vcpus"]),
            number("memory_mib", &["record", "reserved", "memory_mib"]),
            number("disk_mib", &["record", "reserved", "disk_mib"]),
            number("vms", &["record", "reserved", "vms"]),
            json("addresses", &["record", "addresses"]),
        ],
    },
    ViewDefinition {
        name: "leases",
        keys: "system/lease/{controller}",
        columns: &[
            number("renewals", &["record", "renewals"]),
            number("duration_ms", &["record", "duration_ms"]),
        ],
    },
    ViewDefinition {
        name: "assignments",
        keys: "system/assignment/{controller}/{incarnation}",
        columns: &[
            text("project", &["record", "project"]),
            text("vm", &["record", "vm"]),
            text("name", &["record", "name"]),
            text("wanted", &["record", "wanted"]),
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::keys;

    fn matches(form: &str, key: &str) -> bool {
        let (mut form, mut key) = (form.split('/'), key.split('/'));
        loop {
            match (form.next(), key.next()) {
                (None, None) => return true,
                (Some(part), Some(text)) if part.starts_with('{') && !text.is_empty() => {}
                (Some(part), Some(text)) if part == text => {}
                _ => return false,
            }
        }
    }

    #[test]
    fn a_key_of_a_kind_is_seen_in_its_view_and_in_no_other() {
        let project = flames_model::ProjectName::new("default").unwrap();
        let ids = flames_clock::UuidSource::new(
            std::sync::Arc::new(flames_clock::SystemClock::new()),
            std::sync::Arc::new(flames_clock::SystemRandom),
        );
        use flames_clock::IdSource as _;
        let vm = flames_model::VmId::from_uuid(ids.next_id());
        let incarnation = flames_model::IncarnationId::from_uuid(ids.next_id());
        let controller = flames_model::ControllerId::from_uuid(ids.next_id());
        let image = flames_model::ImageName::new("debian").unwrap();
        let snapshot = flames_model::SnapshotId::from_uuid(ids.next_id());
        for (view, key) in [
            ("vms", keys::vm(&project, vm)),
            ("incarnations", keys::incarnation(&project, vm, incarnation)),
            ("deleted_vms", keys::tombstone(&project, vm)),
            ("images", keys::image(&project, &image)),
            ("snapshots", keys::snapshot(&project, snapshot)),
            ("disks", keys::disk(&project, vm)),
            ("controllers", keys::controller(controller)),
            ("allocations", keys::allocation(controller)),
            ("leases", keys::lease(controller)),
            ("assignments", keys::assignment(controller, incarnation)),
        ] {
            let key = key.unwrap().to_string();
            let seen: Vec<&str> =
                views().iter().filter(|view| matches(view.keys, &key)).map(|view| view.name).collect();
            assert_eq!(seen, [view], "{key}");
        }
    }

    #[test]
    fn no_name_stands_twice() {
        let names: BTreeSet<&str> = views().iter().map(|view| view.name).collect();
        assert_eq!(names.len(), views().len());
        for view in views() {
            let mut taken: BTreeSet<&str> = ["key", "version", "value"].into();
            let parts = view.keys.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
            assert!(
                parts.chain(view.columns.iter().map(|column| column.name)).all(|name| taken.insert(name))
            );
        }
    }
}
