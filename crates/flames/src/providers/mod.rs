//! The providers that the configuration chooses. Concrete ones are named here and in `up::machines`, and nowhere else.
//!
//! Choosing is one step and opening another: a plan is made of the settings alone, so that what is wrong with them is told before
//! anything is touched.

mod blob;
mod cache;
mod check;
mod ingress;
mod queue;
mod shared;
mod state;
mod views;

use std::sync::Arc;

use flames_blob::BlobStore;
use flames_cache::CacheStore;
use flames_clock::Clock;

pub(crate) use check::{Checked, Verdict, check};
pub(crate) use ingress::{Ingress, IngressPlan, Wake};
pub(crate) use queue::Queue;
pub(crate) use shared::lock_alone;
pub(crate) use state::State;
pub(crate) use views::make_views;

use crate::config::{Problem, Section, Settings};

/// Which provider each is to be, with all that it needs.
#[derive(Debug)]
pub(crate) struct Plans {
    pub(crate) state: state::StatePlan,
    pub(crate) blob: blob::BlobPlan,
    pub(crate) cache: cache::CachePlan,
    pub(crate) queue: queue::QueuePlan,
    pub(crate) ingress: IngressPlan,
}

/// The providers, open.
#[derive(Debug)]
pub(crate) struct Providers {
    pub(crate) state: State,
    pub(crate) blobs: Arc<dyn BlobStore>,
    pub(crate) cache: Arc<dyn CacheStore>,
    pub(crate) queue: Queue,
    /// Removes what puts to a cloud left behind.
    sweeping: Option<tokio::task::JoinHandle<()>>,
}

impl Plans {
    /// What the settings ask for, for a server beside which there may be others, and whose hosts outlive it.
    pub(crate) fn of_server(settings: &Settings) -> Result<Self, Vec<Problem>> {
        let plans = Self::of(settings)?;
        let problems = shared::problems(settings);
        if problems.is_empty() { Ok(plans) } else { Err(problems) }
    }

    /// What the settings ask for, or all that is wrong with them. Nothing is touched.
    pub(crate) fn of(settings: &Settings) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let state = state::StatePlan::of(settings).map_err(|problem| problems.push(problem));
        let blob = blob::BlobPlan::of(settings).map_err(|problem| problems.push(problem));
        let cache = cache::CachePlan::of(settings).map_err(|problem| problems.push(problem));
        let queue = queue::QueuePlan::of(settings).map_err(|problem| problems.push(problem));
        let ingress = IngressPlan::of(settings).map_err(|problem| problems.push(problem));
        match (state, blob, cache, queue, ingress) {
            (Ok(state), Ok(blob), Ok(cache), Ok(queue), Ok(ingress)) => {
                Ok(Self { state, blob, cache, queue, ingress })
            }
            _ => Err(problems),
        }
    }
}

impl Providers {
    /// Opens what is planned, the ingress apart.
    pub(crate) async fn open(
        state: state::StatePlan,
        blob: blob::BlobPlan,
        cache: cache::CachePlan,
        queue: queue::QueuePlan,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, Problem> {
        // Each cheaper than the next to take back, should one of them fail.
        let (blobs, sweeping) = blob.open(clock).await?;
        let cache = cache.open(clock).await?;
        let state = state.open(clock).await?;
        let queue = match queue.open(clock).await {
            Ok(queue) => queue,
            Err(problem) => {
                state.close().await;
                return Err(problem);
            }
        };
        Ok(Self { state, blobs, cache, queue, sweeping })
    }

    /// Closes what has to be closed. Nothing may use the providers any more.
    pub(crate) async fn close(&self) {
        if let Some(sweeping) = &self.sweeping {
            // A sweep that is cut off goes on at the next one.
            sweeping.abort();
        }
        self.queue.close().await;
        self.state.close().await;
    }
}

/// The problem of a backend that this build does not have.
#[allow(dead_code, reason = "a build with every feature lacks nothing")]
fn lacks(section: Section, settings: &Settings, backend: &'static str) -> Problem {
    let setting = format!("{}.backend", section.name());
    let sentence = format!(
        "this build of Flames has no backend `{backend}`: build one that has it with `cargo build -p flames --features {backend}`, or choose \
         another (from {}).",
        settings.source(&setting)
    );
    Problem::new(section, setting, sentence).of_backend(backend)
}

/// A count that has to fit what the adapter counts with.
#[allow(dead_code, reason = "not every build counts")]
fn small(section: Section, settings: &Settings, path: &str, least: u32) -> Result<u32, Problem> {
    let number = settings.number(path).unwrap_or_default();
    u32::try_from(number).ok().filter(|number| *number >= least).ok_or_else(|| {
        let sentence = format!(
            "it is a whole number from {least} to {}: correct it (from {}).",
            u32::MAX,
            settings.source(path)
        );
        Problem::new(section, path, sentence).of_backend(settings.backend(section))
    })
}

/// A URL with the password of its own setting in it.
#[cfg(feature = "postgres")]
fn signed_in(section: Section, settings: &Settings, url: &str, password: &str) -> Result<String, Problem> {
    let path = format!("{}.{url}", section.name());
    let url = settings.required(section, &path)?;
    let Some(secret) = settings.text(&format!("{}.{password}", section.name())) else {
        return Ok(url.to_owned());
    };
    let refuse =
        |sentence: &str| Problem::new(section, &path, sentence).of_backend(settings.backend(section));
    if crate::config::has_password(url) {
        return Err(refuse(
            "there is a password in this URL, and another in a setting of its own: leave one of the two out.",
        ));
    }
    crate::config::with_password(url, secret).ok_or_else(|| {
        refuse("there is a password, and the URL names no user: write postgres://USER@HOST/DATABASE.")
    })
}
