//! A guest that was saved, as the files of a start.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flames_error::{Error, ErrorKind, Result};
use flames_firecracker_api::SnapshotLoad;
use flames_firecracker_jail::{Artefact, Jail};
use flames_host::blocking;
use flames_host::files::{check_schema, failed, read_record};
use flames_vmm::SnapshotArtefacts;
use flames_vmm_local::check::snapshot_name;
use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::context::Context;
use crate::folder::{SCHEMA, SpecRecord};
use crate::machine::inside;

const OPERATION: &str = "vmm.start";
/// What is known of a snapshot, beside its files. It need not be there: a snapshot may have been made local from elsewhere.
pub(crate) const RECORD: &str = "snapshot.json";
pub(crate) const STATE: &str = "state";
pub(crate) const MEMORY: &str = "memory";
/// So many diffs may stand on each other.
const LONGEST_CHAIN: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotRecord {
    pub(crate) schema: u32,
    /// The snapshot that its memory is a diff of; none when it is whole.
    pub(crate) base: Option<String>,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) state_bytes: u64,
    pub(crate) firecracker: String,
    pub(crate) processor: Processor,
}

/// What a saved guest's processors were, as far as another host must have the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Processor {
    /// Vendor, family, model and stepping.
    pub(crate) host: String,
    /// Of the CPU template; none when there was none.
    pub(crate) template: Option<String>,
}

impl Processor {
    pub(crate) fn of_this_host(context: &Context) -> Self {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let template = context
            .config
            .cpu_template
            .as_ref()
            .map(|template| hex::encode(Sha256::digest(template.to_string().as_bytes())));
        Self { host: identity(&text), template }
    }

    /// A template is there to make unlike processors of one vendor alike (`docs/cpu_templates/cpu-templates.md` of Firecracker).
    fn fits(&self, here: &Self) -> bool {
        let vendor = |processor: &Self| processor.host.split(' ').next().map(str::to_owned);
        self.template == here.template
            && (self.host == here.host || (self.template.is_some() && vendor(self) == vendor(here)))
    }
}

/// The first processor's vendor, family, model and stepping, of `/proc/cpuinfo` (proc(5)).
fn identity(cpuinfo: &str) -> String {
    let value = |name: &str| {
        let line = cpuinfo
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(':')))?;
        Some(line.split_once(':')?.1.trim().replace(' ', "_"))
    };
    ["vendor_id", "cpu family", "model", "stepping"]
        .map(|name| value(name).unwrap_or_else(|| "?".to_owned()))
        .join(" ")
}

/// The files that a start needs, looked at and found whole.
#[derive(Debug)]
pub(crate) struct Saved {
    state: PathBuf,
    /// The whole memory first, then the diffs in the order in which they were taken.
    memory: Vec<PathBuf>,
}

impl Saved {
    /// `NotFound`; `Corrupt` when it is not a whole snapshot; `NotSupported` when it is one of another machine or processor.
    pub(crate) async fn open(
        context: &Context,
        artefacts: SnapshotArtefacts,
        record: &SpecRecord,
    ) -> Result<Self> {
        let (here, memory_mib) = (Processor::of_this_host(context), record.spec.memory_mib);
        blocking(move || Self::open_now(&artefacts, &here, memory_mib)).await
    }

    fn open_now(artefacts: &SnapshotArtefacts, here: &Processor, memory_mib: u64) -> Result<Self> {
        let Some(newest) = &artefacts.memory else {
            let sentence = "A snapshot of Firecracker has a file of its own for the memory: give both files.";
            return Err(Error::invalid(OPERATION, "snapshot.memory", sentence));
        };
        let state_bytes = length(&artefacts.state)?;
        let mut memory = vec![newest.clone()];
        let mut of = read_sidecar(&artefacts.state)?;
        if let Some(record) = &of {
            check(record, here, memory_mib, state_bytes)?;
        }
        let bytes = memory_mib.saturating_mul(1024 * 1024);
        let mut at = artefacts.state.clone();
        loop {
            let file = memory.last().unwrap_or(newest);
            if length(file)? != bytes {
                return Err(corrupt("the memory is cut short, or of another machine")
                    .with_context("path", file.display()));
            }
            let Some(base) = of.and_then(|record| record.base) else { break };
            if memory.len() > LONGEST_CHAIN {
                return Err(corrupt("too many diffs stand on each other"));
            }
            snapshot_name(&base).map_err(|error| error.with_kind(ErrorKind::Corrupt))?;
            let folder = at.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join(&base);
            at = folder.join(STATE);
            memory.push(folder.join(MEMORY));
            of = Some(read_sidecar(&at)?.ok_or_else(|| {
                let sentence = format!("The snapshot is a diff of `{base}`, which is not there any more.");
                Error::not_found(OPERATION, "snapshot", base.clone()).with_user_message(sentence)
            })?);
        }
        memory.reverse();
        Ok(Self { state: artefacts.state.clone(), memory })
    }

    /// Puts the files into a jail that does not run yet.
    pub(crate) async fn put_into(&self, jail: &Jail) -> Result<SnapshotLoad> {
        let (state, memory) = (inside("load/state")?, inside("load/memory")?);
        for place in [&state, &memory] {
            // Of a start before, that came to nothing.
            jail.remove_file(place)?;
        }
        jail.add(Artefact::Shared { source: self.state.clone(), inside: state.clone() }).await?;
        let [whole, diffs @ ..] = &self.memory[..] else {
            return Err(Error::internal(OPERATION, "a snapshot without a memory"));
        };
        if diffs.is_empty() {
            jail.add(Artefact::Shared { source: whole.clone(), inside: memory.clone() }).await?;
        } else {
            let mut sum = jail.create_file(&memory)?;
            let parts = self.memory.clone();
            blocking(move || {
                let mut add = || parts.iter().try_for_each(|part| copy_data(&File::open(part)?, &mut sum));
                add().map_err(|error| failed("the memory of a diff cannot be put together", error))
            })
            .await?;
        }
        Ok(SnapshotLoad::from_files(state.for_firecracker(), memory.for_firecracker()))
    }
}

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, OPERATION, format!("the snapshot: {why}"))
        .with_user_message("The snapshot is damaged: take a new one, or use another.")
}

fn check(record: &SnapshotRecord, here: &Processor, memory_mib: u64, state_bytes: u64) -> Result<()> {
    if record.state_bytes != state_bytes {
        return Err(corrupt("its state is cut short"));
    }
    if record.memory_mib != memory_mib {
        let sentence = format!(
            "The snapshot is of a machine with {} MiB of memory, and this one has {memory_mib}.",
            record.memory_mib
        );
        return Err(
            Error::new(ErrorKind::NotSupported, OPERATION, sentence.clone()).with_user_message(sentence)
        );
    }
    if !record.processor.fits(here) {
        let sentence = "The snapshot was taken on another kind of processor: start it on a host like the one that it was taken on, or \
                        give all hosts one CPU template.";
        return Err(Error::new(ErrorKind::NotSupported, OPERATION, "a snapshot of another processor")
            .with_user_message(sentence)
            .with_context("snapshot", format!("{:?}", record.processor))
            .with_context("here", format!("{here:?}")));
    }
    Ok(())
}

fn length(path: &Path) -> Result<u64> {
    match path.metadata() {
        Ok(found) if found.is_file() => Ok(found.size()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("a snapshot cannot be looked at", error))
        }
        _ => Err(Error::not_found(OPERATION, "snapshot", path.display().to_string())),
    }
}

fn read_sidecar(state: &Path) -> Result<Option<SnapshotRecord>> {
    let Some(folder) = state.parent() else { return Ok(None) };
    let record: Option<SnapshotRecord> = read_record(folder, RECORD)?;
    if let Some(record) = &record {
        check_schema(record.schema, SCHEMA, RECORD)?;
    }
    Ok(record)
}

/// Copies what is not a hole, to where it is in the source; the result has at least the source's length.
pub(crate) fn copy_data(from: &File, to: &mut File) -> io::Result<()> {
    let length = from.metadata()?.len();
    if to.metadata()?.len() < length {
        to.set_len(length)?;
    }
    let mut at = 0;
    while at < length {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole until the end (lseek(2)).
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(begin))?;
        rustix::fs::seek(from, SeekFrom::Start(begin))?;
        rustix::fs::seek(&*to, SeekFrom::Start(begin))?;
        io::copy(&mut io::Read::take(from, end - begin), to)?;
        at = end;
    }
    to.flush()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_diff_is_laid_over_its_base_and_holes_stay_holes() {
        let mut base = tempfile::tempfile().unwrap();
        base.set_len(4 << 20).unwrap();
        base.write_all_at(&[1; 8192], 1 << 20).unwrap();
        let diff = tempfile::tempfile().unwrap();
        diff.set_len(4 << 20).unwrap();
        diff.write_all_at(&[2; 4096], (1 << 20) + 4096).unwrap();
        diff.write_all_at(&[3; 4096], 3 << 20).unwrap();
        copy_data(&diff, &mut base).unwrap();
        let mut read = [0; 8192];
        base.read_exact_at(&mut read, 1 << 20).unwrap();
        assert_eq!((&read[..4096], &read[4096..]), (&[1; 4096][..], &[2; 4096][..]));
        base.read_exact_at(&mut read[..4096], 3 << 20).unwrap();
        assert_eq!(read[..4096], [3; 4096]);
        assert!(base.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut empty = tempfile::tempfile().unwrap();
        copy_data(&base, &mut empty).unwrap();
        assert_eq!(empty.metadata().unwrap().len(), 4 << 20);
    }

    #[test]
    fn a_processor_fits_itself_and_with_a_template_its_vendors_others() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: X Y\nstepping\t: 7\n";
        assert_eq!(identity(text), "GenuineIntel 6 85 7");
        let processor = |host: &str, template: Option<&str>| Processor {
            host: host.to_owned(),
            template: template.map(str::to_owned),
        };
        let here = processor("GenuineIntel 6 85 7", None);
        assert!(here.fits(&here) && !here.fits(&processor("GenuineIntel 6 106 6", None)));
        let with = processor("GenuineIntel 6 85 7", Some("t"));
        assert!(with.fits(&processor("GenuineIntel 6 106 6", Some("t"))));
        assert!(!with.fits(&processor("AuthenticAMD 25 1 1", Some("t"))) && !with.fits(&here));
    }

    #[test]
    fn a_snapshot_cut_short_is_corrupt_and_one_of_another_machine_not_supported() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("snap");
        std::fs::create_dir(&snapshot).unwrap();
        let here = processor_here();
        let record = SnapshotRecord {
            schema: SCHEMA,
            base: None,
            vcpus: 1,
            memory_mib: 1,
            state_bytes: 5,
            firecracker: "1.16.1".into(),
            processor: here.clone(),
        };
        let write = |record: &SnapshotRecord| {
            std::fs::write(snapshot.join(RECORD), serde_json::to_vec(record).unwrap()).unwrap();
        };
        std::fs::write(snapshot.join(STATE), "state").unwrap();
        let memory = File::create(snapshot.join(MEMORY)).unwrap();
        memory.set_len(1 << 20).unwrap();
        write(&record);
        let artefacts =
            SnapshotArtefacts { state: snapshot.join(STATE), memory: Some(snapshot.join(MEMORY)) };
        let open = |mib| Saved::open_now(&artefacts, &here, mib).map_err(|error| error.kind());
        assert_eq!(open(1).unwrap().memory.len(), 1);
        assert_eq!(open(2).unwrap_err(), ErrorKind::NotSupported);
        write(&SnapshotRecord { base: Some("gone".into()), ..record.clone() });
        assert_eq!(open(1).unwrap_err(), ErrorKind::NotFound);
        write(&SnapshotRecord { base: Some("../snap".into()), ..record.clone() });
        assert_eq!(open(1).unwrap_err(), ErrorKind::Corrupt);
        write(&SnapshotRecord {
            processor: Processor { host: "x".into(), template: None },
            ..record.clone()
        });
        assert_eq!(open(1).unwrap_err(), ErrorKind::NotSupported);
        write(&record);
        memory.set_len(1000).unwrap();
        assert_eq!(open(1).unwrap_err(), ErrorKind::Corrupt);
        std::fs::write(snapshot.join(STATE), "st").unwrap();
        assert_eq!(open(1).unwrap_err(), ErrorKind::Corrupt);
        std::fs::remove_file(snapshot.join(STATE)).unwrap();
        assert_eq!(open(1).unwrap_err(), ErrorKind::NotFound);
    }

    fn processor_here() -> Processor {
        Processor { host: "v 1 2 3".into(), template: None }
    }
}
