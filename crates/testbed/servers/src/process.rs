//! Processes as `/proc` shows them (proc(5)).

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How often an end is looked for.
const POLL: Duration = Duration::from_millis(5);

/// One process, known by its number and when it started, so that another one that was given its number later is never taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    pid: i32,
    parent: i32,
    start: u64,
}

/// A child with all that it started.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    identity: Option<Identity>,
}

impl Process {
    pub(crate) fn new(child: Child) -> Self {
        let identity = i32::try_from(child.id()).ok().and_then(living);
        Self { child, identity }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs. Takes in its end when it does not; whoever else in this program waits for children may
    /// have done so before.
    pub(crate) fn is_running(&mut self) -> bool {
        let _ = self.child.try_wait();
        self.identity.is_some_and(is_alive)
    }

    /// It and all processes that it is the ancestor of.
    fn family(&self) -> Vec<Identity> {
        let Some(root) = self.identity.filter(|identity| is_alive(*identity)) else { return Vec::new() };
        let all = all_processes();
        let mut family = vec![root];
        let mut index = 0;
        while let Some(parent) = family.get(index).map(|identity| identity.pid) {
            family.extend(all.iter().filter(|process| process.parent == parent));
            index += 1;
        }
        family
    }

    /// Sends a signal to it and to all that it started, to itself first, so that it cannot start one more in place
    /// of one that ended.
    pub(crate) fn signal_family(&self, signal: Signal) {
        signal_all(&self.family(), signal);
    }

    /// Asks it to end by `signal`, and kills all that is left of the family after `grace`. Returns when none is left.
    pub(crate) fn end(&mut self, signal: Signal, grace: Duration) {
        let family = self.family();
        if signal != Signal::KILL {
            // A frozen one would not hear it.
            signal_all(&family, Signal::CONT);
            signal_all(family.get(..1).unwrap_or_default(), signal);
            self.wait_for_end_of(&family, grace);
        }
        signal_all(&family, Signal::KILL);
        // A killed process ends as soon as the kernel has time for it; on a busy machine that is not at once.
        self.wait_for_end_of(&family, Duration::from_secs(30));
    }

    fn wait_for_end_of(&mut self, family: &[Identity], limit: Duration) {
        let deadline = Instant::now() + limit;
        while family.iter().any(|identity| is_alive(*identity)) && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        let _ = self.child.try_wait();
    }

    /// The TCP ports that it, or a process that it started, listens on.
    pub(crate) fn listens_on(&self) -> BTreeSet<u16> {
        let sockets: BTreeSet<u64> =
            self.family().iter().flat_map(|identity| socket_inodes(identity.pid)).collect();
        ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .filter_map(|table| std::fs::read_to_string(table).ok())
            .flat_map(|table| table.lines().filter_map(listener).collect::<Vec<_>>())
            .filter(|(_, inode)| sockets.contains(inode))
            .map(|(port, _)| port)
            .collect()
    }
}

fn signal_all(family: &[Identity], signal: Signal) {
    for identity in family.iter().filter(|identity| is_alive(**identity)) {
        if let Some(pid) = Pid::from_raw(identity.pid) {
            // The only failure is that it has ended since.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

fn is_alive(identity: Identity) -> bool {
    living(identity.pid).is_some_and(|now| now.start == identity.start)
}

/// `None` when there is no such process, or only what is left of one until its parent has asked how it ended. One whose first
/// thread has ended still lives, and holds its sockets, while it has others.
fn living(pid: i32) -> Option<Identity> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn all_processes() -> Vec<Identity> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| parse_stat(&std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?))
        .collect()
}

/// `pid (name) state ppid …`, where the name may hold anything; the 20th field is the number of threads and the 22nd the
/// start time in clock ticks.
fn parse_stat(stat: &str) -> Option<Identity> {
    let (pid, rest) = stat.split_once(" (")?;
    let fields: Vec<&str> = rest.rsplit_once(") ")?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&("Z" | "X"))) && matches!(fields.get(17), Some(&("0" | "1"))) {
        return None;
    }
    Some(Identity {
        pid: pid.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

fn socket_inodes(pid: i32) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.ok()?.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

/// Port and inode of one line of `/proc/net/tcp`, when its state is LISTEN (`0A`).
fn listener(line: &str) -> Option<(u16, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != "0A" {
        return None;
    }
    let port = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
    Some((port, fields.get(9)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_line_of_the_socket_table_gives_port_and_inode_of_a_listener_alone() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        assert_eq!(listener(line), Some((8080, 4711)));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("  sl  local_address rem_address   st tx_queue rx_queue"), None);
    }

    #[test]
    fn a_name_with_brackets_and_a_zombie_are_read_right() {
        let stat = "12 (a) R (b) S 7 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 9000 1 1";
        assert_eq!(parse_stat(stat), Some(Identity { pid: 12, parent: 7, start: 9000 }));
        let zombie = stat.replace(") S ", ") Z ");
        assert_eq!(parse_stat(&zombie), None);
        let with_threads = zombie.replace(" 20 0 1 0 ", " 20 0 5 0 ");
        assert!(parse_stat(&with_threads).is_some(), "its other threads still run");
    }

    #[test]
    fn to_end_a_process_ends_what_it_started_too() {
        let mut command = Command::new("sh");
        command.args(["-c", "setsid sleep 1000 & setsid sleep 1000 & wait"]).stdin(Stdio::null());
        let mut process = Process::new(command.spawn().unwrap());
        while process.family().len() < 3 {
            thread::sleep(POLL);
        }
        let family = process.family();
        process.end(Signal::KILL, Duration::ZERO);
        assert!(!process.is_running());
        assert!(family.iter().all(|identity| !is_alive(*identity)));
    }

    #[test]
    fn only_the_ports_of_the_process_itself_count() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut process = Process::new(Command::new("sleep").arg("1000").spawn().unwrap());
        assert!(!process.listens_on().contains(&listener.local_addr().unwrap().port()));
        process.end(Signal::KILL, Duration::ZERO);
    }
}
