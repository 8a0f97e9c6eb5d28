//! Settings below `/proc/sys/net`. They are those of the calling thread's namespace.

use flames_error::{Error, Result};

use super::refused;

const OPERATION: &str = "network.settings";

/// Writes a setting, `ipv4/ip_forward` for instance.
pub(crate) fn write(setting: &str, value: &str) -> Result<()> {
    std::fs::write(path(setting), value).map_err(|error| {
        refused(OPERATION, "writing a setting", error).with_context("setting", path(setting))
    })
}

/// Writes a setting that a kernel may lack (one built without IPv6 has none of its settings).
pub(crate) fn write_if_there(setting: &str, value: &str) -> Result<()> {
    if std::path::Path::new(&path(setting)).exists() { write(setting, value) } else { Ok(()) }
}

/// Whether a setting is other than 0. `NotFound` when the kernel has none of it.
pub(crate) fn is_on(setting: &str) -> Result<bool> {
    let text = std::fs::read_to_string(path(setting)).map_err(|error| {
        refused(OPERATION, "reading a setting", error).with_context("setting", path(setting))
    })?;
    Ok(text.trim() != "0")
}

fn path(setting: &str) -> String {
    format!("/proc/sys/net/{setting}")
}

/// Switches forwarding on in the host where it is off and that is allowed.
///
/// Errors: `NotSupported`, with what to do, when it is off and may not be switched on.
pub(crate) fn require_forwarding(ipv6: bool, may_enable: bool) -> Result<()> {
    let mut needed = vec!["ipv4/ip_forward"];
    if ipv6 {
        needed.push("ipv6/conf/all/forwarding");
    }
    for setting in needed {
        if is_on(setting)? {
            continue;
        }
        if may_enable {
            write(setting, "1")?;
            continue;
        }
        let name = format!("net.{}", setting.replace('/', "."));
        return Err(Error::new(
            flames_error::ErrorKind::NotSupported,
            OPERATION,
            format!("{name} is off, and this host's configuration does not let Flames switch it on"),
        )
        .with_user_message(format!(
            "This host does not forward packets. Run `sysctl -w {name}=1`, or set `enable_forwarding` in its configuration."
        )));
    }
    Ok(())
}
