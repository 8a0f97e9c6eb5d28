//! The processor that guests see, as far as saved guests depend on it.

use serde::{Deserialize, Serialize};

/// The processor that guests see. A saved guest is loaded only where this is the same: it found out at its boot what its processor can, and
/// uses that.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestCpu {
    /// Who made it (`GenuineIntel`), or `emulated`.
    pub vendor: String,
    /// Which model: family, model and stepping, or the name of what is emulated.
    pub model: String,
    /// A digest of its features; empty where vendor and model say all.
    pub features: String,
}

impl GuestCpu {
    /// A processor that is emulated, by the name of its model. The monitor's version says the rest.
    pub fn emulated(model: impl Into<String>) -> Self {
        Self { vendor: "emulated".to_owned(), model: model.into(), features: String::new() }
    }

    /// The host's own processor, for guests that run on it. Unknown parts are empty.
    pub fn of_host() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    /// The first processor of a `/proc/cpuinfo` (Linux, arch/x86/kernel/cpu/proc.c).
    fn parse(text: &str) -> Self {
        let first = text.split("\n\n").next().unwrap_or_default();
        let value = |name: &str| {
            let line =
                first.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let mut flags: Vec<_> = value("flags").split_whitespace().map(str::to_owned).collect();
        flags.sort();
        Self {
            vendor: value("vendor_id"),
            model: format!("{}-{}-{}", value("cpu family"), value("model"), value("stepping")),
            features: format!("{:016x}", fnv1a(flags.join(" ").as_bytes())),
        }
    }
}

/// FNV-1a, 64 bits (draft-eastlake-fnv): the same in every build. Nobody gains by a collision.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon\nstepping\t: 7\nflags\t\t: fpu sse2 avx\n\nprocessor\t: 1\nflags\t: other\n";

    #[test]
    fn a_processor_is_its_vendor_model_and_features_in_whatever_order() {
        let cpu = GuestCpu::parse(INFO);
        assert_eq!((cpu.vendor.as_str(), cpu.model.as_str()), ("GenuineIntel", "6-85-7"));
        assert_eq!(GuestCpu::parse(&INFO.replace("fpu sse2 avx", "avx fpu sse2")), cpu);
        assert_ne!(GuestCpu::parse(&INFO.replace("avx", "avx2")), cpu);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
