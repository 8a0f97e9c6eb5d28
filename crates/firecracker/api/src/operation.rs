//! Every operation of the API, as a table: what the client calls, and what the drift test compares with the description of the
//! supported releases.

use flames_error::{Error, Result};

use crate::Version;
use crate::version::{Feature, OLDEST};

/// How long an operation may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pace {
    /// It reads or sets a value.
    Quick,
    /// It reads files into memory, or waits for each virtual processor.
    Machine,
    /// It reads or writes a whole memory.
    Snapshot,
}

/// A method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Reads.
    Get,
    /// Sets.
    Put,
    /// Changes.
    Patch,
    /// Removes.
    Delete,
}

impl From<Verb> for http::Method {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Get => Self::GET,
            Verb::Put => Self::PUT,
            Verb::Patch => Self::PATCH,
            Verb::Delete => Self::DELETE,
        }
    }
}

/// An operation: a method on a path.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// Its name in errors.
    pub name: &'static str,
    /// The method.
    pub method: Verb,
    /// The path; `{id}` stands for a device's id.
    pub path: &'static str,
    /// The first accepted version that has it.
    pub since: Version,
    /// How long it may take.
    pub pace: Pace,
    /// The most bytes of its answer.
    pub answer_limit: usize,
}

/// The most bytes of an answer, where nothing else is said.
pub const ANSWER_LIMIT: usize = 64 * 1024;
/// The most bytes of an answer with the whole configuration: some twenty devices, each with paths and limits.
pub const CONFIG_ANSWER_LIMIT: usize = 256 * 1024;
/// The most bytes of an answer with metadata. Firecracker's own limit is 50 KiB, unless it was started with another
/// (`--mmds-size-limit`).
pub const METADATA_ANSWER_LIMIT: usize = 1024 * 1024;
/// The most bytes of a device's id. (A request line may have 1024, in Firecracker's server.)
pub const DEVICE_ID_LIMIT: usize = 128;

impl Operation {
    /// Whether it changes anything.
    pub fn mutates(&self) -> bool {
        self.method != Verb::Get
    }

    /// The path for a device.
    ///
    /// Errors: `InvalidInput` for an id that Firecracker would not take in a path.
    pub(crate) fn path_of(&self, id: &str) -> Result<String> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if id.is_empty() || id.len() > DEVICE_ID_LIMIT || !id.bytes().all(is_plain) {
            return Err(Error::invalid(
                self.name,
                "id",
                format!(
                    "The id of a device must be 1 to {DEVICE_ID_LIMIT} ASCII letters, digits and underscores."
                ),
            ));
        }
        Ok(self.path.replace("{id}", id))
    }
}

/// An operation that every accepted version has, is quick, and answers little.
const fn operation(name: &'static str, method: Verb, path: &'static str) -> Operation {
    Operation { name, method, path, since: OLDEST, pace: Pace::Quick, answer_limit: ANSWER_LIMIT }
}

macro_rules! operations {
    ($($constant:ident = $value:expr;)+) => {
        $(pub(crate) static $constant: Operation = $value;)+

        /// Every operation that the client calls.
        pub static ALL: &[&Operation] = &[$(&$constant),+];
    };
}

const HOTPLUG: Version = Feature::DeviceHotplug.since();

operations! {
    GET_INSTANCE = operation("firecracker.instance.get", Verb::Get, "/");
    GET_VERSION = operation("firecracker.version.get", Verb::Get, "/version");
    GET_CONFIG = Operation {
        answer_limit: CONFIG_ANSWER_LIMIT,
        ..operation("firecracker.config.get", Verb::Get, "/vm/config")
    };
    PATCH_VM = Operation { pace: Pace::Machine, ..operation("firecracker.vm.patch", Verb::Patch, "/vm") };
    START = Operation { pace: Pace::Machine, ..operation("firecracker.start", Verb::Put, "/actions") };
    SEND_CTRL_ALT_DEL = operation("firecracker.ctrl_alt_del", Verb::Put, "/actions");
    FLUSH_METRICS = operation("firecracker.metrics.flush", Verb::Put, "/actions");
    GET_MACHINE_CONFIG = operation("firecracker.machine_config.get", Verb::Get, "/machine-config");
    PUT_MACHINE_CONFIG = operation("firecracker.machine_config.put", Verb::Put, "/machine-config");
    PATCH_MACHINE_CONFIG = operation("firecracker.machine_config.patch", Verb::Patch, "/machine-config");
    PUT_CPU_CONFIG = operation("firecracker.cpu_config.put", Verb::Put, "/cpu-config");
    PUT_BOOT_SOURCE = operation("firecracker.boot_source.put", Verb::Put, "/boot-source");
    PUT_DRIVE = operation("firecracker.drive.put", Verb::Put, "/drives/{id}");
    PATCH_DRIVE = operation("firecracker.drive.patch", Verb::Patch, "/drives/{id}");
    DELETE_DRIVE = Operation {
        since: HOTPLUG,
        ..operation("firecracker.drive.delete", Verb::Delete, "/drives/{id}")
    };
    PUT_PMEM = operation("firecracker.pmem.put", Verb::Put, "/pmem/{id}");
    PATCH_PMEM = Operation {
        since: Feature::PmemRateLimiter.since(),
        ..operation("firecracker.pmem.patch", Verb::Patch, "/pmem/{id}")
    };
    DELETE_PMEM = Operation {
        since: HOTPLUG,
        ..operation("firecracker.pmem.delete", Verb::Delete, "/pmem/{id}")
    };
    PUT_NETWORK_INTERFACE =
        operation("firecracker.network_interface.put", Verb::Put, "/network-interfaces/{id}");
    PATCH_NETWORK_INTERFACE =
        operation("firecracker.network_interface.patch", Verb::Patch, "/network-interfaces/{id}");
    DELETE_NETWORK_INTERFACE = Operation {
        since: HOTPLUG,
        ..operation("firecracker.network_interface.delete", Verb::Delete, "/network-interfaces/{id}")
    };
    PUT_VSOCK = operation("firecracker.vsock.put", Verb::Put, "/vsock");
    PUT_ENTROPY = operation("firecracker.entropy.put", Verb::Put, "/entropy");
    PUT_SERIAL = operation("firecracker.serial.put", Verb::Put, "/serial");
    PUT_LOGGER = operation("firecracker.logger.put", Verb::Put, "/logger");
    PUT_METRICS = operation("firecracker.metrics.put", Verb::Put, "/metrics");
    PUT_MMDS_CONFIG = operation("firecracker.mmds_config.put", Verb::Put, "/mmds/config");
    GET_MMDS = Operation {
        answer_limit: METADATA_ANSWER_LIMIT,
        ..operation("firecracker.mmds.get", Verb::Get, "/mmds")
    };
    PUT_MMDS = operation("firecracker.mmds.put", Verb::Put, "/mmds");
    PATCH_MMDS = operation("firecracker.mmds.patch", Verb::Patch, "/mmds");
    GET_BALLOON = operation("firecracker.balloon.get", Verb::Get, "/balloon");
    PUT_BALLOON = operation("firecracker.balloon.put", Verb::Put, "/balloon");
    PATCH_BALLOON = operation("firecracker.balloon.patch", Verb::Patch, "/balloon");
    GET_BALLOON_STATISTICS =
        operation("firecracker.balloon_statistics.get", Verb::Get, "/balloon/statistics");
    PATCH_BALLOON_STATISTICS =
        operation("firecracker.balloon_statistics.patch", Verb::Patch, "/balloon/statistics");
    START_BALLOON_HINTING =
        operation("firecracker.balloon_hinting.start", Verb::Patch, "/balloon/hinting/start");
    GET_BALLOON_HINTING =
        operation("firecracker.balloon_hinting.get", Verb::Get, "/balloon/hinting/status");
    STOP_BALLOON_HINTING =
        operation("firecracker.balloon_hinting.stop", Verb::Patch, "/balloon/hinting/stop");
    GET_MEMORY_HOTPLUG = operation("firecracker.memory_hotplug.get", Verb::Get, "/hotplug/memory");
    PUT_MEMORY_HOTPLUG = operation("firecracker.memory_hotplug.put", Verb::Put, "/hotplug/memory");
    PATCH_MEMORY_HOTPLUG = Operation {
        pace: Pace::Machine,
        ..operation("firecracker.memory_hotplug.patch", Verb::Patch, "/hotplug/memory")
    };
    CREATE_SNAPSHOT = Operation {
        pace: Pace::Snapshot,
        ..operation("firecracker.snapshot.create", Verb::Put, "/snapshot/create")
    };
    LOAD_SNAPSHOT = Operation {
        pace: Pace::Snapshot,
        ..operation("firecracker.snapshot.load", Verb::Put, "/snapshot/load")
    };
}
