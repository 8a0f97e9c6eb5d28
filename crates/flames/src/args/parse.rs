//! How values are written on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flames_model::Timestamp;

/// An amount of memory or disk in MiB: `512`, `512M`, `2G`, `1T`.
pub(crate) fn mebibytes(text: &str) -> Result<u64, String> {
    const WRONG: &str = "an amount is a number of MiB, or one with M, G or T: 512, 512M, 2G";
    let lower = text.trim().to_ascii_lowercase();
    let trimmed = lower.trim_end_matches("ib").trim_end_matches('b');
    let (digits, factor) = match trimmed.as_bytes().last() {
        Some(b'm') => (&trimmed[..trimmed.len() - 1], 1),
        Some(b'g') => (&trimmed[..trimmed.len() - 1], 1 << 10),
        Some(b't') => (&trimmed[..trimmed.len() - 1], 1 << 20),
        _ => (trimmed, 1),
    };
    let number: u64 = digits.parse().map_err(|_| WRONG.to_owned())?;
    number.checked_mul(factor).ok_or_else(|| WRONG.to_owned())
}

/// A duration: `1500ms`, `90s`, `5m`, `2h`, `1d`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const WRONG: &str = "a duration is a number with ms, s, m, h or d: 90s, 5m, 1500ms";
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().map_err(|_| WRONG.to_owned())?;
    let factor: u64 = match &text[split..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(WRONG.to_owned()),
    };
    number.checked_mul(factor).map(Duration::from_millis).ok_or_else(|| WRONG.to_owned())
}

/// Where the API is served. It has no TLS of its own, so it stays on the loopback interface.
pub(crate) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address = match text.parse::<u16>() {
        Ok(port) => SocketAddr::from(([127, 0, 0, 1], port)),
        Err(_) => text
            .parse::<SocketAddr>()
            .map_err(|_| "an address is 127.0.0.1:PORT, [::1]:PORT, or a port alone".to_owned())?,
    };
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("only a loopback address: the token would cross the network in the clear. Put a proxy with TLS in front".to_owned())
    }
}

/// `KEY=VALUE`; a bare `KEY` has an empty value.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("a pair is KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `KEY=VALUE`; a bare `KEY` takes its value from this process's own environment.
pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return pair(text);
    }
    secret(text)
}

/// The name of a variable of this process's own environment, with its value.
pub(super) fn secret(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return Err("name a variable of your own environment: its value must not stand on a command line, where others can read it".to_owned());
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(std::env::VarError::NotPresent) => Err(format!("`{text}` is not set in your environment")),
        Err(std::env::VarError::NotUnicode(_)) => Err(format!("`{text}` is not UTF-8")),
    }
}

/// Bytes: `1500`, `64K`, `10M`, `1G`, in powers of 1000 as networks count.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const WRONG: &str = "a rate is a number of bytes, or one with K, M or G: 500K, 10M, 1G";
    let lower = text.trim().to_ascii_lowercase();
    let (digits, factor) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1_000),
        Some(b'm') => (&lower[..lower.len() - 1], 1_000_000),
        Some(b'g') => (&lower[..lower.len() - 1], 1_000_000_000),
        _ => (lower.as_str(), 1),
    };
    let number: u64 = digits.parse().map_err(|_| WRONG.to_owned())?;
    number.checked_mul(factor).ok_or_else(|| WRONG.to_owned())
}

/// `PORT`, or `FIRST-LAST`.
pub(super) fn port_range(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err("ports are PORT or FIRST-LAST, each from 1 to 65535".to_owned()),
    }
}

/// A port of the host and one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forward {
    /// On the host's loopback address; none: any free one.
    pub(crate) host: Option<u16>,
    /// In the guest.
    pub(crate) guest: u16,
}

/// `GUEST` or `HOST:GUEST`; host port 0: any free one.
pub(super) fn forward(text: &str) -> Result<Forward, String> {
    let wrong = || "a port is GUEST or HOST:GUEST, each from 1 to 65535".to_owned();
    let port = |text: &str| text.parse::<u16>().map_err(|_| wrong());
    let (host, guest) = match text.split_once(':') {
        Some((host, guest)) => (Some(port(host)?).filter(|port| *port != 0), port(guest)?),
        None => (None, port(text)?),
    };
    if guest == 0 { Err(wrong()) } else { Ok(Forward { host, guest }) }
}

/// A moment: a time, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    At(Timestamp),
    Ago(Duration),
}

impl Moment {
    pub(crate) fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }
}

/// RFC 3339, or a duration that counts back from now.
pub(super) fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(Moment::At(at));
    }
    duration(text)
        .map(Moment::Ago)
        .map_err(|_| "a moment is a time (2026-01-31T12:00:00Z) or how long ago (5m)".to_owned())
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine.
    Here(PathBuf),
    /// Standard input or output.
    Standard,
    /// In a VM: an absolute path.
    Vm { vm: String, path: String },
}

/// `VM:PATH`, a path of this machine, or `-`. A path that holds a colon is written with `./` or `/` in front.
pub(super) fn place(text: &str) -> Result<Place, String> {
    if text == "-" {
        return Ok(Place::Standard);
    }
    match text.split_once(':') {
        Some((vm, path)) if !vm.is_empty() && !vm.contains('/') => {
            if !path.starts_with('/') {
                return Err(format!("a path in a VM is absolute: {vm}:/{path}"));
            }
            Ok(Place::Vm { vm: vm.to_owned(), path: path.to_owned() })
        }
        _ => Ok(Place::Here(PathBuf::from(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_is_served_on_loopback_only() {
        assert_eq!(loopback("0").unwrap().to_string(), "127.0.0.1:0");
        assert_eq!(loopback("[::1]:9").unwrap().to_string(), "[::1]:9");
        assert!(loopback("0.0.0.0:7070").is_err());
        assert!(loopback("localhost").is_err());
    }

    #[test]
    fn amounts_are_mebibytes_or_say_their_unit() {
        for (text, mib) in [("512", 512), ("512M", 512), ("2g", 2048), ("1TiB", 1 << 20), ("3GB", 3072)] {
            assert_eq!(mebibytes(text), Ok(mib), "{text}");
        }
        for wrong in ["", "x", "-1", "1.5G", "99999999999999999999T", "10K"] {
            assert!(mebibytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_say_their_unit_or_are_seconds() {
        for (text, ms) in
            [("90", 90_000), ("90s", 90_000), ("1500ms", 1_500), ("5m", 300_000), ("2h", 7_200_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for wrong in ["", "s", "5 m", "1y", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_never_stands_on_the_command_line() {
        assert!(secret("TOKEN=hunter2").is_err());
        assert!(secret("SURELY_NOT_SET_ANYWHERE").unwrap_err().contains("not set"));
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
    }

    #[test]
    fn ports_are_those_of_the_guest_with_the_host_s_before() {
        assert_eq!(forward("80"), Ok(Forward { host: None, guest: 80 }));
        assert_eq!(forward("8080:80"), Ok(Forward { host: Some(8080), guest: 80 }));
        assert_eq!(forward("0:80"), Ok(Forward { host: None, guest: 80 }));
        for wrong in ["", "0", "80:0", "80:", "70000", "a:b:c", "80/udp"] {
            assert!(forward(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_place_with_a_colon_is_in_a_vm_unless_it_looks_like_a_path() {
        assert_eq!(place("web:/etc/hosts"), Ok(Place::Vm { vm: "web".into(), path: "/etc/hosts".into() }));
        assert_eq!(place("./a:b"), Ok(Place::Here("./a:b".into())));
        assert_eq!(place("-"), Ok(Place::Standard));
        assert!(place("web:relative").is_err());
    }
}
