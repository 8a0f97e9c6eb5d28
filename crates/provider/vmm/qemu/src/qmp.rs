//! A client of QEMU's machine protocol: JSON lines over a unix socket
//! (<https://www.qemu.org/docs/master/interop/qmp-spec.html>).
//!
//! A monitor answers one connection at a time, so a VM has one client, which is shared.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, ClockExt};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// The most bytes of one line; a monitor that sends a longer one is given up.
const MAX_LINE: usize = 1024 * 1024;

/// What went wrong with a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum QmpError {
    /// The monitor is gone, or speaks something else.
    Closed(String),
    /// It did not answer in time.
    Deadline,
    /// It refused, in its own words.
    Refused(String),
}

impl std::fmt::Display for QmpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed(why) => write!(f, "the monitor's connection is closed: {why}"),
            Self::Deadline => f.write_str("the monitor did not answer in time"),
            Self::Refused(why) => write!(f, "the monitor refused: {why}"),
        }
    }
}

impl std::error::Error for QmpError {}

/// Why the machine was shut down, as the monitor's `SHUTDOWN` event tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shutdown {
    /// The guest asked for it.
    pub(crate) by_guest: bool,
}

type Pending = BTreeMap<u64, oneshot::Sender<Result<Value, QmpError>>>;

/// What the reading task shares with the callers.
#[derive(Debug, Default)]
struct Shared {
    /// Who waits for which answer. `None` once the connection is closed.
    pending: Mutex<Option<Pending>>,
    shutdown: Arc<Mutex<Option<Shutdown>>>,
}

impl Shared {
    fn close(&self) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A connection to a monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
    /// Its other end falls with the reading task.
    reading: watch::Receiver<()>,
    next_id: AtomicU64,
    clock: Arc<dyn Clock>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Qmp {
    /// Greets the monitor. What it tells of a shutdown is put into `shutdown`.
    pub(crate) async fn handshake(
        stream: UnixStream,
        clock: Arc<dyn Clock>,
        shutdown: Arc<Mutex<Option<Shutdown>>>,
        deadline: Duration,
    ) -> Result<Self, QmpError> {
        let (reader, writer) = stream.into_split();
        let mut lines = Lines { reader, buffer: Vec::new() };
        let greeting = clock.timeout(deadline, lines.next()).await.map_err(|_| QmpError::Deadline)??;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Closed("it is not a QEMU monitor".into()));
        }
        let shared = Arc::new(Shared { pending: Mutex::new(Some(Pending::new())), shutdown });
        let for_reader = Arc::clone(&shared);
        let (is_reading, reading) = watch::channel(());
        let reader = tokio::spawn(async move {
            let _is_reading = is_reading;
            while let Ok(message) = lines.next().await {
                for_reader.deliver(message);
            }
            for_reader.close();
        });
        let writer = tokio::sync::Mutex::new(writer);
        let connection = Self { writer, shared, reader, reading, next_id: AtomicU64::new(1), clock };
        connection.execute("qmp_capabilities", json!({}), deadline).await?;
        Ok(connection)
    }

    /// Whether the monitor has hung up.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Returns once the monitor has hung up and everything that it said was read.
    pub(crate) async fn closed(&self) {
        let mut reading = self.reading.clone();
        while reading.changed().await.is_ok() {}
    }

    /// Runs a command and answers its `return`.
    pub(crate) async fn execute(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.send(command, arguments, None, deadline).await
    }

    /// Runs a command with an open file beside it (`getfd`).
    pub(crate) async fn execute_with_file(
        &self,
        command: &str,
        arguments: Value,
        file: BorrowedFd<'_>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.send(command, arguments, Some(file), deadline).await
    }

    async fn send(
        &self,
        command: &str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments, "id": id }));
        let (answer, answered) = oneshot::channel();
        match self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(pending) => pending.insert(id, answer),
            None => return Err(QmpError::Closed("it hung up".into())),
        };
        let work = async {
            let mut writer = self.writer.lock().await;
            let sent = match file {
                None => 0,
                Some(file) => send_with_file(writer.as_ref(), line.as_bytes(), file).await?,
            };
            writer.write_all(&line.as_bytes()[sent..]).await?;
            drop(writer);
            Ok::<_, io::Error>(answered.await)
        };
        let outcome = self.clock.timeout(deadline, work).await;
        if let Some(pending) = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            pending.remove(&id);
        }
        match outcome {
            Err(_) => Err(QmpError::Deadline),
            Ok(Err(error)) => Err(QmpError::Closed(error.to_string())),
            Ok(Ok(Err(_))) => Err(QmpError::Closed("it hung up".into())),
            Ok(Ok(Ok(answer))) => answer,
        }
    }
}

impl Shared {
    fn deliver(&self, mut message: Value) {
        if message.get("event").and_then(Value::as_str) == Some("SHUTDOWN") {
            let by_guest = message.pointer("/data/guest").and_then(Value::as_bool).unwrap_or(false);
            *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner) = Some(Shutdown { by_guest });
            return;
        }
        let Some(id) = message.get("id").and_then(Value::as_u64) else { return };
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(waiting) = pending.as_mut().and_then(|pending| pending.remove(&id)) else { return };
        let answer = match message.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(QmpError::Refused(
                message
                    .pointer("/error/desc")
                    .and_then(Value::as_str)
                    .unwrap_or("no reason given")
                    .to_owned(),
            )),
        };
        // Whoever waited may have given up meanwhile.
        let _ = waiting.send(answer);
    }
}

/// Sends the first bytes of a line together with an open file; answers how many of them.
async fn send_with_file(stream: &UnixStream, line: &[u8], file: BorrowedFd<'_>) -> io::Result<usize> {
    stream
        .async_io(Interest::WRITABLE, || {
            let files = [file];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&files));
            Ok(sendmsg(stream.as_fd(), &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?)
        })
        .await
}

struct Lines {
    reader: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next message. Cancel-safe.
    async fn next(&mut self) -> Result<Value, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=searched + end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|error| QmpError::Closed(format!("it sent what is not JSON: {error}")));
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                return Err(QmpError::Closed("it sent a line of more than 1 MiB".into()));
            }
            let count = self.reader.read_buf(&mut self.buffer).await;
            match count {
                Ok(0) => return Err(QmpError::Closed("it hung up".into())),
                Ok(_) => {}
                Err(error) => return Err(QmpError::Closed(error.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flames_clock::SystemClock;
    use tokio::io::{AsyncBufReadExt, BufReader};

    const SECOND: Duration = Duration::from_secs(1);

    fn clock() -> Arc<dyn Clock> {
        Arc::new(SystemClock::new())
    }

    /// A monitor that greets, accepts the handshake and then does as it is scripted.
    async fn connect<F, Fut>(script: F) -> (Result<Qmp, QmpError>, Arc<Mutex<Option<Shutdown>>>)
    where
        F: FnOnce(BufReader<UnixStream>) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut theirs = BufReader::new(theirs);
            theirs.write_all(b"{\"QMP\": {}}\r\n").await.unwrap();
            let mut line = String::new();
            theirs.read_line(&mut line).await.unwrap();
            theirs.write_all(b"{\"return\": {}, \"id\": 1}\r\n").await.unwrap();
            script(theirs).await;
        });
        let shutdown = Arc::new(Mutex::new(None));
        (Qmp::handshake(ours, clock(), Arc::clone(&shutdown), SECOND).await, shutdown)
    }

    #[tokio::test]
    async fn answers_reach_their_commands_though_events_come_between() {
        let (connection, shutdown) = connect(|mut monitor| async move {
            let mut line = String::new();
            monitor.read_line(&mut line).await.unwrap();
            monitor.write_all(b"{\"event\": \"STOP\"}\n{\"return\": 5, \"id\": 99}\n").await.unwrap();
            monitor.write_all(b"{\"return\": {\"status\": \"paused\"}, \"id\": 2}\n").await.unwrap();
            monitor.write_all(b"{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\n").await.unwrap();
        })
        .await;
        let connection = connection.unwrap();
        let answer = connection.execute("query-status", json!({}), SECOND).await.unwrap();
        assert_eq!(answer["status"], "paused");
        connection.closed().await;
        assert!(connection.is_closed());
        assert_eq!(*shutdown.lock().unwrap(), Some(Shutdown { by_guest: true }));
        assert!(matches!(connection.execute("stop", json!({}), SECOND).await, Err(QmpError::Closed(_))));
    }

    #[tokio::test]
    async fn a_refusal_has_the_monitors_words() {
        let (connection, _) = connect(|mut monitor| async move {
            let mut line = String::new();
            monitor.read_line(&mut line).await.unwrap();
            monitor.write_all(b"{\"error\": {\"desc\": \"no balloon\"}, \"id\": 2}\n").await.unwrap();
            let _ = monitor.read_line(&mut line).await;
        })
        .await;
        let refused = connection.unwrap().execute("balloon", json!({}), SECOND).await;
        assert_eq!(refused, Err(QmpError::Refused("no balloon".into())));
    }

    #[tokio::test]
    async fn a_silent_monitor_costs_no_more_than_the_deadline() {
        let (connection, _) = connect(|mut monitor| async move {
            let mut line = String::new();
            while monitor.read_line(&mut line).await.is_ok_and(|count| count > 0) {}
        })
        .await;
        let connection = connection.unwrap();
        let silent = connection.execute("stop", json!({}), Duration::from_millis(20)).await;
        assert_eq!(silent, Err(QmpError::Deadline));
        assert!(connection.shared.pending.lock().unwrap().as_ref().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_line_without_end_closes_the_connection() {
        let (connection, _) =
            connect(|mut monitor| async move { while monitor.write_all(&[b' '; 4096]).await.is_ok() {} })
                .await;
        let closed = connection.unwrap().execute("stop", json!({}), Duration::from_secs(10)).await;
        assert!(matches!(closed, Err(QmpError::Closed(_))), "{closed:?}");
    }

    #[tokio::test]
    async fn what_is_not_a_monitor_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"hello\": 1}\n").await.unwrap();
        let refused = Qmp::handshake(ours, clock(), Arc::default(), SECOND).await;
        assert!(matches!(refused, Err(QmpError::Closed(_))));
    }
}
