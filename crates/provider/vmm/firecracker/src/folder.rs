//! The folder of one incarnation, and the records in it. The jail has a folder and records of its own.
//!
//! ```text
//! <folder>/<incarnation>/        0700
//!   spec.json                    what was prepared; written before the folder appears under its name, durable before `prepare` returns
//!   guest-config                 the configuration disk (0440, of the jail's group)
//!   network-policy.json          the policy that its network is under, where it was replaced
//!   let-go                       the guest may have run; one more name of spec.json; written before it is let run
//!   exit.json                    how it ended
//!   stop-requested               `stop` or `destroy` was called
//!   console.<offset>             the console's log from that offset on
//!   snapshots/<name>/            snapshot.json, state, memory
//!   last-snapshot                the name of the one that was saved last, whatever became of its files
//! <folder>/.new-… .old-…         half made, half removed: removed by the next `adopt`
//! ```

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_network::NetworkRequest;
use flames_host::files::{
    check_schema, create_private, failed, read_record, remove_if_there, sync_folder, write_record,
};
use flames_vmm::{Exit, IncarnationName, MachineSpec, NetworkPolicy};
use serde::{Deserialize, Serialize};

/// The records' format. A reader refuses a newer one.
pub(crate) const SCHEMA: u32 = 1;

const SPEC: &str = "spec.json";
const EXIT: &str = "exit.json";
const NETWORK_POLICY: &str = "network-policy.json";
const LET_GO: &str = "let-go";
const STOP_REQUESTED: &str = "stop-requested";
/// The guest's configuration, as a disk.
pub(crate) const GUEST_CONFIG: &str = "guest-config";

/// Everything that the machine's definition is derived from, so that it is the same whenever it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpecRecord {
    pub(crate) schema: u32,
    /// As given, but without the guest's configuration, which is in its own file.
    pub(crate) spec: MachineSpec,
    pub(crate) guest_config_length: u64,
    /// What was asked of the host's networks.
    pub(crate) network: Option<NetworkRequest>,
    /// The most bytes of one file that the monitor may write. None in records of earlier drivers: no bound.
    #[serde(default)]
    pub(crate) largest_file: Option<u64>,
}

impl SpecRecord {
    pub(crate) fn has_config_disk(&self) -> bool {
        self.guest_config_length > 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExitRecord {
    schema: u32,
    exit: Exit,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkPolicyRecord {
    schema: u32,
    policy: NetworkPolicy,
}

/// The folder of one incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn of(root: &Path, incarnation: &IncarnationName) -> Self {
        Self::new(root.join(incarnation.as_str()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is anything under the incarnation's name.
    pub(crate) fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// `Corrupt` when it cannot be read, and when it is not there.
    pub(crate) fn spec(&self) -> Result<SpecRecord> {
        let record: SpecRecord = read_record(&self.path, SPEC)?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "vmm.record", "the record is not there").with_context("file", SPEC)
        })?;
        check_schema(record.schema, SCHEMA, SPEC)?;
        Ok(record)
    }

    /// Not durable before [`Folder::make_durable`].
    pub(crate) fn write_spec(&self, record: &SpecRecord) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(record).map_err(|error| {
            Error::internal("vmm.record", "a specification cannot be written").with_source(error)
        })?;
        create_private(&self.join(SPEC))
            .and_then(|mut file| file.write_all(&bytes))
            .map_err(|error| failed("a record cannot be written", error))
    }

    /// Lets the jail's user read the guest's configuration, and nobody else but root, so that it needs no copy. No error when there is none.
    pub(crate) fn give_config(&self, user: u32) -> Result<()> {
        let give = || {
            let file = match File::open(self.join(GUEST_CONFIG)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                file => file?,
            };
            std::os::unix::fs::fchown(&file, None, Some(user))?;
            file.set_permissions(Permissions::from_mode(0o440))
        };
        give().map_err(|error| failed("the guest's configuration cannot be given to its user", error))
    }

    /// As [`Folder::write_spec`], of a record that is there: old or new whenever the host dies.
    pub(crate) fn rewrite_spec(&self, record: &SpecRecord) -> Result<()> {
        write_record(&self.path, SPEC, record)
    }

    /// What was prepared is there whenever the host dies from now on.
    pub(crate) fn make_durable(&self) -> Result<()> {
        let sync = || {
            for name in [SPEC, GUEST_CONFIG] {
                match File::open(self.join(name)) {
                    Ok(file) => file.sync_all()?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            sync_folder(&self.path)?;
            self.path.parent().map_or(Ok(()), sync_folder)
        };
        sync().map_err(|error| failed("a record cannot be made durable", error))
    }

    /// `Corrupt` when it cannot be read.
    pub(crate) fn exit(&self) -> Result<Option<Exit>> {
        let record: Option<ExitRecord> = read_record(&self.path, EXIT)?;
        if let Some(record) = &record {
            check_schema(record.schema, SCHEMA, EXIT)?;
        }
        Ok(record.map(|record| record.exit))
    }

    pub(crate) fn write_exit(&self, exit: &Exit) -> Result<()> {
        write_record(&self.path, EXIT, &ExitRecord { schema: SCHEMA, exit: exit.clone() })
    }

    /// The policy that replaced the one of the specification. `Corrupt` when it cannot be read.
    pub(crate) fn network_policy(&self) -> Result<Option<NetworkPolicy>> {
        let record: Option<NetworkPolicyRecord> = read_record(&self.path, NETWORK_POLICY)?;
        if let Some(record) = &record {
            check_schema(record.schema, SCHEMA, NETWORK_POLICY)?;
        }
        Ok(record.map(|record| record.policy))
    }

    /// Durable when this returns. None: that of the specification again.
    pub(crate) fn write_network_policy(&self, policy: Option<&NetworkPolicy>) -> Result<()> {
        match policy {
            Some(policy) => {
                let record = NetworkPolicyRecord { schema: SCHEMA, policy: policy.clone() };
                write_record(&self.path, NETWORK_POLICY, &record)
            }
            None => remove_if_there(&self.join(NETWORK_POLICY))
                .and_then(|()| sync_folder(&self.path))
                .map_err(|error| failed("a record cannot be removed", error)),
        }
    }

    /// Whether the guest may have run.
    pub(crate) fn is_let_go(&self) -> bool {
        self.join(LET_GO).symlink_metadata().is_ok()
    }

    /// Durable when this returns.
    pub(crate) fn note_let_go(&self) -> Result<()> {
        // A name is all that it takes, and one more name of a file costs no file.
        let note = || match std::fs::hard_link(self.join(SPEC), self.join(LET_GO)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(_) => create_private(&self.join(LET_GO)).map(drop),
            Ok(()) => Ok(()),
        };
        note()
            .and_then(|()| sync_folder(&self.path))
            .map_err(|error| failed("the start cannot be noted", error))
    }

    /// Back to prepared: for a monitor whose guest ran nothing.
    pub(crate) fn forget_start(&self) -> Result<()> {
        remove_if_there(&self.join(LET_GO))
            .and_then(|()| remove_if_there(&self.join(STOP_REQUESTED)))
            .and_then(|()| sync_folder(&self.path))
            .map_err(|error| failed("a record cannot be removed", error))
    }

    pub(crate) fn is_stop_requested(&self) -> bool {
        self.join(STOP_REQUESTED).symlink_metadata().is_ok()
    }

    pub(crate) fn request_stop(&self) -> Result<()> {
        create_private(&self.join(STOP_REQUESTED))
            .map(|_| ())
            .map_err(|error| failed("the stop cannot be noted", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_garbage_too_long_or_not_there_is_corrupt() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().to_owned());
        assert_eq!(folder.spec().unwrap_err().kind(), ErrorKind::Corrupt, "not there");
        assert_eq!(folder.exit().unwrap(), None);
        for garbage in [&b"\xff\xfe"[..], b"{}", b"[1,2", &[b' '; 2 * 1024 * 1024]] {
            for name in [SPEC, EXIT] {
                std::fs::write(folder.join(name), garbage).unwrap();
            }
            assert_eq!(folder.spec().unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(folder.exit().unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn a_start_is_forgotten_with_the_stop_that_was_asked_for_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().to_owned());
        assert!(!folder.is_let_go() && !folder.is_stop_requested());
        folder.note_let_go().unwrap();
        folder.request_stop().unwrap();
        assert!(folder.is_let_go() && folder.is_stop_requested());
        folder.forget_start().unwrap();
        folder.forget_start().unwrap();
        assert!(!folder.is_let_go() && !folder.is_stop_requested());
    }
}
