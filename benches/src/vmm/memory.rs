//! What processes keep of memory: the monitors' beyond their guests', and this one's for each machine that it drives.

use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::hand::ByHand;
use super::ours::Ours;
use super::{Machines, all, figure, middle};
use crate::measure::count;
use crate::report::{Row, Section};

/// Machines that are there before this process is looked at, so that what it keeps once for all is not counted.
const BEFORE: usize = 2;
const MACHINES: usize = 20;

/// What this process has grown by for each machine, in KiB; and a section with it and what the monitors have.
pub(super) async fn measure(
    ours: &Arc<Ours>,
    by_hand: Option<&Arc<ByHand>>,
    memory_mib: u64,
) -> Result<(f64, Section)> {
    restored(ours, 0, BEFORE).await?;
    let before = own_kib()?;
    restored(ours, BEFORE, MACHINES).await?;
    let kept = (own_kib()? - before).max(0.0) / count(MACHINES);
    let mut rows = vec![Row { key: "ours".to_owned(), figures: of_monitors(ours, memory_mib).await? }];
    if let Some(row) = rows.first_mut() {
        row.figures.push(figure("driver's process", kept));
    }
    let ended = all(ours, BEFORE + MACHINES, |ours, number| async move { ours.end(number).await });
    ended.await?;
    if let Some(hand) = by_hand {
        restored(hand, 0, MACHINES).await?;
        rows.push(Row { key: "by hand".to_owned(), figures: of_monitors(hand, memory_mib).await? });
        all(hand, MACHINES, |hand, number| async move { hand.end(number).await }).await?;
    }
    let title = format!(
        "Memory for one of {MACHINES} restored machines, the middle one. KiB. RSS and PSS: of the monitor without its guest's memory; PSS counts what \
         monitors share once."
    );
    Ok((kept, Section { title, key: "machines", rows }))
}

async fn restored<M: Machines + 'static>(machines: &Arc<M>, from: usize, how_many: usize) -> Result<()> {
    let restored =
        all(machines, how_many, |machines, number| async move { machines.restore(from + number).await });
    restored.await.map(drop)
}

async fn of_monitors<M: Machines>(machines: &Arc<M>, memory_mib: u64) -> Result<Vec<crate::report::Figure>> {
    let (mut rss, mut pss) = (Vec::new(), Vec::new());
    for number in 0..MACHINES {
        let Some(pid) = machines.pid(number).await? else { continue };
        // A simulated one has a number, and no process.
        let Ok(maps) = std::fs::read_to_string(format!("/proc/{pid}/smaps")) else { continue };
        let of_one = beyond_guest(&maps, memory_mib * 1024);
        rss.push(of_one.0);
        pss.push(of_one.1);
    }
    if rss.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![figure("RSS", middle(rss)?), figure("PSS", middle(pss)?)])
}

/// RSS and PSS in KiB of all mappings but the guest's memory, which is the only one as large as half of it (proc_pid_smaps(5)).
fn beyond_guest(maps: &str, guest_kib: u64) -> (f64, f64) {
    let (mut rss, mut pss, mut is_guest) = (0.0, 0.0, false);
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let kib = || value.parse::<f64>().unwrap_or_default();
        match name {
            "Size:" => is_guest = kib() >= count(usize::try_from(guest_kib / 2).unwrap_or(usize::MAX)),
            "Rss:" if !is_guest => rss += kib(),
            "Pss:" if !is_guest => pss += kib(),
            _ => {}
        }
    }
    (rss, pss)
}

/// What this process has of memory that is its own.
fn own_kib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let value = line.split_ascii_whitespace().next().context("no value")?;
    Ok(value.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_memory_is_not_its_monitors() {
        let maps = "55d0-55d1 r-xp 0 08:01 1 /firecracker\nSize:  3000 kB\nRss:  2000 kB\nPss: 100 kB\n\
                    7f00-7f01 rw-p 0 08:01 2 /memory\nSize: 65536 kB\nRss: 9000 kB\nPss: 9000 kB\n\
                    7fff-8000 rw-p 0 00:00 0 [stack]\nSize: 132 kB\nRss: 12 kB\nPss: 12 kB\n";
        assert_eq!(beyond_guest(maps, 65_536), (2012.0, 112.0));
    }
}
