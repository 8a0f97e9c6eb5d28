//! The phases of a VM, with how long each took, from what `flames --json inspect` shows.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// What is read of a VM's record; the rest is not for this.
#[derive(Deserialize)]
struct Vm {
    created_at: String,
    incarnation: Incarnation,
}

#[derive(Deserialize)]
struct Incarnation {
    timeline: Vec<Entry>,
    exit: Option<Exit>,
}

#[derive(Deserialize)]
struct Entry {
    state: String,
    at: String,
}

#[derive(Deserialize)]
struct Exit {
    at: String,
}

/// The states up to the workload's run, in the order of a life, and what happens in each.
const PHASES: [(&str, &str); 4] = [
    ("scheduled", "placed; its controller takes it up (after it tried KVM, the first time)"),
    ("preparing", "image and disk are made ready on the host"),
    ("starting", "the machine boots: kernel, agent, workload"),
    ("running", "the workload runs"),
];

/// A table of the phases: when each began, after the VM was asked for, and how long it lasted.
///
/// # Errors
/// When the record is not as `flames inspect` writes it, or tells of no run.
pub(super) fn table(record: &str) -> Result<String> {
    let vm: Vm = serde_json::from_str(record).context("this is no record of a VM that ran")?;
    let asked = milliseconds(&vm.created_at)?;
    let mut moments = vec![("accepted", "the API has stored the VM and finds a place for it", asked)];
    for (state, meaning) in PHASES {
        if let Some(entry) = vm.incarnation.timeline.iter().find(|entry| entry.state == state) {
            moments.push((state, meaning, milliseconds(&entry.at)?));
        }
    }
    let end = vm.incarnation.exit.context("the VM has not ended")?;
    moments.push(("ended", "", milliseconds(&end.at)?));
    let seconds = |milliseconds: i64| milliseconds as f64 / 1000.0;
    let mut table = String::new();
    for pair in moments.windows(2) {
        let [(name, meaning, from), (_, _, to)] = pair else { continue };
        // Writing into a String cannot fail.
        let _ = writeln!(
            table,
            "{name:<10} at {:>7.3} s  for {:>7.3} s  {meaning}",
            seconds(from - asked),
            seconds(to - from)
        );
    }
    let total = moments.last().map_or(0, |(_, _, at)| at - asked);
    let _ = write!(table, "ended      at {:>7.3} s", seconds(total));
    Ok(table)
}

/// A time of RFC 3339 in UTC (`2026-11-26T23:59:24.033Z`), as milliseconds since 1970.
fn milliseconds(text: &str) -> Result<i64> {
    parse(text).with_context(|| format!("`{text}` is no time in UTC"))
}

fn parse(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let number = |text: &str| text.parse::<u32>().ok().map(i64::from);
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':');
    let (hour, minute) = (number(time.next()?)?, number(time.next()?)?);
    let second = time.next()?;
    let (second, fraction) = second.split_once('.').unwrap_or((second, ""));
    let thousandths = number(format!("{fraction:0<3}").get(..3)?)?;
    // The civil calendar by years that begin in March, so that the leap day is the last of its year.
    let shifted = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + day_of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + number(second)?) * 1000 + thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_to_the_millisecond_also_around_a_leap_day() {
        assert_eq!(milliseconds("1970-01-01T00:00:00Z").unwrap(), 0);
        assert_eq!(milliseconds("2000-02-29T12:00:00.5Z").unwrap(), 951_825_600_500);
        assert_eq!(milliseconds("2026-11-26T23:59:24.033Z").unwrap(), 1_795_737_564_033);
        for wrong in ["", "now", "2026-11-26", "2026-11-26T23:59:24", "2026-11-26T23:59:é.0Z", "T::.éZ"] {
            assert!(milliseconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_phase_lasts_until_the_next_begins_and_the_last_until_the_workload_ended() {
        let record = r#"{
            "created_at": "2026-11-27T00:01:28.638Z",
            "incarnation": {
                "timeline": [
                    {"state": "scheduled", "at": "2026-11-27T00:01:28.643Z"},
                    {"state": "starting", "at": "2026-11-27T00:01:29.029Z"},
                    {"state": "running", "at": "2026-11-27T00:01:35.201Z"},
                    {"state": "stopping", "at": "2026-11-27T00:01:35.590Z"}
                ],
                "exit": {"code": 0, "at": "2026-11-27T00:01:35.582Z"}
            }
        }"#;
        let table = table(record).unwrap();
        let starts: Vec<&str> = table.lines().map(|line| line.get(..39).unwrap_or(line)).collect();
        assert_eq!(
            starts,
            [
                "accepted   at   0.000 s  for   0.005 s ",
                "scheduled  at   0.005 s  for   0.386 s ",
                "starting   at   0.391 s  for   6.172 s ",
                "running    at   6.563 s  for   0.381 s ",
                "ended      at   6.944 s",
            ]
        );
    }

    #[test]
    fn a_vm_that_never_ran_has_no_table() {
        assert!(table(r#"{"created_at": "2026-11-27T00:01:28Z", "incarnation": null}"#).is_err());
    }
}
