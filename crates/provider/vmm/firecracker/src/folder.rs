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

use flames_error::{Error, Result};
use flames_firecracker_network::NetworkRequest;
use flames_host::files::{create_private, failed, remove_if_there, sync_folder};
use flames_vmm::{MachineSpec, NetworkPolicy};
use flames_vmm_local::{Folder, Record};
use serde::{Deserialize, Serialize};

/// The records' format. A reader refuses a newer one.
pub(crate) const SCHEMA: u32 = 1;

const LET_GO: &str = "let-go";

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

impl Record for SpecRecord {
    const FILE: &'static str = "spec.json";
    const SCHEMA: u32 = SCHEMA;

    fn schema(&self) -> u32 {
        self.schema
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkPolicyRecord {
    schema: u32,
    policy: NetworkPolicy,
}

impl Record for NetworkPolicyRecord {
    const FILE: &'static str = "network-policy.json";
    const SCHEMA: u32 = SCHEMA;

    fn schema(&self) -> u32 {
        self.schema
    }
}

/// The records that this driver alone keeps in an incarnation's folder.
pub(crate) trait Records {
    /// `Corrupt` when it cannot be read, and when it is not there.
    fn spec(&self) -> Result<SpecRecord>;

    /// Of a folder that has none yet. Not durable before [`Records::make_durable`].
    fn write_spec(&self, record: &SpecRecord) -> Result<()>;

    /// Lets the jail's user read the guest's configuration, and nobody else but root, so that it needs no copy. No error when there is none.
    fn give_config(&self, user: u32) -> Result<()>;

    /// What was prepared is there whenever the host dies from now on.
    fn make_durable(&self) -> Result<()>;

    /// The policy that replaced the one of the specification. `Corrupt` when it cannot be read.
    fn network_policy(&self) -> Result<Option<NetworkPolicy>>;

    /// Durable when this returns. None: that of the specification again.
    fn write_network_policy(&self, policy: Option<&NetworkPolicy>) -> Result<()>;

    /// Whether the guest may have run.
    fn is_let_go(&self) -> bool;

    /// Notes that the guest may run from now on. Durable when this returns.
    fn note_let_go(&self) -> Result<()>;

    /// Back to prepared: for a monitor whose guest ran nothing.
    fn forget_start(&self) -> Result<()>;
}

impl Records for Folder {
    fn spec(&self) -> Result<SpecRecord> {
        self.demand()
    }

    fn write_spec(&self, record: &SpecRecord) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(record).map_err(|error| {
            Error::internal("vmm.record", "a specification cannot be written").with_source(error)
        })?;
        create_private(&self.join(SpecRecord::FILE))
            .and_then(|mut file| file.write_all(&bytes))
            .map_err(|error| failed("a record cannot be written", error))
    }

    fn give_config(&self, user: u32) -> Result<()> {
        let give = || {
            let file = match File::open(self.join(Self::GUEST_CONFIG)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                file => file?,
            };
            std::os::unix::fs::fchown(&file, None, Some(user))?;
            file.set_permissions(Permissions::from_mode(0o440))
        };
        give().map_err(|error| failed("the guest's configuration cannot be given to its user", error))
    }

    fn make_durable(&self) -> Result<()> {
        let sync = || {
            for name in [SpecRecord::FILE, Self::GUEST_CONFIG] {
                match File::open(self.join(name)) {
                    Ok(file) => file.sync_all()?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            sync_folder(self.path())?;
            self.path().parent().map_or(Ok(()), sync_folder)
        };
        sync().map_err(|error| failed("a record cannot be made durable", error))
    }

    fn network_policy(&self) -> Result<Option<NetworkPolicy>> {
        Ok(self.read::<NetworkPolicyRecord>()?.map(|record| record.policy))
    }

    fn write_network_policy(&self, policy: Option<&NetworkPolicy>) -> Result<()> {
        match policy {
            Some(policy) => self.write(&NetworkPolicyRecord { schema: SCHEMA, policy: policy.clone() }),
            None => remove_if_there(&self.join(NetworkPolicyRecord::FILE))
                .and_then(|()| sync_folder(self.path()))
                .map_err(|error| failed("a record cannot be removed", error)),
        }
    }

    fn is_let_go(&self) -> bool {
        self.join(LET_GO).symlink_metadata().is_ok()
    }

    fn note_let_go(&self) -> Result<()> {
        // A name is all that it takes, and one more name of a file costs no file.
        let note = || match std::fs::hard_link(self.join(SpecRecord::FILE), self.join(LET_GO)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(_) => create_private(&self.join(LET_GO)).map(drop),
            Ok(()) => Ok(()),
        };
        note()
            .and_then(|()| sync_folder(self.path()))
            .map_err(|error| failed("the start cannot be noted", error))
    }

    fn forget_start(&self) -> Result<()> {
        remove_if_there(&self.join(LET_GO))
            .and_then(|()| self.forget_stop())
            .and_then(|()| sync_folder(self.path()))
            .map_err(|error| failed("a record cannot be removed", error))
    }
}

#[cfg(test)]
mod tests {
    use flames_error::ErrorKind;

    use super::*;

    #[test]
    fn a_record_that_is_garbage_too_long_or_not_there_is_corrupt() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().to_owned());
        assert_eq!(folder.spec().unwrap_err().kind(), ErrorKind::Corrupt, "not there");
        assert_eq!(folder.network_policy().unwrap(), None);
        for garbage in [&b"\xff\xfe"[..], b"{}", b"[1,2", &[b' '; 2 * 1024 * 1024]] {
            for name in ["spec.json", "network-policy.json"] {
                std::fs::write(folder.join(name), garbage).unwrap();
            }
            assert_eq!(folder.spec().unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(folder.network_policy().unwrap_err().kind(), ErrorKind::Corrupt);
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
