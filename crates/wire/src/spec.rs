//! What a VM is to be: the request, and what is shown of it.

use std::collections::BTreeMap;

use flames_error::{Error, Result};
use flames_model::{ImageName, Labels, PortSpec, RestartPolicy, SecretString, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{DiskKind, Network, OnHostLoss, RestartRule, codes, schema};

/// A VM to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "web-1", "labels": {"team": "web"}, "spec": {"image": "debian", "command": ["/bin/sh", "-c", "uname -a"]}}))]
pub struct CreateVm {
    /// Its name, unique, and the guest's host name. Absent: one is made up.
    #[serde(default)]
    #[schema(
        pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        min_length = 1,
        max_length = 63,
        example = "web-1"
    )]
    pub name: Option<String>,
    /// Labels.
    #[serde(default)]
    #[schema(schema_with = schema::labels, required = false)]
    pub labels: BTreeMap<String, String>,
    /// What is asked for.
    pub spec: CreateVmSpec,
}

/// What is asked of a VM. Fixed for the VM's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVmSpec {
    /// The image that its root file system comes from.
    #[schema(
        pattern = "^[a-z0-9_][a-z0-9._-]*(/[a-z0-9_][a-z0-9._-]*)*(:[a-z0-9_][a-z0-9._-]*(/[a-z0-9_][a-z0-9._-]*)*)?$",
        min_length = 1,
        max_length = 200,
        example = "debian"
    )]
    pub image: String,
    /// The kernel image that it boots. Absent: the controller's default.
    #[serde(default)]
    #[schema(
        pattern = "^[a-z0-9_][a-z0-9._-]*(/[a-z0-9_][a-z0-9._-]*)*(:[a-z0-9_][a-z0-9._-]*(/[a-z0-9_][a-z0-9._-]*)*)?$",
        min_length = 1,
        max_length = 200
    )]
    pub kernel: Option<String>,
    /// Virtual processors.
    #[serde(default = "default_vcpus")]
    #[schema(minimum = 1, maximum = 64, default = 1)]
    pub vcpus: u32,
    /// Memory in MiB.
    #[serde(default = "default_memory_mib")]
    #[schema(minimum = 32, maximum = 1048576, default = 256)]
    pub memory_mib: u64,
    /// Size of the writable layer over the image, in MiB.
    #[serde(default = "default_root_disk_mib")]
    #[schema(minimum = 32, maximum = 15728640, default = 1024)]
    pub root_disk_mib: u64,
    /// Whether the writable layer outlives a run.
    #[serde(default = "default_disk")]
    pub disk: DiskKind,
    /// Program and leading arguments.
    #[serde(default)]
    #[schema(schema_with = schema::command, required = false)]
    pub command: Option<Vec<String>>,
    /// Arguments.
    #[serde(default)]
    #[schema(schema_with = schema::arguments, required = false)]
    pub args: Vec<String>,
    /// Environment variables.
    #[serde(default)]
    #[schema(schema_with = schema::variables, required = false)]
    pub env: BTreeMap<String, String>,
    /// Environment variables that cannot be read back.
    #[serde(default)]
    #[schema(schema_with = schema::secret_variables, required = false)]
    pub secret_env: BTreeMap<String, SecretString>,
    /// The workload's working directory. Absent: the image's.
    #[serde(default)]
    #[schema(pattern = "^/[^\\u0000]*$", min_length = 1, max_length = 4095, example = "/srv")]
    pub working_directory: Option<String>,
    /// The workload's user: a name or uid, with an optional `:group`. Absent: the image's.
    #[serde(default)]
    #[schema(
        pattern = "^[A-Za-z0-9._-]*:?[A-Za-z0-9._-]*$",
        min_length = 1,
        max_length = 65,
        example = "www-data"
    )]
    pub user: Option<String>,
    /// Whether the workload runs on a terminal.
    #[serde(default)]
    #[schema(default = false)]
    pub tty: bool,
    /// Whether the workload has a standard input, which whoever attaches writes to until its end. Without it and without a terminal
    /// the workload reads nothing.
    #[serde(default)]
    #[schema(default = false)]
    pub stdin: bool,
    /// Ports of the guest to be reached from outside; each guest port once.
    #[serde(default)]
    #[schema(max_items = 32)]
    pub ports: Vec<Port>,
    /// What it may reach, and who may reach it. Absent: nothing, and nobody; its ports are reached all the same.
    #[serde(default)]
    pub network: Network,
    /// What happens when the workload ends.
    #[serde(default)]
    pub restart: Restart,
    /// Whether a request for one of its ports starts the VM when it is stopped, and resumes it when it is paused; the request waits for it.
    /// Only where requests come through the embedded proxy.
    #[serde(default)]
    #[schema(default = false)]
    pub wake_on_request: bool,
    /// How long one run may take, in milliseconds from when it was asked for. Absent: as long as it likes.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 31622400000u64)]
    pub timeout_ms: Option<u64>,
    /// How long after its run ended the VM deletes itself, in milliseconds. Absent: never.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 31622400000u64)]
    pub auto_delete_after_ms: Option<u64>,
    /// How long the workload has to end when asked to, in milliseconds, before it is killed.
    #[serde(default = "default_stop_grace_ms")]
    #[schema(minimum = 0, maximum = 3600000, default = 10000)]
    pub stop_grace_ms: u64,
    /// What happens when its host is lost.
    #[serde(default = "default_on_host_loss")]
    #[schema(schema_with = schema::on_host_loss, required = false)]
    pub on_host_loss: OnHostLoss,
    /// Labels that its controller must have.
    #[serde(default)]
    #[schema(schema_with = schema::labels, required = false)]
    pub placement: BTreeMap<String, String>,
}

fn default_vcpus() -> u32 {
    1
}
fn default_memory_mib() -> u64 {
    256
}
fn default_root_disk_mib() -> u64 {
    1_024
}
fn default_disk() -> DiskKind {
    flames_model::DiskKind::default().into()
}
fn default_stop_grace_ms() -> u64 {
    10_000
}
fn default_on_host_loss() -> OnHostLoss {
    flames_model::OnHostLoss::default().into()
}
fn default_backoff_initial_ms() -> u64 {
    RestartPolicy::default().backoff_initial_ms
}
fn default_backoff_max_ms() -> u64 {
    RestartPolicy::default().backoff_max_ms
}
fn default_rule() -> RestartRule {
    RestartPolicy::default().rule.into()
}

/// A port of the guest to be reached from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The port inside the guest.
    #[schema(minimum = 1, maximum = 65535, example = 80)]
    pub guest_port: u16,
    /// The port on the host's loopback address. Absent: any free one, on hosts whose driver gives guests ports of the host.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 65535, example = 8080)]
    pub host_port: Option<u16>,
}

/// When and how soon a run that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// When.
    #[serde(default = "default_rule")]
    pub policy: RestartRule,
    /// How long the first restart waits, in milliseconds; each further one waits twice as long.
    #[serde(default = "default_backoff_initial_ms")]
    #[schema(minimum = 1, maximum = 86400000, default = 1000)]
    pub backoff_initial_ms: u64,
    /// The longest wait, in milliseconds; at least the first one. A run that lasted longer starts the waits anew.
    #[serde(default = "default_backoff_max_ms")]
    #[schema(minimum = 1, maximum = 86400000, default = 300000)]
    pub backoff_max_ms: u64,
    /// The most restarts in a row. Absent: no end.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 4294967295u64)]
    pub max_restarts: Option<u32>,
}

impl Default for Restart {
    fn default() -> Self {
        RestartPolicy::default().into()
    }
}

impl From<RestartPolicy> for Restart {
    fn from(policy: RestartPolicy) -> Self {
        Self {
            policy: policy.rule.into(),
            backoff_initial_ms: policy.backoff_initial_ms,
            backoff_max_ms: policy.backoff_max_ms,
            max_restarts: policy.max_restarts,
        }
    }
}

impl From<Restart> for RestartPolicy {
    fn from(restart: Restart) -> Self {
        Self {
            rule: restart.policy.into(),
            backoff_initial_ms: restart.backoff_initial_ms,
            backoff_max_ms: restart.backoff_max_ms,
            max_restarts: restart.max_restarts,
        }
    }
}

impl From<PortSpec> for Port {
    fn from(port: PortSpec) -> Self {
        Self { guest_port: port.guest_port, host_port: port.host_port }
    }
}

impl From<Port> for PortSpec {
    fn from(port: Port) -> Self {
        Self { guest_port: port.guest_port, host_port: port.host_port }
    }
}

fn at(error: Error, field: &str) -> Error {
    error.with_field(field).with_code(codes::INVALID_FIELD)
}

impl CreateVm {
    /// A VM of this image, with defaults for the rest.
    pub fn new(image: impl Into<String>) -> Self {
        Self { name: None, labels: BTreeMap::new(), spec: CreateVmSpec::new(image) }
    }

    /// The request in the model's terms. `InvalidInput` names the field. Ranges are checked by the model's own validation.
    pub fn into_model(self) -> Result<(Option<VmName>, Labels, flames_model::VmSpec)> {
        let name = self.name.map(VmName::new).transpose().map_err(|error| at(error, "name"))?;
        let labels = Labels::new(self.labels, "labels").map_err(|error| at(error, "labels"))?;
        Ok((name, labels, self.spec.into_model()?))
    }
}

impl CreateVmSpec {
    /// A VM of this image, with defaults for the rest.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            kernel: None,
            vcpus: default_vcpus(),
            memory_mib: default_memory_mib(),
            root_disk_mib: default_root_disk_mib(),
            disk: default_disk(),
            command: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            secret_env: BTreeMap::new(),
            working_directory: None,
            user: None,
            tty: false,
            stdin: false,
            ports: Vec::new(),
            network: Network::default(),
            restart: Restart::default(),
            wake_on_request: false,
            timeout_ms: None,
            auto_delete_after_ms: None,
            stop_grace_ms: default_stop_grace_ms(),
            on_host_loss: default_on_host_loss(),
            placement: BTreeMap::new(),
        }
    }

    fn into_model(self) -> Result<flames_model::VmSpec> {
        let image = |name: String, field: &str| ImageName::new(name).map_err(|error| at(error, field));
        Ok(flames_model::VmSpec {
            image: image(self.image, "spec.image")?,
            kernel: self.kernel.map(|name| image(name, "spec.kernel")).transpose()?,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            root_disk_mib: self.root_disk_mib,
            disk: self.disk.into(),
            command: self.command,
            args: self.args,
            env: self.env,
            secret_env: self.secret_env,
            working_directory: self.working_directory,
            user: self.user,
            tty: self.tty,
            stdin: self.stdin,
            ports: self.ports.into_iter().map(Into::into).collect(),
            network: self.network.into_model()?,
            restart: self.restart.into(),
            wake_on_request: self.wake_on_request,
            timeout_ms: self.timeout_ms,
            auto_delete_after_ms: self.auto_delete_after_ms,
            stop_grace_ms: self.stop_grace_ms,
            on_host_loss: self.on_host_loss.into(),
            placement: Labels::new(self.placement, "spec.placement")
                .map_err(|error| at(error, "spec.placement"))?,
        })
    }
}

/// New labels for a VM, in place of all that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLabels {
    /// Labels.
    #[schema(schema_with = schema::labels)]
    pub labels: BTreeMap<String, String>,
}

/// What was asked of a VM, without what must not be read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmSpec {
    /// The image that its root file system comes from.
    pub image: String,
    /// The kernel image that it boots; null: the controller's default.
    pub kernel: Option<String>,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Size of the writable layer, in MiB.
    pub root_disk_mib: u64,
    /// Whether the writable layer outlives a run.
    pub disk: DiskKind,
    /// Program and leading arguments; null: the image's own.
    pub command: Option<Vec<String>>,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The names of the secret environment variables; their values are never told.
    pub secret_env: Vec<String>,
    /// The workload's working directory; null: the image's.
    pub working_directory: Option<String>,
    /// The workload's user; null: the image's.
    pub user: Option<String>,
    /// Whether the workload runs on a terminal.
    pub tty: bool,
    /// Whether the workload has a standard input.
    #[serde(default)]
    pub stdin: bool,
    /// Ports of the guest to be reached from outside.
    pub ports: Vec<Port>,
    /// What it may reach, and who may reach it.
    #[serde(default)]
    pub network: Network,
    /// What happens when the workload ends.
    pub restart: Restart,
    /// Whether a request for one of its ports starts or resumes it.
    #[serde(default)]
    pub wake_on_request: bool,
    /// How long one run may take, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// How long after its run ended the VM deletes itself, in milliseconds.
    pub auto_delete_after_ms: Option<u64>,
    /// How long the workload has to end when asked to, in milliseconds.
    pub stop_grace_ms: u64,
    /// What happens when its host is lost.
    pub on_host_loss: OnHostLoss,
    /// Labels that its controller must have.
    pub placement: BTreeMap<String, String>,
}

impl From<&flames_model::VmSpec> for VmSpec {
    fn from(spec: &flames_model::VmSpec) -> Self {
        Self {
            image: spec.image.to_string(),
            kernel: spec.kernel.as_ref().map(ToString::to_string),
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            root_disk_mib: spec.root_disk_mib,
            disk: spec.disk.into(),
            command: spec.command.clone(),
            args: spec.args.clone(),
            env: spec.env.clone(),
            secret_env: spec.secret_env.keys().cloned().collect(),
            working_directory: spec.working_directory.clone(),
            user: spec.user.clone(),
            tty: spec.tty,
            stdin: spec.stdin,
            ports: spec.ports.iter().copied().map(Into::into).collect(),
            network: (&spec.network).into(),
            restart: spec.restart.into(),
            wake_on_request: spec.wake_on_request,
            timeout_ms: spec.timeout_ms,
            auto_delete_after_ms: spec.auto_delete_after_ms,
            stop_grace_ms: spec.stop_grace_ms,
            on_host_loss: spec.on_host_loss.into(),
            placement: spec.placement.pairs().clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_image_must_be_named_and_the_defaults_are_allowed() {
        let create: CreateVm = serde_json::from_str(r#"{"spec":{"image":"debian"}}"#).unwrap();
        assert_eq!(create, CreateVm::new("debian"));
        let (name, _, spec) = create.into_model().unwrap();
        assert_eq!(name, None);
        spec.validate().unwrap();
    }

    #[test]
    fn an_unknown_field_is_refused_at_every_depth() {
        for json in [
            r#"{"spec":{"image":"debian"},"vcpu":1}"#,
            r#"{"spec":{"image":"debian","vcpu":1}}"#,
            r#"{"spec":{"image":"debian","ports":[{"guest_port":1,"proto":"udp"}]}}"#,
            r#"{"spec":{"image":"debian","restart":{"rule":"never"}}}"#,
        ] {
            assert!(serde_json::from_str::<CreateVm>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_secret_goes_in_and_only_its_name_comes_out() {
        let json = r#"{"spec":{"image":"debian","secret_env":{"TOKEN":"hunter2"}}}"#;
        let create: CreateVm = serde_json::from_str(json).unwrap();
        assert!(!format!("{create:?}").contains("hunter2"));
        let (_, _, spec) = create.into_model().unwrap();
        assert_eq!(spec.secret_env["TOKEN"].expose(), "hunter2");
        let shown = serde_json::to_string(&VmSpec::from(&spec)).unwrap();
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_wrong_name_is_told_with_the_path_of_its_field() {
        let field = |create: CreateVm| create.into_model().unwrap_err().field().map(str::to_owned);
        let mut create = CreateVm::new("No Image");
        assert_eq!(field(create.clone()).as_deref(), Some("spec.image"));
        create.spec.image = "debian".to_owned();
        create.name = Some("x".repeat(10_240));
        assert_eq!(field(create.clone()).as_deref(), Some("name"));
        create.name = None;
        create.labels.insert("a".to_owned(), "b\u{7}".to_owned());
        assert_eq!(field(create).as_deref(), Some("labels"));
    }
}
