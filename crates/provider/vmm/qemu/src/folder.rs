//! The folder of one incarnation, and the records in it.
//!
//! ```text
//! <folder>/<incarnation>/        0700
//!   spec.json                    what was prepared; written before the folder appears under its name
//!   guest-config                 the configuration disk (0600)
//!   process.json                 which process runs it; written without a pid before the process is started, and again with
//!                                it before the guest's first instruction
//!   exit.json                    how it ended
//!   stop-requested               `stop` or `destroy` was called
//!   monitor.pid                  QEMU's own pid file, locked by it: a second QEMU for the same folder gives up
//!   monitor.errors               what QEMU says (a kernel pipe: bounded)
//!   monitor.sock, console.sock, agent.sock
//!   console.<offset>             the console's log from that offset on
//!   snapshots/<name>/state
//! <folder>/.new-… .old-… .try-…  half made, half removed, tried: removed by the next `adopt`
//! ```

use flames_error::Result;
use flames_host::files::{failed, remove_if_there};
use flames_host::process::{Identity, Marker};
use flames_vmm::{MachineSpec, Prepared};
use flames_vmm_local::{Folder, Record};
use serde::{Deserialize, Serialize};

use crate::config::Channel;
use crate::kernel::MachineKind;

/// The records' format. A reader refuses a newer one.
pub(crate) const SCHEMA: u32 = 1;

/// What runs the guest's processors, settled for one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accelerator {
    Kvm,
    Tcg,
}

/// Everything that the machine's definition is derived from, so that it is the same whenever it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpecRecord {
    pub(crate) schema: u32,
    /// As given, but without the guest's configuration, which is in its own file.
    pub(crate) spec: MachineSpec,
    pub(crate) guest_config_length: u64,
    pub(crate) machine: MachineKind,
    pub(crate) accelerator: Accelerator,
    pub(crate) cpu_model: String,
    pub(crate) channel: Channel,
    pub(crate) prepared: Prepared,
}

/// Which process runs the incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessRecord {
    pub(crate) schema: u32,
    pub(crate) boot_id: String,
    /// The guest shall not run when it is loaded.
    pub(crate) leave_paused: bool,
    /// `None` until QEMU was started. Its guest runs nothing before this is written, since QEMU starts stopped (`-S`).
    pub(crate) monitor: Option<Identity>,
    /// The vsock helper, where there is one.
    pub(crate) helper: Option<Identity>,
}

impl Record for SpecRecord {
    const FILE: &'static str = "spec.json";
    const SCHEMA: u32 = SCHEMA;

    fn schema(&self) -> u32 {
        self.schema
    }
}

impl Record for ProcessRecord {
    const FILE: &'static str = "process.json";
    const SCHEMA: u32 = SCHEMA;

    fn schema(&self) -> u32 {
        self.schema
    }
}

/// The records that this driver alone keeps in an incarnation's folder, and what tells its processes.
pub(crate) trait Records {
    /// `Corrupt` when it cannot be read, and when it is not there.
    fn spec(&self) -> Result<SpecRecord>;

    /// Back to prepared: for a monitor whose guest ran nothing.
    fn forget_process(&self) -> Result<()>;

    /// What only this incarnation's QEMU has on its command line.
    fn monitor_marker(&self) -> Marker;

    /// What only this incarnation's vsock helper has on its command line.
    fn helper_marker(&self) -> Marker;
}

impl Records for Folder {
    fn spec(&self) -> Result<SpecRecord> {
        self.demand()
    }

    fn forget_process(&self) -> Result<()> {
        remove_if_there(&self.join(ProcessRecord::FILE))
            .and_then(|()| self.forget_stop())
            .map_err(|error| failed("a record cannot be removed", error))
    }

    fn monitor_marker(&self) -> Marker {
        Marker::new(["-pidfile".into(), self.join("monitor.pid").into()])
    }

    fn helper_marker(&self) -> Marker {
        Marker::new(["--vm".into(), crate::vsock::helper_argument(self)])
    }
}

#[cfg(test)]
mod tests {
    use flames_error::ErrorKind;

    use super::*;

    #[test]
    fn a_record_that_is_garbage_too_long_or_newer_is_corrupt() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().to_owned());
        let process = || folder.read::<ProcessRecord>();
        assert_eq!(folder.spec().unwrap_err().kind(), ErrorKind::Corrupt, "not there");
        assert_eq!(process().unwrap(), None);
        for garbage in [&b"\xff\xfe"[..], b"{}", b"[1,2", &[b' '; 2 * 1024 * 1024]] {
            for name in ["spec.json", "process.json"] {
                std::fs::write(folder.join(name), garbage).unwrap();
            }
            assert_eq!(folder.spec().unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(process().unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let newer = ProcessRecord {
            schema: SCHEMA + 1,
            boot_id: "b".into(),
            leave_paused: false,
            monitor: None,
            helper: None,
        };
        folder.write(&newer).unwrap();
        assert_eq!(process().unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
