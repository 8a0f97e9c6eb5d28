//! How records, subjects and tokens are written.
//!
//! A record's message has a head of lines `name value` that an operator can read (`nats stream view`), an empty line, and the
//! payload. The first line is `flames-job 1`: the format and its version.

use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use flames_queue::{LeaseToken, Priority};
use sha2::{Digest, Sha256};

use crate::record::{Phase, Record, Signal};

const FIRST_LINE: &str = "flames-job 1\n";
const DONE: &[u8] = b"flames-job 1\ndone\n\n";

/// What the newest message of a job's subject says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    Job(Record),
    /// The job was acknowledged. The message deletes itself after a while.
    Done,
}

/// Writes a record, or that a job is done.
pub(crate) fn encode(record: Option<&Record>) -> Bytes {
    let Some(record) = record else { return Bytes::from_static(DONE) };
    let mut head = String::with_capacity(192);
    head.push_str(FIRST_LINE);
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(head, "{name} {value}");
    };
    if let Some(created) = record.created {
        line("created", &created);
    }
    line("deliveries", &record.deliveries);
    line("attempts", &record.attempts);
    line("priority", &record.priority.0);
    if let Some(key) = &record.dedupe_key {
        line("key", &escape(key));
    }
    match &record.phase {
        Phase::Ready { since } => line("ready", since),
        Phase::Waiting { at } => line("waiting", at),
        Phase::Leased { until, worker, signal } => {
            line("leased", until);
            line("worker", worker);
            if let Some(signal) = signal {
                line("signal", &signal.at);
                line("signal-priority", &signal.priority.0);
            }
        }
        Phase::Parked { at, reason } => {
            line("parked", at);
            line("reason", &escape(reason));
        }
    }
    head.push('\n');
    let mut message = BytesMut::with_capacity(head.len() + record.payload.len());
    message.put_slice(head.as_bytes());
    message.put_slice(&record.payload);
    message.freeze()
}

/// Reads what [`encode`] wrote; none when it is of another shape.
pub(crate) fn decode(message: &Bytes) -> Option<Stored> {
    if **message == *DONE {
        return Some(Stored::Done);
    }
    let end = message.windows(2).position(|pair| pair == b"\n\n")?;
    let head = std::str::from_utf8(message.get(..=end)?).ok()?.strip_prefix(FIRST_LINE)?;
    let mut record = Record {
        created: None,
        deliveries: 0,
        attempts: 0,
        priority: Priority(0),
        dedupe_key: None,
        payload: message.slice(end + 2..),
        phase: Phase::Waiting { at: 0 },
    };
    let (mut has_phase, mut signal_at, mut signal_priority) = (false, None, Priority(0));
    for line in head.lines() {
        let (name, value) = line.split_once(' ')?;
        let mut enter = |phase| {
            record.phase = phase;
            has_phase = true;
        };
        match name {
            "created" => record.created = Some(parse(value)?),
            "deliveries" => record.deliveries = parse(value)?,
            "attempts" => record.attempts = parse(value)?,
            "priority" => record.priority = Priority(parse(value)?),
            "key" => record.dedupe_key = Some(unescape(value)?.into()),
            "ready" => enter(Phase::Ready { since: parse(value)? }),
            "waiting" => enter(Phase::Waiting { at: parse(value)? }),
            "leased" => enter(Phase::Leased { until: parse(value)?, worker: Arc::from(""), signal: None }),
            "parked" => enter(Phase::Parked { at: parse(value)?, reason: Arc::from("") }),
            "signal" => signal_at = Some(parse(value)?),
            "signal-priority" => signal_priority = Priority(parse(value)?),
            "worker" => {
                if let Phase::Leased { worker, .. } = &mut record.phase {
                    *worker = Arc::from(value);
                }
            }
            "reason" => {
                if let Phase::Parked { reason, .. } = &mut record.phase {
                    *reason = unescape(value)?.into();
                }
            }
            // A line of a later version that changes nothing for this one.
            _ => {}
        }
    }
    if let (Phase::Leased { signal, .. }, Some(at)) = (&mut record.phase, signal_at) {
        *signal = Some(Signal { at, priority: signal_priority });
    }
    has_phase.then_some(Stored::Job(record))
}

fn parse<T: FromStr>(value: &str) -> Option<T> {
    value.parse().ok()
}

/// Keeps a text on one line: `%` and control characters are written as `%xx`.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match u8::try_from(letter) {
            Ok(byte) if byte == b'%' || byte.is_ascii_control() => {
                let _ = write!(escaped, "%{byte:02x}");
            }
            _ => escaped.push(letter),
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        plain.push(char::from(u8::from_str_radix(part.get(..2)?, 16).ok()?));
        plain.push_str(&part[2..]);
    }
    Some(plain)
}

/// A job's subject under `prefix`. A subject's parts are set off by dots, so a topic's are written as `=`, which no topic has.
pub(crate) fn subject(prefix: &str, topic: &str, id: &str) -> String {
    format!("{prefix}.{}.{id}", topic.replace('.', "="))
}

/// The topic and id behind a subject under `prefix`.
pub(crate) fn read_subject<'s>(prefix: &str, subject: &'s str) -> Option<(String, &'s str)> {
    let (topic, id) = subject.strip_prefix(prefix)?.strip_prefix('.')?.split_once('.')?;
    Some((topic.replace('=', "."), id))
}

/// The id of the job of a dedupe key: one and the same for every process, so that the server's compare-and-set lets one of them make
/// it.
pub(crate) fn keyed_id(dedupe_key: &str) -> String {
    format!("k{}", hex::encode(Sha256::digest(dedupe_key)))
}

/// What a lease token names: one handing-out of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// When the stream was made, in microseconds since the Unix epoch: tells a token from one of a stream that stood here before.
    pub(crate) epoch: i64,
    pub(crate) created: u64,
    pub(crate) number: u64,
    pub(crate) id: String,
    pub(crate) topic: String,
}

impl Delivery {
    pub(crate) fn write(&self) -> LeaseToken {
        let Self { epoch, created, number, id, topic } = self;
        LeaseToken::from_raw(format!("{epoch:x}.{created:x}.{number:x}.{id}.{topic}"))
    }

    pub(crate) fn read(token: &LeaseToken) -> Option<Self> {
        let mut parts = token.as_raw().splitn(5, '.');
        let delivery = Self {
            epoch: i64::from_str_radix(parts.next()?, 16).ok()?,
            created: u64::from_str_radix(parts.next()?, 16).ok()?,
            number: u64::from_str_radix(parts.next()?, 16).ok()?,
            id: parts.next()?.to_owned(),
            topic: parts.next()?.to_owned(),
        };
        // Both become parts of a subject.
        flames_queue::Topic::new(delivery.topic.as_str()).ok()?;
        flames_queue::JobId::new(delivery.id.as_str()).ok()?;
        Some(delivery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(phase: Phase) -> Record {
        Record {
            created: Some(12),
            deliveries: 3,
            attempts: 2,
            priority: Priority(-128),
            dedupe_key: Some(Arc::from("vm/1 ä\n100%\r")),
            payload: Bytes::from_static(b"line\n\nline \x00\xff"),
            phase,
        }
    }

    #[test]
    fn every_record_is_read_as_it_was_written() {
        let signal = Some(Signal { at: 5, priority: Priority(127) });
        let phases = [
            Phase::Ready { since: 3 },
            Phase::Waiting { at: 1_800_000_000_000 },
            Phase::Leased { until: 9, worker: Arc::from("worker-1"), signal: None },
            Phase::Leased { until: 9, worker: Arc::from("worker-1"), signal },
            Phase::Parked { at: 7, reason: Arc::from("") },
            Phase::Parked { at: 7, reason: Arc::from("two\nlines, 50 % ä \u{85}") },
        ];
        for phase in phases {
            let record = record(phase);
            assert_eq!(decode(&encode(Some(&record))), Some(Stored::Job(record)));
        }
        let bare = Record {
            created: None,
            dedupe_key: None,
            payload: Bytes::new(),
            ..record(Phase::Waiting { at: 0 })
        };
        assert_eq!(decode(&encode(Some(&bare))), Some(Stored::Job(bare)));
        assert_eq!(decode(&encode(None)), Some(Stored::Done));
    }

    #[test]
    fn what_is_not_a_record_is_not_read_as_one() {
        for text in [
            "",
            "\n\n",
            "flames-job 2\nwaiting 1\n\n",
            "flames-job 1\n\n",
            "flames-job 1\nwaiting x\n\n",
            "flames-job 1\nwaiting 1\n",
        ] {
            assert_eq!(decode(&Bytes::from_static(text.as_bytes())), None, "{text:?}");
        }
    }

    #[test]
    fn a_line_of_a_later_version_is_passed_over() {
        let message = Bytes::from_static(b"flames-job 1\nwaiting 1\nlater thing\n\nx");
        assert!(matches!(decode(&message), Some(Stored::Job(record)) if record.payload == "x"));
    }

    #[test]
    fn subjects_keep_topics_apart() {
        let subject = subject("flames.jobs", "vms.other", "k1");
        assert_eq!(subject, "flames.jobs.vms=other.k1");
        assert_eq!(read_subject("flames.jobs", &subject), Some(("vms.other".to_owned(), "k1")));
        assert_eq!(read_subject("flames", &subject), Some(("jobs".to_owned(), "vms=other.k1")));
    }

    #[test]
    fn a_token_that_was_never_given_is_not_read() {
        let delivery =
            Delivery { epoch: 5, created: 7, number: 1, id: "k1".to_owned(), topic: "vms.a".to_owned() };
        assert_eq!(Delivery::read(&delivery.write()), Some(delivery));
        for raw in ["", "1", "no such lease", "1.2.3.k.", "1.2.3..vms", "1.2.3.k*.vms", "1.2.3.k.v ms"] {
            assert_eq!(Delivery::read(&LeaseToken::from_raw(raw)), None, "{raw}");
        }
    }
}
