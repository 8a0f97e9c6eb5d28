//! The client's operations and types against a table of facts, always; and the table against the description of a release's API,
//! `src/firecracker/swagger/firecracker.yaml` of its sources, where `FLAMES_FIRECRACKER_API` names one (or several, as `PATH` does).
#![allow(clippy::unwrap_used)]

mod client;
mod description;
mod facts;
mod samples;

use std::process::ExitCode;

use flames_conformance_runner::{Row, Suite, Time, cases, table};

/// Names descriptions to compare with.
const DESCRIPTIONS: &str = "FLAMES_FIRECRACKER_API";

/// Nothing is needed by a case but its name.
pub(crate) struct Nothing;

fn main() -> ExitCode {
    let rows: Vec<Row<Box<Nothing>>> = table![
        client:
            every_operation_of_the_table_is_one_that_the_client_calls,
            a_type_has_exactly_the_properties_of_its_definition,
            a_type_without_anything_optional_has_what_is_required_and_nothing_newer_than_the_oldest_version,
            an_enumeration_has_exactly_the_values_of_its_property;
        description:
            a_description_of_another_form_is_not_taken_for_one,
            a_release_has_the_operations_of_the_table if description,
            a_release_has_the_definitions_and_properties_of_the_table if description,
            a_release_has_the_enumerations_of_the_table if description
    ];
    let lacks = |capability: &str| match capability {
        "description" => std::env::var_os(DESCRIPTIONS)
            .is_none_or(|paths| paths.is_empty())
            .then(|| format!("{DESCRIPTIONS} names no firecracker.yaml of a release's sources")),
        unknown => panic!("no such capability: {unknown}"),
    };
    flames_conformance_runner::run(Suite {
        name: "firecracker-api-drift",
        provider: "table",
        unavailable: None,
        time: Time::Real,
        cases: cases(rows, lacks, || async { Box::new(Nothing) }),
    })
}
