//! Where the programs are, and which versions.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::Unavailable;

static PREFERRED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Has programs looked for in that folder before `PATH`, in this process: for who installs them. What a variable names still
/// comes first.
pub fn prefer_folder(folder: PathBuf) {
    PREFERRED.lock().unwrap_or_else(PoisonError::into_inner).push(folder);
}

/// Finds a program: by the variables given, else in the preferred folders, else on `PATH`, else where Debian keeps programs for root.
pub(crate) fn program(service: &'static str, variables: &[&str], name: &str) -> Result<PathBuf, Unavailable> {
    for variable in variables {
        if let Some(named) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
            let named = PathBuf::from(named);
            // Somebody said where it is: another one would not be what was meant.
            return if is_executable(&named) {
                Ok(named)
            } else {
                let reason = format!("{variable} names {}, which is not a program", named.display());
                Err(Unavailable::broken(service, reason))
            };
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let preferred = PREFERRED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let system = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let folders = preferred.into_iter().chain(system);
    in_folders(folders, name).ok_or_else(|| {
        let variable = variables.first().copied().unwrap_or_default();
        Unavailable::absent(service, format!("no program `{name}` here ({variable} would say where it is)"))
    })
}

fn in_folders(mut folders: impl Iterator<Item = PathBuf>, name: &str) -> Option<PathBuf> {
    folders.find_map(|folder| Some(folder.join(name)).filter(|path| is_executable(path)))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// What a program says of its version when it is asked by `argument`: the number alone (`15.14`).
///
/// # Errors
/// When it cannot be run, or names no dotted number.
pub fn version(
    service: &'static str,
    program: &Path,
    argument: impl AsRef<OsStr>,
) -> Result<String, Unavailable> {
    let failed =
        |why: String| Unavailable::broken(service, format!("{} tells no version: {why}", program.display()));
    let output = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.join(" ");
    version_in(&text).ok_or_else(|| failed(text.trim().chars().take(200).collect()))
}

/// The first dotted number in a text.
fn version_in(text: &str) -> Option<String> {
    text.split(|letter: char| !(letter.is_ascii_digit() || letter == '.'))
        .map(|word| word.trim_matches('.'))
        .find(|word| word.contains('.'))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_what_each_program_says() {
        for (text, version) in [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", "15.14"),
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", "7.0.15"),
            ("nats-server: v2.15.1", "2.15.1"),
            ("etcd Version: 3.4.23\nGit SHA: none", "3.4.23"),
            ("version 8000GB 4.48 pypi linux amd64", "4.48"),
            ("v2.11.7 h1:yj0Y4fYZGPk=", "2.11.7"),
            ("nginx version: nginx/1.22.1", "1.22.1"),
        ] {
            assert_eq!(version_in(text).as_deref(), Some(version), "{text}");
        }
        assert_eq!(version_in("no version here."), None);
    }

    #[test]
    fn a_program_that_is_nowhere_is_absent_and_the_reason_says_how_to_name_it() {
        let error =
            program("redis", &["FLAMES_TEST_NO_SUCH_VARIABLE"], "no-such-program-of-flames").unwrap_err();
        assert!(error.is_absent);
        assert!(error.to_string().starts_with("redis: no program `no-such-program-of-flames`"), "{error}");
        assert!(error.reason.contains("FLAMES_TEST_NO_SUCH_VARIABLE"), "{error}");
    }
}
