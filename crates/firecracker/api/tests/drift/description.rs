//! The table against descriptions of the API, as they are in the sources of Firecracker's releases.

use std::collections::{BTreeMap, BTreeSet};

use flames_firecracker_api::Version;

use crate::facts::{GAPS_OF_THE_DESCRIPTION, PLAIN, definitions, enumerations, operations};
use crate::{DESCRIPTIONS, Nothing};

/// What is compared of a description.
#[derive(Debug, Default, PartialEq, Eq)]
struct Description {
    version: String,
    /// `method path`, with `{id}` for each parameter → the body's definition.
    operations: BTreeMap<String, Option<String>>,
    /// Definition → property → whether it is required.
    definitions: BTreeMap<String, BTreeMap<String, bool>>,
    /// Definition, property → values.
    enumerations: BTreeMap<(String, String), BTreeSet<String>>,
}

/// Where a line stands, by indentation: a reader of just the YAML that these descriptions are written in. What is written
/// otherwise goes unread, and is then missed by the comparison.
#[derive(Default)]
struct Place {
    section: String,
    item: String,
    part: String,
    property: String,
    in_values: bool,
}

impl Description {
    fn read(text: &str) -> Self {
        let mut read = Self::default();
        let mut place = Place::default();
        let mut required = BTreeSet::new();
        for line in text.lines() {
            let content = line.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let indentation = line.len() - line.trim_start().len();
            if indentation == 0 {
                place = Place { section: content.trim_end_matches(':').to_owned(), ..Place::default() };
            }
            match place.section.as_str() {
                "info" => {
                    if let Some(version) = content.strip_prefix("version: ") {
                        read.version = version.to_owned();
                    }
                }
                "paths" => read.read_path(&mut place, indentation, content),
                "definitions" => read.read_definition(&mut place, &mut required, indentation, content),
                _ => {}
            }
        }
        for (definition, property) in required {
            let properties = read.definitions.get_mut(&definition).unwrap();
            *properties.get_mut(&property).unwrap_or_else(|| panic!("{definition}.{property}")) = true;
        }
        read
    }

    fn read_path(&mut self, place: &mut Place, indentation: usize, content: &str) {
        match indentation {
            2 => place.item = with_plain_parameters(content.trim_end_matches(':')),
            4 => {
                place.property = format!("{} {}", content.trim_end_matches(':'), place.item);
                self.operations.insert(place.property.clone(), None);
            }
            6 if !content.starts_with("- ") => place.part = content.trim_end_matches(':').to_owned(),
            _ if place.part == "parameters" => {
                if let Some(definition) = reference(content) {
                    self.operations.insert(place.property.clone(), Some(definition));
                }
            }
            _ => {}
        }
    }

    fn read_definition(
        &mut self,
        place: &mut Place,
        required: &mut BTreeSet<(String, String)>,
        indentation: usize,
        content: &str,
    ) {
        match indentation {
            2 => {
                let item = content.trim_end_matches(':').to_owned();
                self.definitions.insert(item.clone(), BTreeMap::new());
                *place = Place { section: place.section.clone(), item, ..Place::default() };
            }
            4 => place.part = content.split(':').next().unwrap_or_default().to_owned(),
            6 if place.part == "required" => {
                if let Some(property) = content.strip_prefix("- ") {
                    required.insert((place.item.clone(), property.to_owned()));
                }
            }
            6 if place.part == "properties" => {
                place.property = content.trim_end_matches(':').to_owned();
                place.in_values = false;
                self.definitions.get_mut(&place.item).unwrap().insert(place.property.clone(), false);
            }
            8 if place.part == "properties" => {
                place.in_values = content == "enum:";
                if let Some(values) = content.strip_prefix("enum: [").and_then(|rest| rest.strip_suffix(']'))
                {
                    values.split(',').for_each(|value| self.insert_value(place, value));
                }
            }
            10 if place.in_values => {
                if let Some(value) = content.strip_prefix("- ") {
                    self.insert_value(place, value);
                }
            }
            _ => {}
        }
    }

    fn insert_value(&mut self, place: &Place, value: &str) {
        self.enumerations
            .entry((place.item.clone(), place.property.clone()))
            .or_default()
            .insert(value.trim().trim_matches('"').to_owned());
    }
}

/// `{drive_id}` and the like become `{id}`.
fn with_plain_parameters(path: &str) -> String {
    match (path.find('{'), path.find('}')) {
        (Some(start), Some(end)) => format!("{}{{id}}{}", &path[..start], &path[end + 1..]),
        _ => path.to_owned(),
    }
}

fn reference(content: &str) -> Option<String> {
    let definition = content.strip_prefix("$ref: \"#/definitions/")?;
    Some(definition.trim_end_matches('"').to_owned())
}

fn given() -> Vec<(Version, Description)> {
    let paths = std::env::var_os(DESCRIPTIONS).unwrap();
    std::env::split_paths(&paths)
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let description = Description::read(&text);
            let version: Version = description.version.parse().unwrap_or_else(|_| panic!("{path:?}"));
            assert_eq!(version.refusal(), None, "{path:?}");
            (version, description)
        })
        .collect()
}

pub(crate) async fn a_description_of_another_form_is_not_taken_for_one(_: &Nothing) {
    let read = Description::read("{\"swagger\": \"2.0\"}\n# paths:\n  /a:\n    get:\n");
    assert_eq!(read, Description::default());
    let read = Description::read(
        "info:\n  version: 1.16.1\npaths:\n  /a/{b_id}:\n    put:\n      parameters:\n        - name: body\n          schema:\n            \
         $ref: \"#/definitions/A\"\n      responses:\n        default:\n          schema:\n            $ref: \"#/definitions/E\"\n\
         definitions:\n  A:\n    required:\n      - x\n    description:\n      y: no property.\n    properties:\n      x:\n        \
         enum: [\"1\", 2]\n      z:\n        enum:\n          - 3\n",
    );
    assert_eq!(read.version, "1.16.1");
    assert_eq!(read.operations, BTreeMap::from([("put /a/{id}".to_owned(), Some("A".to_owned()))]));
    let properties = BTreeMap::from([("x".to_owned(), true), ("z".to_owned(), false)]);
    assert_eq!(read.definitions, BTreeMap::from([("A".to_owned(), properties)]));
    let values = |property: &str| read.enumerations[&("A".to_owned(), property.to_owned())].len();
    assert_eq!((values("x"), values("z")), (2, 1));
}

pub(crate) async fn a_release_has_the_operations_of_the_table(_: &Nothing) {
    for (version, description) in given() {
        let table: BTreeMap<_, _> = operations()
            .into_iter()
            .filter(|(operation, (_, since))| {
                *since <= version && !GAPS_OF_THE_DESCRIPTION.contains(&operation.as_str())
            })
            .map(|(operation, (body, _))| (operation, body))
            .collect();
        assert_eq!(description.operations, table, "{version}");
    }
}

pub(crate) async fn a_release_has_the_definitions_and_properties_of_the_table(_: &Nothing) {
    for (version, mut description) in given() {
        for plain in PLAIN {
            assert!(description.definitions.remove(*plain).is_some(), "{version}: {plain}");
        }
        let mut table = BTreeMap::new();
        for (definition, properties) in definitions() {
            let properties: BTreeMap<_, _> = properties
                .into_iter()
                .filter(|(_, property)| property.since <= version)
                .map(|(name, property)| (name, property.required))
                .collect();
            // One without any property yet is not there yet.
            if !properties.is_empty() {
                table.insert(definition.to_owned(), properties);
            }
        }
        assert_eq!(description.definitions, table, "{version}");
    }
}

pub(crate) async fn a_release_has_the_enumerations_of_the_table(_: &Nothing) {
    for (version, mut description) in given() {
        description.enumerations.retain(|(definition, _), _| !PLAIN.contains(&definition.as_str()));
        assert_eq!(description.enumerations, enumerations(), "{version}");
    }
}
