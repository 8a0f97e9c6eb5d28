//! `flames controller doctor`: whether this machine can run VMs in production, and which driver works on it.

use std::process::ExitCode;
use std::sync::Arc;

use flames_clock::{Clock, SystemClock, SystemRandom};
use flames_firecracker_api::Version;
use flames_firecracker_jail::{Check, DoctorConfig, Outcome as Verdict, checks};
use flames_vmm::{Usability, VmDriver};
use flames_vmm_firecracker::FirecrackerDriver;
use serde_json::json;

use crate::args::Global;
use crate::config::{SettingFlags, Settings, UpConfig, failure};
use crate::exit::{FAILED, Failure, Outcome};
use crate::output::Output;
use crate::{connect, up};

/// What a driver said of itself when it was tried.
struct Tried {
    driver: &'static str,
    version: Option<String>,
    acceleration: Option<String>,
    /// Why it does not work; none: it does.
    problem: Option<String>,
}

/// Checks all; fails when a check is fatal.
pub(super) async fn doctor(global: &Global, output: Output) -> Outcome {
    let settings =
        Settings::resolve(global, &SettingFlags::default(), false).map_err(|problems| failure(&problems))?;
    let arguments = UpConfig::of(&settings).map_err(|problem| failure(&[problem]))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let data = connect::data_folder(global)?;
    let jails = up::firecracker::config(&data.path().join("firecracker"), data.path(), &arguments)?;
    let mut config = DoctorConfig::new(jails.jail.clone(), Arc::new(supports));
    config.images = data.path().is_dir().then(|| data.path().to_owned());
    let found = checks(&config, &*clock).await;
    let tried = try_drivers(&arguments, &clock).await?;
    let is_fatal = found.iter().any(|check| check.outcome == Verdict::Fatal);
    if output.json {
        let drivers = tried.iter().map(|tried| {
            json!({
                "driver": tried.driver,
                "usable": tried.problem.is_none(),
                "version": tried.version,
                "acceleration": tried.acceleration,
                "problem": tried.problem,
            })
        });
        let drivers: Vec<_> = drivers.collect();
        let checks: Vec<_> = found.iter().map(as_json).collect();
        output.json(&json!({ "checks": checks, "drivers": drivers }))?;
    } else {
        show(output, &found, &tried, is_fatal)?;
    }
    Ok(if is_fatal { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

fn as_json(check: &Check) -> serde_json::Value {
    json!({
        "name": check.name,
        "outcome": check.outcome.to_string(),
        "found": check.found,
        "advice": check.advice,
    })
}

fn show(output: Output, found: &[Check], tried: &[Tried], is_fatal: bool) -> Result<(), Failure> {
    let rows = found.iter().map(|check| {
        let outcome = match check.outcome {
            Verdict::Fatal => "FATAL".to_owned(),
            other => other.to_string(),
        };
        vec![outcome, check.name.to_owned(), check.found.clone()]
    });
    output.table(&["", "check", "found"], rows.collect())?;
    for check in found {
        if let Some(advice) = &check.advice {
            output.say(format!("{}: {advice}", check.name));
        }
    }
    let rows = tried.iter().map(|tried| {
        let works = if tried.problem.is_none() { "works" } else { "does not" };
        let told = match &tried.problem {
            Some(problem) => problem.clone(),
            None => tried.acceleration.clone().unwrap_or_default(),
        };
        vec![works.to_owned(), tried.driver.to_owned(), tried.version.clone().unwrap_or_default(), told]
    });
    output.table(&["", "driver", "version", "found"], rows.collect())?;
    output.say(if is_fatal {
        "This machine cannot run VMs in production before what is FATAL is mended. docs/guides/production-host.md explains each check."
    } else {
        "VMs can run here behind Firecracker's jailer. docs/guides/production-host.md explains each check."
    });
    Ok(())
}

/// Whether a Firecracker that says this of itself is supported.
fn supports(said: &str) -> Result<String, String> {
    // The whole line of the program, or the version alone.
    let version = Version::from_program_output(said)
        .or_else(|error| said.trim().trim_start_matches('v').parse().map_err(|_| error))
        .map_err(|error| error.message().to_owned())?;
    match version.refusal() {
        Some(refusal) => Err(refusal),
        None => Ok(version.to_string()),
    }
}

/// Asks each driver of this build whether it works, in a folder that is removed again.
async fn try_drivers(arguments: &UpConfig, clock: &Arc<dyn Clock>) -> Result<Vec<Tried>, Failure> {
    let place = std::env::temp_dir().join(format!("flames-doctor-{}", std::process::id()));
    let tried = async {
        let mut config = up::firecracker::config(&place.join("firecracker"), &place, arguments)?;
        // Opening the networks may switch forwarding on, and this changes nothing. What they need is among the checks.
        config.network = None;
        let driver = FirecrackerDriver::new(config, Arc::clone(clock), Arc::new(SystemRandom))?;
        Ok(Vec::from([
            try_one(&driver).await,
            #[cfg(feature = "qemu")]
            try_one(&up::qemu(&place, arguments, clock)?).await,
        ]))
    };
    let tried = tried.await;
    // What is left of it is a temporary folder without content.
    let _ = std::fs::remove_dir_all(&place);
    tried
}

async fn try_one(driver: &dyn VmDriver) -> Tried {
    let name = driver.name();
    match driver.capabilities().await {
        Ok(found) => Tried {
            driver: name,
            version: found.version,
            acceleration: Some(found.acceleration),
            problem: match found.usability {
                Usability::Usable => None,
                Usability::Unusable(why) => Some(why),
            },
        },
        Err(error) => Tried {
            driver: name,
            version: None,
            acceleration: None,
            problem: Some(error.message().to_owned()),
        },
    }
}
