//! `flames config` and `flames db`: the configuration, and the database that it names.

use std::process::ExitCode;
use std::sync::Arc;

use flames_clock::{Clock, SystemClock};
use serde_json::json;

use crate::args::{CheckArgs, ConfigAction, DbAction, Global, Role, UpArgs};
use crate::config::{self, HostListenConfig, Problem, Settings, UpConfig};
use crate::daemon;
use crate::exit::{Outcome, USAGE};
use crate::output::{self, Output};
use crate::providers::{self, Plans, Verdict};

pub(super) async fn config(global: &Global, output: Output, action: &ConfigAction) -> Outcome {
    match action {
        ConfigAction::Example => output::write(config::example().as_bytes()).map(|()| ExitCode::SUCCESS),
        ConfigAction::Show(arguments) => show(global, output, arguments),
        ConfigAction::Check(arguments) => Box::pin(check(global, output, arguments)).await,
    }
}

fn show(global: &Global, output: Output, arguments: &UpArgs) -> Outcome {
    let settings = Settings::resolve(global, &arguments.settings, arguments.ephemeral);
    let settings = settings.map_err(|problems| config::failure(&problems))?;
    let shown = settings.shown();
    if output.json {
        output.json(&json!({ "file": settings.file(), "settings": shown }))?;
    } else {
        match settings.file() {
            Some(path) => output.say(format!("The file is {}.", path.display())),
            None => output.say("There is no file: `flames config example` writes one."),
        }
        let rows = shown.into_iter().map(|shown| vec![shown.setting.to_owned(), shown.value, shown.source]);
        output.table(&["setting", "value", "from"], rows.collect())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(global: &Global, output: Output, arguments: &CheckArgs) -> Outcome {
    let CheckArgs { role, up: arguments } = arguments;
    let settings = match Settings::resolve(global, &arguments.settings, arguments.ephemeral) {
        Ok(settings) => settings,
        Err(problems) => return tell(output, Vec::new(), &problems),
    };
    let mut problems: Vec<Problem> = UpConfig::of(&settings).err().into_iter().collect();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    if *role == Role::Controller {
        let checked = Box::pin(daemon::check_servers(&settings, &clock)).await;
        problems.extend(checked.iter().filter_map(|checked| checked.problem.clone()));
        return tell(output, checked, &problems);
    }
    let plans = match role {
        Role::Server => {
            problems.extend(HostListenConfig::of(&settings).err());
            Plans::of_server(&settings)
        }
        Role::Up | Role::Controller => Plans::of(&settings),
    };
    let plans = match plans {
        Ok(plans) => plans,
        Err(more) => {
            problems.extend(more);
            return tell(output, Vec::new(), &problems);
        }
    };
    let checked = Box::pin(providers::check(&settings, &plans, &clock)).await;
    problems.extend(checked.iter().filter_map(|checked| checked.problem.clone()));
    tell(output, checked, &problems)
}

/// The table, and one line for each problem.
fn tell(output: Output, checked: Vec<providers::Checked>, problems: &[Problem]) -> Outcome {
    if output.json {
        let problems: Vec<_> = problems
            .iter()
            .map(|problem| {
                json!({
                    "provider": problem.provider,
                    "backend": problem.backend,
                    "setting": problem.setting,
                    "problem": problem.problem,
                    "line": problem.to_string(),
                })
            })
            .collect();
        output.json(&json!({ "ok": problems.is_empty(), "checks": checked, "problems": problems }))?;
    } else {
        if !checked.is_empty() && !output.quiet {
            let rows = checked.iter().map(|row| {
                let verdict = match row.verdict {
                    Verdict::Ok => "ok",
                    Verdict::Note => "note",
                    Verdict::Wrong => "WRONG",
                };
                // What is wrong stands below, once.
                let found = if row.verdict == Verdict::Wrong { "see below" } else { &row.found };
                vec![
                    row.provider.to_owned(),
                    row.backend.clone(),
                    row.place.clone(),
                    verdict.to_owned(),
                    row.version.clone().unwrap_or_default(),
                    format!("{} ms", row.milliseconds),
                    found.to_owned(),
                ]
            });
            output.table(
                &["provider", "backend", "where", "verdict", "version", "took", "found"],
                rows.collect(),
            )?;
        }
        for problem in problems {
            output::write_error(format!("flames: {}\n", output::printable(&problem.to_string())).as_bytes())?;
        }
        if problems.is_empty() {
            output.say("The configuration can be used. Nothing was changed.");
        }
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(USAGE) })
}

pub(super) async fn db(global: &Global, output: Output, action: &DbAction) -> Outcome {
    let DbAction::Views(arguments) = action;
    let settings = Settings::resolve(global, &arguments.settings, arguments.ephemeral);
    let settings = settings.map_err(|problems| config::failure(&problems))?;
    let views = providers::make_views(&settings).await?;
    if output.json {
        output.json(&json!({ "views": views }))?;
    } else {
        views.iter().try_for_each(output::line)?;
    }
    Ok(ExitCode::SUCCESS)
}
