//! Firecracker's versions: which are accepted, and what each can do.

use std::fmt;
use std::str::FromStr;

use flames_error::{Error, ErrorKind, Result};

/// The oldest version that is accepted, of the 1.14 series.
pub const OLDEST: Version = Version::new(1, 14, 4);
/// The oldest version of the 1.15 series that is accepted.
pub const OLDEST_OF_1_15: Version = Version::new(1, 15, 1);
/// The first version after the newest series that this client was tested with.
pub const FIRST_UNTESTED: Version = Version::new(1, 17, 0);

/// What older versions lack the fixes of.
const VULNERABILITIES: &str = "CVE-2026-1386 and CVE-2026-5747";

/// A version of Firecracker. A development build (`1.17.0-dev`) comes before its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes when what worked no longer does.
    pub major: u32,
    /// Changes with new features. The three newest are maintained.
    pub minor: u32,
    /// Changes with fixes.
    pub patch: u32,
    /// Whether it is the release itself.
    pub released: bool,
}

/// What some of the accepted versions cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feature {
    /// [`crate::SnapshotLoad::vsock_override`].
    VsockOverride,
    /// [`crate::Serial::rate_limiter`].
    SerialRateLimiter,
    /// [`crate::NetworkInterface::mtu`].
    NetworkMtu,
    /// [`crate::Pmem::rate_limiter`] and [`crate::Client::patch_pmem`].
    PmemRateLimiter,
    /// Disks, pmem devices and interfaces that come and go while the machine runs (a developer preview, with `--enable-pci` only):
    /// PUT after the start, and DELETE.
    DeviceHotplug,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Feature; 5] = [
        Self::VsockOverride,
        Self::SerialRateLimiter,
        Self::NetworkMtu,
        Self::PmemRateLimiter,
        Self::DeviceHotplug,
    ];

    /// The first version that has it (`CHANGELOG.md` of Firecracker 1.16.0).
    pub const fn since(self) -> Version {
        match self {
            Self::VsockOverride
            | Self::SerialRateLimiter
            | Self::NetworkMtu
            | Self::PmemRateLimiter
            | Self::DeviceHotplug => Version::new(1, 16, 0),
        }
    }
}

impl Version {
    /// A release.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch, released: true }
    }

    /// Reads what `firecracker --version` and `jailer --version` print: `Firecracker v1.16.1` in the first line.
    ///
    /// Errors: `NotSupported` when it is something else.
    pub fn from_program_output(output: &str) -> Result<Self> {
        let line = output.lines().next().unwrap_or_default().trim();
        let version = line.rsplit(' ').next().unwrap_or_default();
        match version.strip_prefix('v') {
            Some(version) if line.contains(' ') => version.parse(),
            _ => Err(unreadable(line)),
        }
    }

    /// Whether it has the feature.
    pub fn has(self, feature: Feature) -> bool {
        self >= feature.since()
    }

    /// Whether this client was tested with its series. Newer ones are accepted: within a major version Firecracker keeps what
    /// works.
    pub fn is_tested(self) -> bool {
        self < FIRST_UNTESTED
    }

    /// Why it is refused, as a sentence for whoever installs it; none when it is accepted.
    pub fn refusal(self) -> Option<String> {
        if self.major > FIRST_UNTESTED.major {
            return Some(format!(
                "Firecracker {self} may speak another API than version {} does. Install the newest release of version {}.",
                FIRST_UNTESTED.major, FIRST_UNTESTED.major
            ));
        }
        let needed = if (self.major, self.minor) == (OLDEST_OF_1_15.major, OLDEST_OF_1_15.minor) {
            OLDEST_OF_1_15
        } else {
            OLDEST
        };
        (self < needed).then(|| {
            format!(
                "Firecracker {self} is too old: it lacks the fixes of {VULNERABILITIES}. Install {OLDEST}, \
                 {OLDEST_OF_1_15}, or anything newer."
            )
        })
    }

    /// Errors: `NotSupported` with [`Version::refusal`] as the sentence for users.
    pub fn check(self) -> Result<()> {
        match self.refusal() {
            None => Ok(()),
            Some(why) => Err(Error::new(ErrorKind::NotSupported, "firecracker.version", why.clone())
                .with_user_message(why)),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        if self.released { Ok(()) } else { f.write_str("-dev") }
    }
}

impl FromStr for Version {
    type Err = Error;

    /// Reads `1.16.1` or `1.17.0-dev`, as `GET /version` answers it. Whatever stands after the hyphen marks a development build.
    ///
    /// Errors: `NotSupported` when it is something else.
    fn from_str(text: &str) -> Result<Self> {
        let (numbers, released) = match text.split_once('-') {
            Some((numbers, _)) => (numbers, false),
            None => (text, true),
        };
        let mut parts = numbers.split('.').map(|part| {
            part.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| part.parse::<u32>().ok())
                .flatten()
                .ok_or_else(|| unreadable(text))
        });
        let mut next = || parts.next().unwrap_or_else(|| Err(unreadable(text)));
        let version = Self { major: next()?, minor: next()?, patch: next()?, released };
        if parts.next().is_some() { Err(unreadable(text)) } else { Ok(version) }
    }
}

fn unreadable(text: &str) -> Error {
    let shown: String = text.chars().take(80).collect();
    Error::new(ErrorKind::NotSupported, "firecracker.version", "this is no version of Firecracker")
        .with_context("text", shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn a_version_is_read_from_the_api_and_from_the_program() {
        assert_eq!(version("1.16.1"), Version::new(1, 16, 1));
        assert_eq!(Version::from_program_output("Firecracker v1.16.1\n\n").unwrap(), version("1.16.1"));
        assert_eq!(Version::from_program_output("Jailer v1.14.4\n").unwrap(), version("1.14.4"));
        assert_eq!(version("1.17.0-dev").to_string(), "1.17.0-dev");
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in ["", "1", "1.16", "1.16.1.2", "1.x.1", "+1.16.1", "1.16.99999999999", "v1.16.1", "1..1"] {
            assert_eq!(text.parse::<Version>().unwrap_err().kind(), ErrorKind::NotSupported, "{text}");
        }
        for output in ["", "Firecracker", "v1.16.1", "Firecracker 1.16.1", "bash: firecracker: not found"] {
            assert!(Version::from_program_output(output).is_err(), "{output}");
        }
    }

    #[test]
    fn a_version_without_the_fixes_is_refused_and_the_reason_names_what_to_install() {
        for refused in ["0.25.0", "1.13.1", "1.14.3", "1.14.4-dev", "1.15.0", "1.15.1-dev"] {
            let why = version(refused).refusal().unwrap();
            assert!(
                why.contains(refused) && why.contains("CVE-2026-5747") && why.contains("1.15.1"),
                "{why}"
            );
            let error = version(refused).check().unwrap_err();
            assert_eq!((error.kind(), error.user_message()), (ErrorKind::NotSupported, Some(why.as_str())));
        }
        for accepted in ["1.14.4", "1.14.9", "1.15.1", "1.16.0", "1.16.1", "1.17.0-dev", "1.20.0"] {
            assert_eq!(version(accepted).refusal(), None);
        }
        assert!(version("2.0.0").refusal().unwrap().contains("another API"));
    }

    #[test]
    fn a_feature_is_there_from_its_version_on() {
        for feature in Feature::ALL {
            assert!(!version("1.15.1").has(feature) && version("1.16.0").has(feature));
        }
        assert!(version("1.16.9").is_tested() && !version("1.17.0").is_tested());
    }
}
