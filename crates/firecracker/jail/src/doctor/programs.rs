//! The programs that a host must have.

use std::path::Path;
use std::process::Stdio;

use flames_clock::{Clock, ClockExt};
use flames_host::process::find_program;
use tokio::io::AsyncReadExt;

use super::{Check, DoctorConfig};

/// The most bytes of a program's answer that are read.
const LONGEST_ANSWER: u64 = 4096;

/// Firecracker, the jailer, and whether they fit each other and us.
pub(super) async fn firecracker(config: &DoctorConfig, clock: &dyn Clock) -> [Check; 3] {
    let advice = "Install a static release of Firecracker and of its jailer, or set their paths in the controller's configuration.";
    let firecracker = look("firecracker", &config.jail.firecracker, config, clock).await;
    let jailer = look("jailer", &config.jail.jailer, config, clock).await;
    let versions = match (&firecracker, &jailer) {
        (Ok(first), Ok(second)) => compare(&first.version, &second.version, config),
        _ => Check::unknown("versions", "not both are there"),
    };
    let check = |name, seen: Result<Seen, String>| match seen {
        Err(found) => Check::fatal(name, found, advice),
        Ok(seen) if !seen.is_static => {
            let advice = "Use a statically linked release: in a chroot there are no libraries.";
            Check::fatal(name, format!("{} is not statically linked", seen.version), advice)
        }
        Ok(seen) => Check::ok(name, seen.version),
    };
    [check("firecracker", firecracker), check("jailer", jailer), versions]
}

struct Seen {
    version: String,
    is_static: bool,
}

async fn look(name: &str, path: &Path, config: &DoctorConfig, clock: &dyn Clock) -> Result<Seen, String> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
    let is_static = is_static(&bytes).ok_or_else(|| format!("{shown} is no program"))?;
    let answer = ask(path, "--version", config, clock).await.map_err(|error| format!("{shown}: {error}"))?;
    let first = answer.lines().next().unwrap_or_default().trim();
    if first.is_empty() {
        return Err(format!("{shown} does not tell its version"));
    }
    // "Firecracker v1.16.1" and "Jailer v1.16.1".
    let version = first.split_ascii_whitespace().last().unwrap_or(first);
    Ok(Seen { version: format!("{name} {version}"), is_static })
}

fn compare(firecracker: &str, jailer: &str, config: &DoctorConfig) -> Check {
    const NAME: &str = "versions";
    let number = |text: &str| text.split_ascii_whitespace().last().unwrap_or_default().to_owned();
    let (first, second) = (number(firecracker), number(jailer));
    if first != second {
        let advice = "Install Firecracker and the jailer of the same release.";
        return Check::fatal(NAME, format!("{firecracker}, {jailer}"), advice);
    }
    match (config.supports)(&first) {
        Ok(version) => Check::ok(NAME, version),
        Err(advice) => Check::fatal(NAME, first, advice),
    }
}

/// The standard output of a program, within its deadline.
async fn ask(
    path: &Path,
    argument: &str,
    config: &DoctorConfig,
    clock: &dyn Clock,
) -> Result<String, String> {
    let run = async {
        let mut child = tokio::process::Command::new(path)
            .arg(argument)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let mut answer = Vec::new();
        if let Some(output) = child.stdout.take() {
            output.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
        }
        child.wait().await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    match clock.timeout(config.deadline, run).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

/// Whether an ELF file has no interpreter (`PT_INTERP`), so that it needs no other file. None when it is no 64-bit little-endian ELF
/// file (elf(5)).
fn is_static(bytes: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let word = |at: usize| bytes.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let table = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (word(54)?, word(56)?);
    for index in 0..count {
        let at = table.checked_add(index.checked_mul(size)?)?;
        let kind = bytes.get(at..at.checked_add(4)?)?;
        if u32::from_le_bytes(kind.try_into().ok()?) == PT_INTERP {
            return Some(false);
        }
    }
    Some(true)
}

pub(super) async fn nftables(config: &DoctorConfig, clock: &dyn Clock) -> Check {
    const NAME: &str = "nftables";
    let advice = "Install nftables (the program `nft`): the network of microVMs is shut off by it.";
    let Some(path) = find_program(Path::new("nft")) else {
        return Check::fatal(NAME, "`nft` is not on PATH", advice);
    };
    match ask(&path, "--version", config, clock).await {
        Ok(answer) if !answer.trim().is_empty() => Check::ok(NAME, answer.trim().to_owned()),
        Ok(_) => Check::fatal(NAME, "`nft` does not tell its version", advice),
        Err(error) => Check::fatal(NAME, format!("`nft`: {error}"), advice),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use super::super::Outcome;
    use super::*;
    use crate::config::JailConfig;

    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(kinds.len()).unwrap().to_le_bytes());
        for kind in kinds {
            let mut header = vec![0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            bytes.extend(header);
        }
        bytes
    }

    #[test]
    fn a_program_with_an_interpreter_is_not_static_and_a_short_file_is_none() {
        assert_eq!(is_static(&elf(&[1, 2])), Some(true));
        assert_eq!(is_static(&elf(&[1, 3])), Some(false));
        assert_eq!(is_static(&elf(&[1, 3])[..100]), None);
        assert_eq!(is_static(b"#!/bin/sh\n"), None);
        assert_eq!(is_static(b""), None);
    }

    fn config() -> DoctorConfig {
        let supports = |version: &str| match version {
            "v1.16.1" => Ok("1.16.1".to_owned()),
            _ => Err("Install 1.16.1.".to_owned()),
        };
        DoctorConfig::new(JailConfig::new("/nowhere", "clu"), Arc::new(supports))
    }

    #[test]
    fn versions_must_be_equal_and_supported() {
        let outcome = |first, second| compare(first, second, &config()).outcome;
        assert_eq!(outcome("firecracker v1.16.1", "jailer v1.16.1"), Outcome::Ok);
        assert_eq!(outcome("firecracker v1.16.1", "jailer v1.15.0"), Outcome::Fatal);
        let old = compare("firecracker v1.2.0", "jailer v1.2.0", &config());
        assert_eq!(old.advice.as_deref(), Some("Install 1.16.1."));
    }

    #[tokio::test]
    async fn a_program_that_does_not_answer_or_floods_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let clock = flames_clock::SystemClock::new();
        let config = DoctorConfig { deadline: std::time::Duration::from_millis(500), ..config() };
        let hangs = script("hangs", "#!/bin/sh\nexec sleep 600\n");
        assert_eq!(ask(&hangs, "--version", &config, &clock).await.unwrap_err(), "it does not answer");
        let floods = script("floods", "#!/bin/sh\nexec yes\n");
        let answer = ask(&floods, "--version", &config, &clock).await;
        assert!(answer.is_ok_and(|answer| answer.len() == 4096), "cut, and ended by the closed pipe");
    }
}
