//! What a guest that was restored from a snapshot changes about itself, so that no two restored ones are alike: clock, randomness, host
//! name, machine id, network. Its processes run on; what they drew from the kernel's random numbers before stays theirs.

use std::fs::OpenOptions;
use std::io::Write;

use flames_guest_protocol::config::NetworkConfig;
use flames_guest_protocol::message::RestoredRequest;
use flames_guest_protocol::{Error, ErrorKind, Result};
use rustix::ioctl::{NoArg, Setter, ioctl, opcode};

use crate::boot::network;

/// The bytes of a seed.
const SEED: usize = 32;
/// `RNDADDENTROPY`, `RNDRESEEDCRNG` (include/uapi/linux/random.h).
const ADD_ENTROPY: u32 = opcode::write::<[i32; 2]>(b'R', 0x03);
const RESEED: u32 = opcode::none(b'R', 0x07);

/// `struct rand_pool_info` with its buffer (include/uapi/linux/random.h).
#[repr(C)]
struct Entropy {
    bits: i32,
    bytes: i32,
    seed: [u8; SEED],
}

/// Makes the guest what `request` says; `old` is the network that it has.
pub(crate) fn apply(request: &RestoredRequest, old: Option<&NetworkConfig>, init: bool) -> Result<()> {
    let seed = seed(request.seed.expose())?;
    let is_id =
        request.machine_id.len() == 32 && request.machine_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id {
        return Err(Error::new(ErrorKind::InvalidInput, "a machine id is 32 hexadecimal digits"));
    }
    // An agent that is no VM's own (a test's) must leave its machine alone.
    if !init {
        return Ok(());
    }
    reseed(&seed).map_err(|error| Error::from_io("seed the random numbers", &error))?;
    crate::clock::set_ms(request.epoch_ms).map_err(|error| Error::from_io("set the clock", &error))?;
    if !request.hostname.is_empty() {
        rustix::system::sethostname(request.hostname.as_bytes())
            .map_err(|error| Error::from_io("set the host name", &error.into()))?;
        if std::path::Path::new("/etc/hostname").exists() {
            network::write("/etc/hostname", &format!("{}\n", request.hostname));
        }
    }
    if let Some(new) = &request.network {
        network::replace(old, new).map_err(|why| Error::new(ErrorKind::Internal, why))?;
    }
    network::write_files(&request.hostname, request.network.as_ref().or(old));
    network::write("/etc/machine-id", &format!("{}\n", request.machine_id.to_ascii_lowercase()));
    Ok(())
}

fn seed(text: &str) -> Result<[u8; SEED]> {
    let invalid = || Error::new(ErrorKind::InvalidInput, "a seed is 64 hexadecimal digits");
    if text.len() != 2 * SEED || !text.is_ascii() {
        return Err(invalid());
    }
    let mut bytes = [0; SEED];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| invalid())?;
    }
    Ok(bytes)
}

/// Mixes the seed into the kernel's random numbers, credits it, and has all later ones drawn from it.
#[allow(unsafe_code)]
fn reseed(seed: &[u8; SEED]) -> std::io::Result<()> {
    let mut random = OpenOptions::new().write(true).open("/dev/urandom")?;
    random.write_all(seed)?;
    let bits = i32::try_from(SEED * 8).unwrap_or(0);
    let entropy = Entropy { bits, bytes: i32::try_from(SEED).unwrap_or(0), seed: *seed };
    // SAFETY: RNDADDENTROPY reads a `struct rand_pool_info` and the `buf_size` bytes behind it, which is what `Entropy` is.
    unsafe { ioctl(&random, Setter::<ADD_ENTROPY, Entropy>::new(entropy)) }?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let reseeded = unsafe { ioctl(&random, NoArg::<RESEED>::new()) };
    // A kernel before 4.17 has it not, and takes the seed in by itself after a while.
    match reseeded {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOTTY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_64_digits_and_nothing_else() {
        assert_eq!(seed(&"0f".repeat(SEED)).unwrap(), [0x0f; SEED]);
        for wrong in ["", "00", &"g0".repeat(SEED), &"ü".repeat(SEED)] {
            assert_eq!(seed(wrong).unwrap_err().kind, ErrorKind::InvalidInput, "{wrong}");
        }
        assert_eq!(ADD_ENTROPY, 0x4008_5203);
        assert_eq!(RESEED, 0x5207);
    }
}
