//! Due entries: which VMs need attention, and from when on.

use std::fmt::Display;
use std::str::FromStr;

use flames_clock::Timestamp;
use flames_error::{Error, ErrorKind, Result};
use flames_model::{ProjectName, VmId};
use flames_state::Version;

/// Into how many ranges due entries are spread, by VM. Each is scanned by itself.
pub const DUE_SHARDS: u8 = 4;

/// Names a due entry. Its text is what a queue's job carries.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DueKey {
    /// From when on.
    pub at: Timestamp,
    /// Whose VM.
    pub project: ProjectName,
    /// Which VM.
    pub vm: VmId,
}

impl DueKey {
    /// The range that it lies in.
    pub fn shard(&self) -> u8 {
        // The last byte of a version 7 UUID is random.
        self.vm.uuid().as_bytes()[15] % DUE_SHARDS
    }
}

impl Display for DueKey {
    /// `<milliseconds>/<project>/<vm>`, with the time padded so that text order is time order.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:015}/{}/{}", self.at.as_millisecond().max(0), self.project, self.vm)
    }
}

impl FromStr for DueKey {
    type Err = Error;

    /// `Corrupt` unless the text is one that [`DueKey`] displays.
    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split('/');
        let mut parse = || -> Option<DueKey> {
            let at = Timestamp::from_millisecond(parts.next()?.parse().ok()?).ok()?;
            let project = ProjectName::new(parts.next()?).ok()?;
            let vm = parts.next()?.parse().ok()?;
            parts.next().is_none().then_some(DueKey { at, project, vm })
        };
        parse().ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "records.due", "not a due entry").with_context("text", text)
        })
    }
}

/// A due entry, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueEntry {
    /// Which.
    pub key: DueKey,
    /// When it was last written: settling it with a change proves that nobody asked anew meanwhile.
    pub version: Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_due_key_reads_back_and_sorts_by_time() {
        let project = ProjectName::new("default").unwrap();
        let key = |ms| DueKey {
            at: Timestamp::from_millisecond(ms).unwrap(),
            project: project.clone(),
            vm: VmId::from_uuid(uuid::Uuid::from_u128(9)),
        };
        assert_eq!(key(1_767_225_600_000).to_string().parse::<DueKey>().unwrap(), key(1_767_225_600_000));
        assert!(key(9).to_string() < key(10).to_string());
        assert!("x/default/vm_1".parse::<DueKey>().is_err());
    }
}
