use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};

use super::mounts::Roots;
use crate::console;

/// Ends every process but this one (SIGTERM, `grace`, SIGKILL), and makes the root file systems read-only. The
/// agent reaps meanwhile. For PID 1.
pub async fn end_everything(grace: Duration, roots: &Roots) {
    signal_others(Signal::TERM);
    wait_for_others(grace).await;
    signal_others(Signal::KILL);
    wait_for_others(Duration::from_secs(2)).await;
    rustix::fs::sync();
    roots.make_read_only();
}

async fn wait_for_others(limit: Duration) {
    let begun = Instant::now();
    while !others().is_empty() && begun.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn signal_others(signal: Signal) {
    for pid in others() {
        let _ = kill_process(pid, signal);
    }
}

/// Every process with a program but PID 1: neither kernel threads nor the dead have one.
fn others() -> Vec<Pid> {
    let Ok(entries) = std::path::Path::new("/proc").read_dir() else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|number| *number != 1 && std::fs::read_link(format!("/proc/{number}/exe")).is_ok())
        .filter_map(Pid::from_raw)
        .collect()
}

/// Ends the VM. A restart, since that is what every machine knows: Firecracker exits at it (`reboot=k`), and so
/// does QEMU under `-no-reboot` (`reboot=t`).
pub fn restart() -> ! {
    rustix::fs::sync();
    let _ = reboot(RebootCommand::Restart);
    // The kernel does not come back from it; should it refuse, PID 1 ends, and the kernel with it.
    std::process::exit(1)
}

/// Ends the VM with one line on the console.
pub fn fatal(why: &str) -> ! {
    console::line(&format!("fatal: {}", why.replace('\n', " ")));
    // A serial console sends while the machine still runs.
    let _ = rustix::termios::tcdrain(rustix::stdio::stderr());
    std::thread::sleep(Duration::from_millis(50));
    restart()
}
