//! Seeded runs of the whole system: 200 of them must find nothing, and each sabotage must be found within those 200.
//!
//! One seed by hand: `FLAMES_SEED=17 cargo test -p flames-testbed --test seeds -- one_seed --nocapture`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "tests"
)]

use std::process::ExitCode;

use flames_testbed::{Histogram, Outcome, Plan, Sabotage, run};
use libtest_mimic::{Arguments, Failed, Trial};

/// How many seeds `cargo xtask test` runs.
const SEEDS: u64 = 200;
/// How many seeds one test runs.
const PER_TEST: u64 = 10;
/// How many VM operations each run asks for.
const OPERATIONS: u64 = 60;

fn plan(seed: u64, sabotage: Option<Sabotage>) -> Plan {
    Plan { seed, operations: OPERATIONS, sabotage }
}

fn judged(seed: u64) -> Result<Outcome, Failed> {
    let outcome = run(plan(seed, None)).map_err(|error| format!("seed {seed}: {error:?}"))?;
    let fired: u64 = outcome.faults.values().sum();
    if !outcome.violations.is_empty() {
        let listed: Vec<_> = outcome.violations.iter().map(ToString::to_string).collect();
        return Err(format!("seed {seed}:\n  {}", listed.join("\n  ")).into());
    }
    if outcome.operations < 50 || fired < 10 {
        return Err(format!("seed {seed}: only {} operations and {fired} faults", outcome.operations).into());
    }
    Ok(outcome)
}

fn seeds(from: u64) -> Result<(), Failed> {
    let (mut operations, mut histogram) = (0, Histogram::new());
    for seed in from..from + PER_TEST {
        let outcome = judged(seed)?;
        operations += outcome.operations;
        for (what, times) in outcome.faults {
            *histogram.entry(what).or_default() += times;
        }
    }
    let fired: u64 = histogram.values().sum();
    println!("report: seeds {from} to {}: {operations} operations, {fired} faults", from + PER_TEST - 1);
    for (what, times) in histogram {
        println!("    {times:5} {what}");
    }
    Ok(())
}

fn is_caught(sabotage: Sabotage) -> Result<(), Failed> {
    for seed in 0..SEEDS {
        let outcome = run(plan(seed, Some(sabotage)));
        match outcome {
            Ok(outcome) if outcome.violations.is_empty() => {}
            Ok(outcome) => {
                println!("report: {} is caught by seed {seed}: {}", sabotage.name(), outcome.violations[0]);
                return Ok(());
            }
            Err(error) => return Err(format!("seed {seed}: {error:?}").into()),
        }
    }
    Err(format!("{} is not caught within {SEEDS} seeds", sabotage.name()).into())
}

fn repeats(seed: u64) -> Result<(), Failed> {
    let (first, second) = (run(plan(seed, None)).unwrap(), run(plan(seed, None)).unwrap());
    if first == second {
        Ok(())
    } else {
        Err(format!("seed {seed} gave {} and {}", first.trace, second.trace).into())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for from in (0..SEEDS).step_by(usize::try_from(PER_TEST).unwrap()) {
        let name =
            format!("nothing_is_lost_leaked_or_doubled_under_seeds_{from:03}_to_{:03}", from + PER_TEST - 1);
        trials.push(Trial::test(name, move || seeds(from)));
    }
    for sabotage in Sabotage::ALL {
        trials.push(Trial::test(format!("the_judgement_catches_{}", sabotage.name()), move || {
            is_caught(sabotage)
        }));
    }
    for seed in [3, 141] {
        trials
            .push(Trial::test(format!("seed_{seed}_run_twice_gives_the_same_trace"), move || repeats(seed)));
    }
    if let Ok(seed) = std::env::var("FLAMES_SEED") {
        let seed = seed.parse().expect("FLAMES_SEED is a number");
        trials.push(Trial::test("one_seed", move || judged(seed).map(|outcome| println!("{outcome:#?}"))));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
