//! Requests and answers, as JSON. Unknown fields are ignored, so that either side may be the newer one; an
//! unknown operation is answered with `not_supported`.

mod files;
mod processes;

use serde::{Deserialize, Serialize};

pub use files::*;
pub use processes::*;

use crate::config::NetworkConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::{AgentKey, SecretString};

/// The id of the workload's own process.
pub const MAIN_PROCESS: &str = "main";

/// What one stream asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "operation", content = "arguments", rename_all = "snake_case")]
pub enum Operation {
    /// What this guest is; its answer is also the sign that the guest is ready. Answer: [`Info`].
    Info,
    /// Starts a process and attaches to it. Answer: [`ExecStarted`], then output as with `Attach`.
    Exec(ExecRequest),
    /// Every process that the agent knows. Answer: a list of [`ProcessStatus`].
    ListProcesses,
    /// Joins a process's output and, if asked for, its input. Answer: [`ProcessStatus`], then output, exit, end.
    Attach(AttachRequest),
    /// Sends a signal to a process. Answer: [`Done`].
    Signal(SignalRequest),
    /// Closes a process's standard input. Answer: [`Done`].
    CloseStdin(ProcessRequest),
    /// Changes the size of a process's terminal. Answer: [`Done`].
    Resize(ResizeRequest),
    /// Waits until a process has exited. Answer: [`ProcessExit`].
    Wait(ProcessRequest),
    /// Says that the host has a process's exit for good; the agent forgets all but `main`. Answer: [`Done`].
    AcknowledgeExit(ProcessRequest),
    /// Reads a file. Answer: [`FileStatus`], then data frames, then end.
    ReadFile(ReadFileRequest),
    /// Writes a file: data frames, then end. Answers: [`Done`] when data may come, [`FileStatus`] when it stands.
    WriteFile(WriteFileRequest),
    /// Lists a directory, in the order of names. Answer: entries frames, then [`DirectoryListed`].
    ListDirectory(ListDirectoryRequest),
    /// What a path is. Answer: [`FileStatus`].
    Stat(StatRequest),
    /// Removes a file, or a directory. Answer: [`Done`].
    Remove(RemoveRequest),
    /// Renames within one file system. Answer: [`Done`].
    Rename(RenameRequest),
    /// Makes a directory. Answer: [`Done`].
    MakeDirectory(MakeDirectoryRequest),
    /// Connects to a TCP port of the guest's loopback. Answer: [`Done`]; from then on the stream is the connection.
    Tcp(TcpRequest),
    /// Sets the guest's wall clock. Answer: [`Done`].
    SetClock(SetClockRequest),
    /// Writes out what the guest's file systems hold back. Answer: [`Done`].
    Flush,
    /// Says that this guest was restored from a snapshot and is another incarnation now. Answer: [`Done`]; then the session ends, and the next
    /// one is the new identity's.
    Restored(Box<RestoredRequest>),
    /// Ends every process and then the VM. Answer: [`Done`], at once.
    Shutdown(ShutdownRequest),
    /// Follows events. Answer: [`Done`], then event frames without end.
    Events(EventsRequest),
}

impl Operation {
    const NAMES: [&'static str; 22] = [
        "info",
        "exec",
        "list_processes",
        "attach",
        "signal",
        "close_stdin",
        "resize",
        "wait",
        "acknowledge_exit",
        "read_file",
        "write_file",
        "list_directory",
        "stat",
        "remove",
        "rename",
        "make_directory",
        "tcp",
        "set_clock",
        "flush",
        "restored",
        "shutdown",
        "events",
    ];

    /// Reads a request's JSON.
    ///
    /// Errors: `NotSupported` for an operation that this version does not know, `InvalidInput` for wrong
    /// arguments, `Corrupt` for what is no request.
    pub fn decode(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Named {
            operation: String,
        }
        serde_json::from_slice(json).map_err(|error| match serde_json::from_slice::<Named>(json) {
            Ok(named) if Self::NAMES.contains(&named.operation.as_str()) => {
                Error::new(ErrorKind::InvalidInput, format!("{}: {error}", named.operation)).sanitized()
            }
            Ok(named) => {
                Error::new(ErrorKind::NotSupported, format!("unknown operation {:?}", named.operation))
                    .sanitized()
            }
            Err(_) => Error::new(ErrorKind::Corrupt, "not a request"),
        })
    }

    /// Whether applying it twice could differ from once, so that a lost answer leaves the outcome unknown.
    #[must_use]
    pub fn changes_something(&self) -> bool {
        !matches!(
            self,
            Self::Info
                | Self::Flush
                | Self::ListProcesses
                | Self::Attach(_)
                | Self::Wait(_)
                | Self::ReadFile(_)
                | Self::ListDirectory(_)
                | Self::Stat(_)
                | Self::Events(_)
                | Self::Tcp(_)
        )
    }
}

/// An answer without content.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Done {}

/// What a guest is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Info {
    /// The agent's own version.
    pub agent_version: String,
    /// The incarnation that the agent was configured for.
    pub incarnation: String,
    /// The kernel's release, as in `uname -r`.
    pub kernel: String,
    /// The guest's host name.
    #[serde(default)]
    pub hostname: String,
    /// Whether the agent is PID 1.
    #[serde(default)]
    pub init: bool,
    /// Milliseconds since the guest's kernel started.
    #[serde(default)]
    pub uptime_ms: u64,
    /// When each step of the boot was done, in the order in which they ran.
    #[serde(default)]
    pub boot: Vec<BootStep>,
}

/// One step of the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStep {
    /// What was done.
    pub name: String,
    /// When it was done: milliseconds since the guest's kernel started.
    pub uptime_ms: u64,
}

/// A port to connect to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct TcpRequest {
    /// The port.
    pub port: u16,
}

/// A time to set.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct SetClockRequest {
    /// Milliseconds since 1970.
    pub epoch_ms: u64,
}

/// What a restored guest is from now on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoredRequest {
    /// The incarnation that it is.
    pub incarnation: String,
    /// The key of that incarnation.
    pub key: AgentKey,
    /// Its host name; empty leaves the one it has.
    #[serde(default)]
    pub hostname: String,
    /// Its static network; none leaves what it has.
    #[serde(default)]
    pub network: Option<NetworkConfig>,
    /// The wall clock, in milliseconds since 1970.
    pub epoch_ms: u64,
    /// 32 random bytes for the kernel's random number generator, as 64 hexadecimal digits.
    pub seed: SecretString,
    /// What `/etc/machine-id` is to hold: 32 hexadecimal digits.
    pub machine_id: String,
}

/// How to end the VM.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ShutdownRequest {
    /// How long processes may take between SIGTERM and SIGKILL, in milliseconds; an hour is the most.
    pub grace_ms: u64,
}

/// Where to begin with events.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct EventsRequest {
    /// Only events after this sequence number; 0 begins with every exit that is not acknowledged.
    #[serde(default)]
    pub after_sequence: u64,
}

/// Something that happened in the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Grows with each event of one boot.
    pub sequence: u64,
    /// What happened.
    pub happened: Happened,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Happened {
    /// A process ended.
    ProcessExited {
        /// Its id.
        process: String,
        /// How.
        exit: ProcessExit,
    },
    /// Something that this version does not know.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_operation_is_not_supported_and_a_wrong_argument_is_invalid() {
        let kind = |json: &str| Operation::decode(json.as_bytes()).unwrap_err().kind;
        assert_eq!(kind(r#"{"operation":"teleport","arguments":{}}"#), ErrorKind::NotSupported);
        assert_eq!(kind(r#"{"operation":"tcp","arguments":{"port":"x"}}"#), ErrorKind::InvalidInput);
        assert_eq!(kind("[]"), ErrorKind::Corrupt);
    }

    #[test]
    fn every_operation_has_its_name_listed() {
        for name in Operation::NAMES {
            let json = format!(r#"{{"operation":"{name}"}}"#);
            if let Err(error) = Operation::decode(json.as_bytes()) {
                assert_eq!(error.kind, ErrorKind::InvalidInput, "{name}");
                assert!(!error.message.contains("unknown variant"), "{error}");
            }
        }
    }

    #[test]
    fn fields_of_a_newer_peer_are_ignored() {
        let json = br#"{"operation":"tcp","arguments":{"port":80,"novel":true},"trace":"x"}"#;
        assert!(matches!(Operation::decode(json).unwrap(), Operation::Tcp(TcpRequest { port: 80 })));
    }

    #[test]
    fn an_event_of_a_newer_agent_is_unknown_and_no_error() {
        let event: Event =
            serde_json::from_str(r#"{"sequence":3,"happened":{"kind":"novel","x":1}}"#).unwrap();
        assert_eq!(event.happened, Happened::Unknown);
    }
}
