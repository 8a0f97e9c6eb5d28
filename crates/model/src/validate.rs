//! What is allowed in a [`VmSpec`].

use flames_error::{Error, Result};

use crate::{OnHostLoss, RestartPolicy, VmSpec};

/// The operation that validation errors name.
pub const INVALID_FIELD: &str = "model.validate";

/// The ranges that a [`VmSpec`] is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControllerLimits;

impl ControllerLimits {
    /// The most virtual processors of one VM.
    pub const MAX_VCPUS: u32 = 64;
    /// The least memory of one VM, in MiB.
    pub const MIN_MEMORY_MIB: u64 = 32;
    /// The most memory of one VM, in MiB (1 TiB).
    pub const MAX_MEMORY_MIB: u64 = 1024 * 1024;
    /// The smallest writable layer, in MiB.
    pub const MIN_ROOT_DISK_MIB: u64 = 32;
    /// The largest writable layer, in MiB (15 TiB).
    pub const MAX_ROOT_DISK_MIB: u64 = 15 * 1024 * 1024;
    /// The most bytes of command, arguments and environment together: half of what Linux's `execve(2)` takes by default on
    /// x86-64 with an 8 MiB stack would be 1 MiB; records hold at most 256 KiB.
    pub const MAX_WORKLOAD_BYTES: usize = 128 * 1024;
    /// The most ports of one VM.
    pub const MAX_PORTS: usize = 32;
    /// The longest duration that a user may name, in milliseconds (366 days).
    pub const MAX_DURATION_MS: u64 = 366 * 24 * 3_600_000;
    /// The longest stop grace, in milliseconds (one hour).
    pub const MAX_STOP_GRACE_MS: u64 = 3_600_000;
}

fn refuse(field: &str, sentence: &str) -> Error {
    Error::invalid(INVALID_FIELD, field, sentence)
}

fn in_range<N: PartialOrd>(field: &str, value: &N, low: &N, high: &N, sentence: &str) -> Result<()> {
    if value < low || value > high { Err(refuse(field, sentence)) } else { Ok(()) }
}

fn no_nul(field: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        Err(refuse(field, "The text must not contain a NUL character."))
    } else {
        Ok(())
    }
}

impl VmSpec {
    /// Whether the spec is allowed. `InvalidInput` names the field and the allowed range.
    pub fn validate(&self) -> Result<()> {
        type Limits = ControllerLimits;
        in_range("spec.vcpus", &self.vcpus, &1, &Limits::MAX_VCPUS, "A VM has 1 to 64 vCPUs.")?;
        in_range(
            "spec.memory_mib",
            &self.memory_mib,
            &Limits::MIN_MEMORY_MIB,
            &Limits::MAX_MEMORY_MIB,
            "A VM has 32 to 1048576 MiB of memory.",
        )?;
        in_range(
            "spec.root_disk_mib",
            &self.root_disk_mib,
            &Limits::MIN_ROOT_DISK_MIB,
            &Limits::MAX_ROOT_DISK_MIB,
            "A root disk has 32 to 15728640 MiB.",
        )?;
        self.validate_workload()?;
        self.validate_ports()?;
        self.network.validate()?;
        for (field, value) in
            [("spec.timeout_ms", self.timeout_ms), ("spec.auto_delete_after_ms", self.auto_delete_after_ms)]
        {
            let low = u64::from(field == "spec.timeout_ms");
            if let Some(value) = value {
                in_range(
                    field,
                    &value,
                    &low,
                    &Limits::MAX_DURATION_MS,
                    "The duration is at most 366 days (31622400000 ms); a timeout is at least 1 ms.",
                )?;
            }
        }
        in_range(
            "spec.stop_grace_ms",
            &self.stop_grace_ms,
            &0,
            &Limits::MAX_STOP_GRACE_MS,
            "A stop grace is 0 to 3600000 ms.",
        )?;
        self.restart.validate()?;
        if self.on_host_loss == OnHostLoss::Restart {
            return Err(refuse(
                "spec.on_host_loss",
                "`restart` needs hosts that run a guardian, which this version does not have; use `wait`.",
            ));
        }
        Ok(())
    }

    fn validate_workload(&self) -> Result<()> {
        if let Some(command) = &self.command {
            if command.first().is_none_or(String::is_empty) {
                return Err(refuse(
                    "spec.command",
                    "A command names a program; leave it out to run the image's own.",
                ));
            }
            command.iter().try_for_each(|word| no_nul("spec.command", word))?;
        }
        self.args.iter().try_for_each(|word| no_nul("spec.args", word))?;
        let secrets = self.secret_env.iter().map(|(name, value)| ("spec.secret_env", name, value.expose()));
        let plain = self.env.iter().map(|(name, value)| ("spec.env", name, value.as_str()));
        for (field, name, value) in plain.chain(secrets) {
            if name.is_empty() || name.len() > 256 || name.contains(['=', '\0']) {
                return Err(refuse(field, "A variable's name is 1 to 256 bytes without `=` and NUL."));
            }
            no_nul(field, value)?;
        }
        if let Some(name) = self.secret_env.keys().find(|name| self.env.contains_key(*name)) {
            return Err(refuse(
                "spec.secret_env",
                &format!("`{name}` is in both env and secret_env; name it once."),
            ));
        }
        let words = self.command.iter().flatten().chain(&self.args).map(String::len);
        let variables = self.env.iter().map(|(name, value)| name.len() + value.len());
        let secrets = self.secret_env.iter().map(|(name, value)| name.len() + value.expose().len());
        if words.chain(variables).chain(secrets).map(|length| length + 2).sum::<usize>()
            > ControllerLimits::MAX_WORKLOAD_BYTES
        {
            return Err(refuse("spec", "Command, arguments and environment are at most 128 KiB together."));
        }
        if let Some(directory) = &self.working_directory {
            if !directory.starts_with('/') || directory.len() > 4_095 {
                return Err(refuse(
                    "spec.working_directory",
                    "A working directory is an absolute path of at most 4095 bytes.",
                ));
            }
            no_nul("spec.working_directory", directory)?;
        }
        if let Some(user) = &self.user {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
            if !(1..=65).contains(&user.len()) || !user.bytes().all(allowed) || user.matches(':').count() > 1
            {
                return Err(refuse(
                    "spec.user",
                    "A user is a name or uid, with an optional `:group`, at most 65 bytes.",
                ));
            }
        }
        Ok(())
    }

    fn validate_ports(&self) -> Result<()> {
        if self.ports.len() > ControllerLimits::MAX_PORTS {
            return Err(refuse("spec.ports", "A VM has at most 32 ports."));
        }
        let mut guest_ports = std::collections::BTreeSet::new();
        for port in &self.ports {
            if port.guest_port == 0 || port.host_port == Some(0) {
                return Err(refuse("spec.ports", "A port is 1 to 65535."));
            }
            if !guest_ports.insert(port.guest_port) {
                return Err(refuse("spec.ports.guest_port", "A guest port is named once."));
            }
        }
        Ok(())
    }
}

impl RestartPolicy {
    fn validate(&self) -> Result<()> {
        let day_ms = 24 * 3_600_000;
        in_range(
            "spec.restart.backoff_initial_ms",
            &self.backoff_initial_ms,
            &1,
            &day_ms,
            "A back-off is 1 to 86400000 ms.",
        )?;
        in_range(
            "spec.restart.backoff_max_ms",
            &self.backoff_max_ms,
            &self.backoff_initial_ms,
            &day_ms,
            "The longest back-off is at least the first one and at most 86400000 ms.",
        )
    }
}
