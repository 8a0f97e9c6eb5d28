//! The handshake: finds the start of a session in a byte stream, and proves both sides to each other.
//!
//! The stream may be a virtio-serial port. It has one opener, and when a controller was killed, bytes of its
//! session can still lie in it, in both directions. So the controller repeats a *hello* until it is answered; both
//! sides skip, up to a bound, what is no handshake message; and each answer names the nonce that it answers.
//!
//! Every message has the same 120 bytes: magic (16), kind (1), refusal code (1), lowest and highest version (2 + 2,
//! little-endian; an answer has the chosen one twice), zero (2), the host's nonce (32), the guest's nonce (32), and
//! a BLAKE3 keyed hash (32) of role, incarnation, the hello and this message. The order is hello (host), answer
//! (guest), proof (host); then yamux begins. The magic's first byte is no yamux version, so that a hello ends an
//! old session at once.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{Error, ErrorKind, Result};
use crate::limits::{HELLO_INTERVAL, MAX_SKIPPED_BYTES, PROOF_TIMEOUT};
use crate::scanner::Scanner;
use crate::secret::AgentKey;
use crate::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION};

/// The first bytes of every handshake message.
pub const MAGIC: [u8; 16] = *b"FLAMES\xf1AGENT\x0d\x0a\x1a\x01";

/// The length of every handshake message.
pub const MESSAGE_LENGTH: usize = 120;

const KIND: usize = 16;
const CODE: usize = 17;
const VERSIONS: usize = 18;
const HOST_NONCE: std::ops::Range<usize> = 24..56;
const GUEST_NONCE: std::ops::Range<usize> = 56..88;
const PROOF: usize = 88;

const HELLO: u8 = 1;
const ANSWER: u8 = 2;
const HOST_PROOF: u8 = 3;
const REFUSAL: u8 = 4;

const REFUSED_KEY: u8 = 1;
const REFUSED_VERSION: u8 = 2;

pub(crate) type Message = [u8; MESSAGE_LENGTH];

/// Who a guest is: what both sides must hold for a session.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The incarnation's id.
    pub incarnation: String,
    /// The incarnation's key.
    pub key: AgentKey,
}

impl Identity {
    fn prove(&self, role: &str, hello: &Message, message: &Message) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(self.key.bytes());
        hasher.update(b"flames guest handshake 1\0");
        hasher.update(role.as_bytes());
        hasher.update(&[0]);
        hasher.update(&(self.incarnation.len() as u64).to_le_bytes());
        hasher.update(self.incarnation.as_bytes());
        hasher.update(&hello[..PROOF]);
        hasher.update(&message[..PROOF]);
        hasher.finalize()
    }

    fn seal(&self, role: &str, hello: Option<&Message>, message: &mut Message) {
        let proof = self.prove(role, hello.unwrap_or(message), message);
        message[PROOF..].copy_from_slice(proof.as_bytes());
    }

    fn holds(&self, role: &str, hello: &Message, message: &Message) -> bool {
        let Ok(proof) = <[u8; 32]>::try_from(&message[PROOF..]) else { return false };
        // blake3::Hash compares in constant time.
        self.prove(role, hello, message) == blake3::Hash::from_bytes(proof)
    }

    pub(crate) fn is_own_hello(&self, message: &Message) -> bool {
        message[KIND] == HELLO && self.holds("hello", message, message)
    }
}

fn message(kind: u8, versions: (u16, u16), host_nonce: &[u8], guest_nonce: &[u8; 32]) -> Message {
    let mut message = [0; MESSAGE_LENGTH];
    message[..MAGIC.len()].copy_from_slice(&MAGIC);
    message[KIND] = kind;
    message[VERSIONS..VERSIONS + 2].copy_from_slice(&versions.0.to_le_bytes());
    message[VERSIONS + 2..VERSIONS + 4].copy_from_slice(&versions.1.to_le_bytes());
    message[HOST_NONCE].copy_from_slice(host_nonce);
    message[GUEST_NONCE].copy_from_slice(guest_nonce);
    message
}

fn versions(message: &Message) -> (u16, u16) {
    let number = |at: usize| u16::from_le_bytes([message[at], message[at + 1]]);
    (number(VERSIONS), number(VERSIONS + 2))
}

fn nonce() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("no random bytes from the system: {error}"))
    })?;
    Ok(bytes)
}

fn too_much_noise() -> Error {
    Error::new(ErrorKind::Corrupt, format!("no handshake within {MAX_SKIPPED_BYTES} bytes"))
}

/// The controller's side. Gives back the version, and what the guest sent behind its answer.
///
/// Errors: `Unavailable` when nothing answers until the deadline or the stream ends, `PermissionDenied` when the
/// guest holds another key or incarnation, `NotSupported` without a common version, `Corrupt` for endless noise.
pub(crate) async fn initiate<S>(io: &mut S, identity: &Identity, limit: Duration) -> Result<(u16, BytesMut)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let deadline = Instant::now() + limit;
    match tokio::time::timeout_at(deadline, initiate_within(io, identity)).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("the guest's agent did not answer within {} ms", limit.as_millis()),
        )),
    }
}

async fn initiate_within<S>(io: &mut S, identity: &Identity) -> Result<(u16, BytesMut)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut hello = message(HELLO, (OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION), &nonce()?, &[0; 32]);
    identity.seal("hello", None, &mut hello);
    let (mut reader, mut writer) = tokio::io::split(&mut *io);
    let failed = |error: std::io::Error| Error::from_io("handshake with the agent", &error);

    let mut written = 0;
    let mut repeat_at = Instant::now() + HELLO_INTERVAL;
    let mut scanner = Scanner::default();
    let mut skipped = 0;
    let mut chunk = [0; 4096];
    let (version, answer, rest) = 'answered: loop {
        // Reading goes on while a write waits: the guest may have to get rid of an old session's bytes first.
        tokio::select! {
            sent = writer.write(&hello[written..]), if written < hello.len() => {
                match sent.map_err(failed)? {
                    0 => return Err(failed(std::io::ErrorKind::WriteZero.into())),
                    count => written += count,
                }
                if written == hello.len() {
                    writer.flush().await.map_err(failed)?;
                }
            }
            () = sleep_until(repeat_at), if written == hello.len() => {
                written = 0;
                repeat_at = Instant::now() + HELLO_INTERVAL;
            }
            received = reader.read(&mut chunk) => {
                let received = received.map_err(failed)?;
                if received == 0 {
                    return Err(Error::new(ErrorKind::Unavailable, "the guest's channel closed in the handshake"));
                }
                let mut at = 0;
                while at < received {
                    let (taken, found) = scanner.scan(&chunk[at..received]);
                    at += taken;
                    skipped += taken;
                    let Some(found) = found else { continue };
                    if let Some(version) = judge(identity, &hello, &found)? {
                        break 'answered (version, found, BytesMut::from(&chunk[at..received]));
                    }
                    scanner.reject(&found);
                }
                if skipped > MAX_SKIPPED_BYTES {
                    return Err(too_much_noise());
                }
            }
        }
    };

    if written > 0 {
        writer.write_all(&hello[written..]).await.map_err(failed)?;
    }
    let mut guest_nonce = [0; 32];
    guest_nonce.copy_from_slice(&answer[GUEST_NONCE]);
    let mut proof = message(HOST_PROOF, (version, version), &hello[HOST_NONCE], &guest_nonce);
    identity.seal("host", Some(&hello), &mut proof);
    writer.write_all(&proof).await.map_err(failed)?;
    writer.flush().await.map_err(failed)?;
    Ok((version, rest))
}

/// Whether `found` answers `hello`: the version, `None` when it belongs to another session, or a refusal.
fn judge(identity: &Identity, hello: &Message, found: &Message) -> Result<Option<u16>> {
    if found[HOST_NONCE] != hello[HOST_NONCE] {
        return Ok(None);
    }
    match found[KIND] {
        ANSWER if identity.holds("guest", hello, found) => {
            let (version, _) = versions(found);
            match (OLDEST_PROTOCOL_VERSION..=PROTOCOL_VERSION).contains(&version) {
                true => Ok(Some(version)),
                false => Err(Error::new(
                    ErrorKind::NotSupported,
                    format!("the agent chose protocol version {version}"),
                )),
            }
        }
        ANSWER => Err(Error::new(
            ErrorKind::PermissionDenied,
            "the guest could not prove that it is the incarnation",
        )),
        REFUSAL if found[CODE] == REFUSED_VERSION => {
            let (oldest, newest) = versions(found);
            Err(Error::new(
                ErrorKind::NotSupported,
                format!(
                    "the agent speaks protocol versions {oldest} to {newest}, the controller \
                     {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}"
                ),
            ))
        }
        REFUSAL => {
            Err(Error::new(ErrorKind::PermissionDenied, "the agent refused the key or the incarnation"))
        }
        _ => Ok(None),
    }
}

/// The agent's side: waits without limit for a hello, and answers until a controller has proved itself. What
/// follows the proof stays in `pending`, from which it also reads first.
///
/// Errors: `Unavailable` when the stream ends or fails. A wrong key, a wrong version and noise are none: they are
/// refused, and it goes on.
pub(crate) async fn answer<S>(io: &mut S, pending: &mut BytesMut, identity: &Identity) -> Result<u16>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut scanner = Scanner::default();
    // The hello that was answered last, the answer, and until when its proof counts.
    let mut answered: Option<(Message, Message, Instant)> = None;
    loop {
        let Some(found) = next_message(io, pending, &mut scanner).await? else { continue };
        match found[KIND] {
            HELLO => {
                let repeated = answered.as_ref().is_some_and(|(hello, _, until)| {
                    hello[HOST_NONCE] == found[HOST_NONCE] && Instant::now() < *until
                });
                if repeated {
                    continue;
                }
                if !identity.is_own_hello(&found) {
                    scanner.reject(&found);
                    refuse(io, REFUSED_KEY, &found).await?;
                    continue;
                }
                let (oldest, newest) = versions(&found);
                let version = newest.min(PROTOCOL_VERSION);
                if version < oldest.max(OLDEST_PROTOCOL_VERSION) {
                    refuse(io, REFUSED_VERSION, &found).await?;
                    continue;
                }
                let mut reply = message(ANSWER, (version, version), &found[HOST_NONCE], &nonce()?);
                identity.seal("guest", Some(&found), &mut reply);
                send(io, &reply).await?;
                answered = Some((found, reply, Instant::now() + PROOF_TIMEOUT));
            }
            HOST_PROOF => {
                let Some((hello, reply, until)) = &answered else { continue };
                let fits = found[HOST_NONCE] == reply[HOST_NONCE] && found[GUEST_NONCE] == reply[GUEST_NONCE];
                if fits && Instant::now() < *until && identity.holds("host", hello, &found) {
                    return Ok(versions(reply).0);
                }
                scanner.reject(&found);
            }
            _ => scanner.reject(&found),
        }
    }
}

async fn next_message<S>(io: &mut S, pending: &mut BytesMut, scanner: &mut Scanner) -> Result<Option<Message>>
where
    S: AsyncRead + Unpin,
{
    if pending.is_empty() {
        pending.reserve(4096);
        match io.read_buf(pending).await {
            Ok(0) => return Err(Error::new(ErrorKind::Unavailable, "the controller is gone")),
            Ok(_) => {}
            Err(error) => return Err(Error::from_io("read from the controller", &error)),
        }
    }
    let (taken, found) = scanner.scan(pending);
    bytes::Buf::advance(pending, taken);
    Ok(found)
}

async fn refuse<S: AsyncWrite + Unpin>(io: &mut S, code: u8, hello: &Message) -> Result<()> {
    let mut refusal =
        message(REFUSAL, (OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION), &hello[HOST_NONCE], &[0; 32]);
    refusal[CODE] = code;
    send(io, &refusal).await
}

async fn send<S: AsyncWrite + Unpin>(io: &mut S, message: &Message) -> Result<()> {
    let sending = async {
        io.write_all(message).await?;
        io.flush().await
    };
    match timeout(PROOF_TIMEOUT, sending).await {
        Ok(result) => result.map_err(|error| Error::from_io("write to the controller", &error)),
        Err(_) => Err(Error::new(ErrorKind::Unavailable, "the controller does not read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(seed: u8) -> Identity {
        Identity { incarnation: "inc_1".into(), key: AgentKey::from_bytes([seed; 32]) }
    }

    #[test]
    fn a_proof_holds_for_its_role_key_and_incarnation_only() {
        let mut hello = message(HELLO, (1, 1), &[5; 32], &[0; 32]);
        identity(1).seal("hello", None, &mut hello);
        assert!(identity(1).is_own_hello(&hello));
        assert!(!identity(2).is_own_hello(&hello));
        let other = Identity { incarnation: "inc_2".into(), ..identity(1) };
        assert!(!other.is_own_hello(&hello));
        assert!(!identity(1).holds("host", &hello, &hello));
    }

    #[tokio::test]
    async fn both_sides_agree_with_noise_before_and_bytes_behind() {
        let (mut host, mut guest) = tokio::io::duplex(64);
        let agent = tokio::spawn(async move {
            guest.write_all(&[MAGIC[0]; 500]).await.unwrap();
            let mut pending = BytesMut::from(&b"old FLAMES\xf1AGENT session"[..]);
            let version = answer(&mut guest, &mut pending, &identity(1)).await.unwrap();
            let mut next = [0; 4];
            for byte in &mut next {
                if pending.is_empty() {
                    guest.read_buf(&mut pending).await.unwrap();
                }
                *byte = bytes::Buf::get_u8(&mut pending);
            }
            (version, next)
        });
        let (version, _) = initiate(&mut host, &identity(1), Duration::from_secs(5)).await.unwrap();
        host.write_all(b"next").await.unwrap();
        assert_eq!(agent.await.unwrap(), (version, *b"next"));
    }

    #[tokio::test]
    async fn a_wrong_key_is_refused_on_both_sides_and_the_agent_goes_on() {
        let (mut host, mut guest) = tokio::io::duplex(4096);
        let agent = tokio::spawn(async move { answer(&mut guest, &mut BytesMut::new(), &identity(1)).await });
        let refused = initiate(&mut host, &identity(2), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::PermissionDenied);
        initiate(&mut host, &identity(1), Duration::from_secs(5)).await.unwrap();
        assert_eq!(agent.await.unwrap().unwrap(), PROTOCOL_VERSION);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_guest_ends_at_the_deadline_and_an_endless_one_at_the_bound() {
        let (mut host, _guest) = tokio::io::duplex(4096);
        let silent = initiate(&mut host, &identity(1), Duration::from_secs(3)).await.unwrap_err();
        assert_eq!(silent.kind, ErrorKind::Unavailable);

        let (mut host, mut guest) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move { while guest.write_all(&[b'F'; 65536]).await.is_ok() {} });
        let endless = initiate(&mut host, &identity(1), Duration::from_secs(3600)).await.unwrap_err();
        assert_eq!(endless.kind, ErrorKind::Corrupt);
    }

    #[tokio::test]
    async fn a_guest_that_replays_an_answer_of_another_session_is_not_believed() {
        let (mut host, mut guest) = tokio::io::duplex(4096);
        let mut old_hello = message(HELLO, (1, 1), &[9; 32], &[0; 32]);
        identity(1).seal("hello", None, &mut old_hello);
        let mut old = message(ANSWER, (1, 1), &[9; 32], &[8; 32]);
        identity(1).seal("guest", Some(&old_hello), &mut old);
        guest.write_all(&old).await.unwrap();
        let result = initiate(&mut host, &identity(1), Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(result.kind, ErrorKind::Unavailable);
    }
}
