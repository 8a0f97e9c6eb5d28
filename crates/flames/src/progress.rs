//! How far something is, for whoever watches.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{self, Output};

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(100);

/// The phase that something is in: a spinner on a terminal, a line for each phase elsewhere, nothing when quiet.
#[derive(Debug)]
pub(crate) struct Phases {
    spinner: Option<ProgressBar>,
    output: Output,
    subject: String,
    phase: String,
    since: Instant,
}

impl Phases {
    pub(crate) fn start(output: Output, subject: &str) -> Self {
        let spinner = output.is_watched().then(|| {
            let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})") {
                spinner.set_style(style);
            }
            spinner.set_prefix(output::printable(subject));
            spinner.enable_steady_tick(TURN);
            spinner
        });
        Self { spinner, output, subject: subject.to_owned(), phase: String::new(), since: Instant::now() }
    }

    /// What is done it is called from now on.
    pub(crate) fn subject(&mut self, subject: &str) {
        self.subject = subject.to_owned();
        if let Some(spinner) = &self.spinner {
            spinner.set_prefix(output::printable(subject));
        }
    }

    /// Another phase has begun. The same one again says nothing.
    pub(crate) fn phase(&mut self, phase: &str) {
        if self.phase == phase {
            return;
        }
        self.phase = phase.to_owned();
        match &self.spinner {
            Some(spinner) => spinner.set_message(phase.to_owned()),
            None => {
                let after = self.since.elapsed().as_secs_f64();
                self.output.say(format!("{}: {phase} ({after:.1} s)", output::printable(&self.subject)));
            }
        }
    }

    /// Takes the display away.
    pub(crate) fn finish(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        self.finish();
    }
}
