//! The routes, and their description as OpenAPI 3.1.

use std::sync::OnceLock;

use flames_error::{Error, Result};
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, HttpMethod, Info, OpenApi, Ref, RefOr, Required, ResponseBuilder};
use utoipa::{Modify, OpenApi as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::Api;
use crate::routes::{
    controllers, events, files, images, join_tokens, output, processes, snapshots, streams, system,
    transfers, vms, wait,
};

const ABOUT: &str = "Flames runs Firecracker microVMs. Every error is problem details (RFC 9457) with a stable `code`; its `type` \
leads to a page that says what to do. Every change of a record takes an `Idempotency-Key` and is then carried out at most once. Every \
answer has an `X-Request-Id`: the client's own, when it sends one of 1 to 128 printable ASCII characters.";

#[derive(utoipa::OpenApi)]
#[openapi(
    components(schemas(flames_wire::Problem, flames_wire::ExecRequest, flames_wire::Event)),
    tags(
        (name = "vms", description = "VMs"),
        (name = "streams", description = "Streams to guests"),
        (name = "files", description = "Files in guests"),
        (name = "processes", description = "Processes in guests"),
        (name = "events", description = "What happened"),
        (name = "images", description = "Images"),
        (name = "snapshots", description = "Saved guests"),
        (name = "controllers", description = "Hosts"),
        (name = "system", description = "The server itself"),
    ),
    security(("token" = [])),
    modifiers(&Token),
)]
struct Description;

struct Token;

impl Modify for Token {
    fn modify(&self, openapi: &mut OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The token from the server's data folder."))
            .build();
        openapi.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// Routes that are answered soon: they take a place and a limit of time.
pub(crate) fn quick_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(vms::create_vm, vms::list_vms))
        .routes(routes!(vms::get_vm, vms::delete_vm))
        .routes(routes!(vms::start_vm))
        .routes(routes!(vms::stop_vm))
        .routes(routes!(vms::restart_vm))
        .routes(routes!(vms::pause_vm))
        .routes(routes!(vms::resume_vm))
        .routes(routes!(vms::set_labels))
        .routes(routes!(vms::set_network))
        .routes(routes!(files::remove_file))
        .routes(routes!(files::stat_file))
        .routes(routes!(files::list_files))
        .routes(routes!(files::rename_file))
        .routes(routes!(files::make_directory))
        .routes(routes!(processes::list_processes))
        .routes(routes!(processes::signal_process))
        .routes(routes!(images::list_images))
        .routes(routes!(images::get_image, images::remove_image))
        .routes(routes!(snapshots::create_snapshot))
        .routes(routes!(snapshots::list_snapshots))
        .routes(routes!(snapshots::get_snapshot, snapshots::delete_snapshot))
        .routes(routes!(snapshots::restore_snapshot))
        .routes(routes!(controllers::list_controllers))
        .routes(routes!(controllers::get_controller, controllers::remove_controller))
        .routes(routes!(controllers::cordon_controller))
        .routes(routes!(controllers::uncordon_controller))
        .routes(routes!(join_tokens::create_join_token, join_tokens::list_join_tokens))
        .routes(routes!(join_tokens::remove_join_token))
        .routes(routes!(system::get_version))
        .routes(routes!(system::get_health))
        .routes(routes!(system::get_readiness))
        .routes(routes!(system::get_metrics))
        .routes(routes!(system::get_openapi))
        .routes(routes!(system::get_error_page))
}

/// Routes that take as long as they take: they bound themselves.
pub(crate) fn long_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(wait::wait_vm))
        .routes(routes!(snapshots::wait_snapshot))
        .routes(routes!(output::read_logs))
        .routes(routes!(output::read_console))
        .routes(routes!(streams::exec))
        .routes(routes!(streams::attach))
        .routes(routes!(streams::connect_port))
        .routes(routes!(transfers::read_file, transfers::write_file))
        .routes(routes!(events::list_events))
        .routes(routes!(events::list_controller_events))
        .routes(routes!(images::import_image))
}

/// The description of the API.
pub fn openapi() -> OpenApi {
    let mut openapi = Description::openapi();
    openapi.info = Info::new("Flames", flames_wire::API_VERSION);
    openapi.info.description = Some(ABOUT.to_owned());
    openapi.info.license = Some(utoipa::openapi::License::new("Apache-2.0"));
    openapi.merge(quick_routes().into_openapi());
    openapi.merge(long_routes().into_openapi());
    let paths = std::mem::take(&mut openapi.paths.paths);
    for (path, mut item) in paths {
        let operations = [
            (HttpMethod::Get, item.get.as_mut()),
            (HttpMethod::Post, item.post.as_mut()),
            (HttpMethod::Put, item.put.as_mut()),
            (HttpMethod::Delete, item.delete.as_mut()),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation {
                complete(&path, &method, operation);
            }
        }
        openapi.paths.paths.insert(path, item);
    }
    openapi
}

/// The description as the server sends it, made once.
pub(crate) fn text() -> Result<&'static str> {
    static TEXT: OnceLock<String> = OnceLock::new();
    if let Some(text) = TEXT.get() {
        return Ok(text);
    }
    let text = openapi().to_json().map_err(|error| {
        Error::internal("http.openapi", "the description cannot be encoded").with_source(error)
    })?;
    Ok(TEXT.get_or_init(|| text))
}

/// An image's name (`flames-model`: `names.rs`).
const IMAGE_NAME: &str =
    "^[a-z0-9_][a-z0-9._-]*(/[a-z0-9_][a-z0-9._-]*)*(:[a-z0-9_][a-z0-9._-]*(/[a-z0-9_][a-z0-9._-]*)*)?$";
/// A controller's id.
const CONTROLLER_ID: &str = "^ctl_[0-9a-f]{32}$";

/// Adds what follows from an operation's path and method: its placeholders, the headers of changes, its errors.
fn complete(path: &str, method: &HttpMethod, operation: &mut Operation) {
    let changes = *method != HttpMethod::Get;
    let in_guest = path.contains("/files") || path.contains("/processes");
    let mut parameters = placeholders(path);
    // A token is told once, and cannot be told again to a repetition.
    if changes && !in_guest && !path.starts_with("/v1/join-tokens") {
        parameters.push(idempotency_key());
        if path.starts_with("/v1/vms/") {
            parameters.push(if_match());
        }
    }
    let known = operation.parameters.get_or_insert_default();
    known.extend(parameters.into_iter().map(RefOr::T));
    for parameter in known {
        if let RefOr::T(parameter) = parameter
            && parameter.name == "cursor"
        {
            // The cursors of lists of one kind are names or ids of that kind.
            let schema = match path {
                "/v1/images" => text_schema(IMAGE_NAME, 200),
                "/v1/controllers" => text_schema(CONTROLLER_ID, 36),
                _ => continue,
            };
            parameter.schema = Some(RefOr::T(schema));
        }
    }
    for (status, description) in failures(path, changes, in_guest, operation.request_body.is_some()) {
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new()
            .description(description)
            .content(flames_wire::Problem::MEDIA_TYPE, problem)
            .build();
        operation.responses.responses.insert(status.to_owned(), RefOr::T(response));
    }
}

fn failures(path: &str, changes: bool, in_guest: bool, has_body: bool) -> Vec<(&'static str, &'static str)> {
    let mut failures = vec![("500", "A defect of Flames.")];
    if path == "/healthz" || path == "/openapi.json" {
        failures.push(("503", "The server works on as many requests as it takes, or is shutting down."));
        return failures;
    }
    failures.extend([
        ("400", "The request is not allowed as it is: the field and its range are named."),
        ("403", "Not allowed, or the Host or Origin header is another's."),
        ("503", "A part of the control plane, or the VM's host, cannot be reached right now."),
        ("504", "The request took too long."),
    ]);
    if !path.starts_with("/docs/") {
        failures.push(("401", "The token is missing or wrong."));
    }
    // What a repeated key once made may be gone, too.
    if path.contains('{') || changes {
        failures.push(("404", "What the request names is not there."));
    }
    if path.contains("/{vm}/") || changes {
        failures.push(("409", "The request does not fit what is there now."));
        failures.push(("422", "The idempotency key came with another body, or the host cannot do that."));
        failures.push(("429", "A limit is used up."));
    }
    if changes && path.starts_with("/v1/vms/") && !in_guest {
        failures.push(("412", "The record is of another generation than If-Match names."));
    }
    if changes {
        failures.push(("413", "The body is larger than this path takes."));
    }
    if has_body {
        failures.push(("415", "The body's media type is not one that this path takes."));
    }
    failures
}

fn text_schema(pattern: &str, most: usize) -> Schema {
    let schema = ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern));
    Schema::Object(schema.min_length(Some(1)).max_length(Some(most)).build())
}

fn parameter(name: &str, place: ParameterIn, required: bool, description: &str, schema: Schema) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(if required { Required::True } else { Required::False })
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

fn placeholders(path: &str) -> Vec<Parameter> {
    let named = |name: &str, description: &str, schema: Schema| {
        parameter(name, ParameterIn::Path, true, description, schema)
    };
    let port = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).maximum(Some(65_535)).build();
    let all = [
        named(
            "vm",
            "The VM's id, or its name.",
            text_schema("^(vm_[0-9a-f]{32}|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)$", 63),
        ),
        named("name", "The image's name, percent-encoded (`/` is `%2F`).", text_schema(IMAGE_NAME, 200)),
        named(
            "snapshot",
            "The snapshot's id, or its name.",
            text_schema("^(snap_[0-9a-f]{32}|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)$", 63),
        ),
        named("token", "What the join token is called by.", text_schema("^[0-9a-f]{12}$", 12)),
        named("id", "The controller's id.", text_schema(CONTROLLER_ID, 36)),
        named(
            "process",
            "The process's id; `main` is the workload.",
            text_schema("^[A-Za-z0-9_-]{1,64}$", 64),
        ),
        named("port", "The port inside the guest.", Schema::Object(port)),
        named("code", "The code.", text_schema("^[A-Z_]+$", 64)),
    ];
    all.into_iter().filter(|parameter| path.contains(&format!("{{{}}}", parameter.name))).collect()
}

fn idempotency_key() -> Parameter {
    let description = "Carry the request out at most once under this key, and answer a repetition, for 24 hours, with what came of it.";
    let schema = text_schema("^[!-~]([ -~]{0,253}[!-~])?$", 255);
    parameter("Idempotency-Key", ParameterIn::Header, false, description, schema)
}

fn if_match() -> Parameter {
    let description = "Only if the VM is of this generation: an `ETag` of this API, or `*`.";
    parameter("If-Match", ParameterIn::Header, false, description, text_schema("^(\\*|\"[0-9]{1,19}\")$", 21))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_description_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../docs/openapi.json");
        let mut current = openapi().to_pretty_json().unwrap();
        current.push('\n');
        if std::env::var_os("FLAMES_UPDATE_OPENAPI").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            stored == current,
            "docs/openapi.json is not what the code says; run this test with FLAMES_UPDATE_OPENAPI=1 and read the difference"
        );
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_every_response_a_description() {
        let text = serde_json::to_value(openapi()).unwrap();
        let mut names = std::collections::BTreeSet::new();
        for (path, item) in text["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name.to_owned()), "{name} twice");
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let description = response["description"].as_str().unwrap_or_default();
                    assert!(!description.is_empty(), "{method} {path} {status}");
                }
            }
        }
        assert!(names.len() > 30);
    }
}
