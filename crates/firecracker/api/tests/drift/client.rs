//! The client against the table.

use std::collections::{BTreeMap, BTreeSet};

use flames_firecracker_api::*;
use serde::Serialize;
use serde_json::Value;

use crate::Nothing;
use crate::facts::{NEVER_SENT, definitions, enumerations, operations};
use crate::samples::{PRIVATE, samples};

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

pub(crate) async fn every_operation_of_the_table_is_one_that_the_client_calls(_: &Nothing) {
    let mut called = BTreeMap::new();
    for operation in operation::ALL {
        let method = http_name(operation.method);
        let since = called.insert(format!("{method} {}", operation.path), operation.since);
        assert!(since.is_none_or(|since| since == operation.since), "{}", operation.name);
    }
    let table: BTreeMap<_, _> =
        operations().into_iter().map(|(operation, (_, since))| (operation, since)).collect();
    assert_eq!(called, table);
    let names: BTreeSet<_> = operation::ALL.iter().map(|operation| operation.name).collect();
    assert_eq!(names.len(), operation::ALL.len(), "each has a name of its own");
}

fn http_name(verb: operation::Verb) -> &'static str {
    match verb {
        operation::Verb::Get => "get",
        operation::Verb::Put => "put",
        operation::Verb::Patch => "patch",
        operation::Verb::Delete => "delete",
    }
}

pub(crate) async fn a_type_has_exactly_the_properties_of_its_definition(_: &Nothing) {
    let definitions = definitions();
    let mut seen: BTreeSet<&str> = PRIVATE.iter().copied().collect();
    for sample in samples() {
        let mut expected: BTreeSet<String> = definitions[sample.definition].keys().cloned().collect();
        for (definition, property) in NEVER_SENT {
            assert!(*definition != sample.definition || expected.remove(*property), "{property}");
        }
        assert_eq!(keys(&sample.full), expected, "{}", sample.definition);
        assert!(seen.insert(sample.definition));
    }
    assert_eq!(seen, definitions.keys().copied().collect(), "each definition of the table has a type");

    let patch = MachineConfigPatch {
        vcpu_count: Some(1),
        mem_size_mib: Some(1),
        smt: Some(true),
        cpu_template: Some("None".into()),
        track_dirty_pages: Some(true),
        huge_pages: Some(HugePages::None),
    };
    let patch = serde_json::to_value(patch).unwrap();
    assert_eq!(keys(&patch), definitions["MachineConfiguration"].keys().cloned().collect());
    assert_eq!(serde_json::to_value(MachineConfigPatch::default()).unwrap(), serde_json::json!({}));
}

pub(crate) async fn a_type_without_anything_optional_has_what_is_required_and_nothing_newer_than_the_oldest_version(
    _: &Nothing,
) {
    let definitions = definitions();
    for sample in samples() {
        let properties = &definitions[sample.definition];
        let sent = keys(&sample.least);
        let is_new = properties.values().all(|property| property.since > OLDEST);
        for (name, property) in properties {
            assert!(!property.required || sent.contains(name), "{}.{name}", sample.definition);
            // A definition that is new as a whole is only sent by what is new itself.
            assert!(
                is_new || property.since == OLDEST || !sent.contains(name),
                "{}.{name} would be refused by {OLDEST}",
                sample.definition
            );
        }
    }
}

pub(crate) async fn an_enumeration_has_exactly_the_values_of_its_property(_: &Nothing) {
    fn values<T: Serialize>(all: &[T]) -> BTreeSet<String> {
        all.iter().map(|value| serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()).collect()
    }
    use InstanceState::{NotStarted, Paused, Running};
    use LogLevel::{Debug, Error, Info, Off, Trace, Warning};
    let ours = [
        ("Drive", "cache_type", values(&[CacheType::Unsafe, CacheType::Writeback])),
        ("Drive", "io_engine", values(&[IoEngine::Sync, IoEngine::Async])),
        ("InstanceInfo", "state", values(&[NotStarted, Running, Paused])),
        ("Logger", "level", values(&[Error, Warning, Info, Debug, Trace, Off])),
        ("MachineConfiguration", "huge_pages", values(&[HugePages::None, HugePages::TwoMebibytes])),
        ("MemoryBackend", "backend_type", values(&[MemoryBackendType::File, MemoryBackendType::Uffd])),
        ("MmdsConfig", "version", values(&[MmdsVersion::V1, MmdsVersion::V2])),
        ("SnapshotCreateParams", "snapshot_type", values(&[SnapshotType::Full, SnapshotType::Diff])),
    ];
    let mut table = enumerations();
    table.retain(|(definition, _), _| !PRIVATE.contains(&definition.as_str()));
    let ours = ours
        .into_iter()
        .map(|(definition, property, values)| ((definition.to_owned(), property.to_owned()), values));
    assert_eq!(ours.collect::<BTreeMap<_, _>>(), table);
}
