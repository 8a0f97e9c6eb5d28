//! Schemas that an attribute cannot say. The patterns are the model's rules (`flames-model`: `names.rs`, `validate.rs`).

use utoipa::openapi::schema::{AdditionalProperties, Array, Object, ObjectBuilder, Schema, Type};
use utoipa::openapi::{KnownFormat, RefOr, SchemaFormat};

const NO_NUL: &str = "^[^\\u0000]*$";

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn map(names: Object, values: Object) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .property_names(Some(Schema::Object(names)))
        .additional_properties(Some(AdditionalProperties::RefOr(RefOr::T(Schema::Object(values)))))
}

/// Labels.
pub(crate) fn labels() -> Schema {
    let names =
        text().pattern(Some("^[a-zA-Z0-9._/-]{1,63}$")).min_length(Some(1)).max_length(Some(63)).build();
    let values = text().pattern(Some("^[a-zA-Z0-9._-]{0,63}$")).max_length(Some(63)).build();
    let example = serde_json::json!({"team": "web", "tier": "front"});
    let description = "Pairs by which things are chosen: at most 16.";
    Schema::Object(
        map(names, values)
            .max_properties(Some(16))
            .description(Some(description))
            .examples([example])
            .build(),
    )
}

/// Environment variables.
pub(crate) fn variables() -> Schema {
    let names = text().pattern(Some("^[^=\\u0000]+$")).min_length(Some(1)).max_length(Some(256)).build();
    let values = text().pattern(Some(NO_NUL)).build();
    let description = "Environment variables, over the image's own.";
    let example = serde_json::json!({"LANG": "C.UTF-8"});
    Schema::Object(map(names, values).description(Some(description)).examples([example]).build())
}

/// Environment variables that cannot be read back.
pub(crate) fn secret_variables() -> Schema {
    let description =
        "As `env`, for values that must not be read back: answers name them and hold no values.";
    match variables() {
        Schema::Object(mut object) => {
            object.description = Some(description.to_owned());
            object.write_only = Some(true);
            object.examples = vec![serde_json::json!({"TOKEN": "…"})];
            Schema::Object(object)
        }
        other => other,
    }
}

fn words(description: &str) -> Array {
    let mut array = Array::new(text().pattern(Some(NO_NUL)).build());
    array.description = Some(description.to_owned());
    array
}

/// A program with its leading arguments, or none.
pub(crate) fn command() -> Schema {
    let program = text().pattern(Some("^[^\\u0000]+$")).min_length(Some(1)).build();
    let mut array = words(
        "The workload's program and leading arguments. Absent: the image's own; if it has none, the VM stays up without one.",
    );
    array.schema_type = utoipa::openapi::schema::SchemaType::from_iter([Type::Array, Type::Null]);
    array.prefix_items = vec![Schema::Object(program)];
    array.min_items = Some(1);
    array.examples = vec![serde_json::json!(["/bin/sh", "-c"])];
    Schema::Array(array)
}

/// Arguments.
pub(crate) fn arguments() -> Schema {
    let mut array = words("Arguments behind the command (or, without one, in place of the image's own).");
    array.examples = vec![serde_json::json!(["uname -a"])];
    Schema::Array(array)
}

/// What this version takes for `on_host_loss`.
pub(crate) fn on_host_loss() -> Schema {
    let description = "What happens when the VM's host is lost. `wait`: it is `lost` until the host returns or an operator confirms that \
                       it is dead. `restart` is reserved: it needs hosts that run a guardian, which this version does not have.";
    Schema::Object(
        text()
            .enum_values(Some(["wait"]))
            .default(Some(serde_json::json!("wait")))
            .description(Some(description))
            .build(),
    )
}

/// A moment, or none.
pub(crate) fn optional_time() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::SchemaType::from_iter([Type::String, Type::Null]))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
}
