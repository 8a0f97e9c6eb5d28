//! Two ways of doing the same work, measured in turns.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::measure::{Samples, count, median};
use crate::report::{Figure, Row};

/// One operation under way; it answers how many units of work it did.
pub(crate) type Working = Pin<Box<dyn Future<Output = Result<usize>> + Send>>;

/// One way of doing the work: the number of the client that asks comes in.
pub(crate) type Operation = Arc<dyn Fn(usize) -> Working + Send + Sync>;

/// Makes an [`Operation`] of an async function of shared things and the client's number.
pub(crate) fn operation<S, F>(
    shared: &Arc<S>,
    work: impl Fn(Arc<S>, usize) -> F + Send + Sync + 'static,
) -> Operation
where
    S: Send + Sync + 'static,
    F: Future<Output = Result<usize>> + Send + 'static,
{
    let shared = Arc::clone(shared);
    Arc::new(move |client| Box::pin(work(Arc::clone(&shared), client)))
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Turns of each side.
    pub(crate) rounds: u32,
    /// The length of a turn.
    pub(crate) window: Duration,
}

/// What one side came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Side {
    /// Units a second, of each turn.
    pub(crate) rates: Vec<f64>,
    took: Samples,
}

/// What a comparison came to.
#[derive(Debug, Clone)]
pub(crate) struct Compared {
    pub(crate) ours: Side,
    pub(crate) bare: Side,
}

impl Compared {
    /// Our rate over the bare one: the middle one of the ratios of turns that stood side by side, so that a machine that others slow
    /// down for a while slows both.
    pub(crate) fn ratio(&self) -> f64 {
        median(self.ours.rates.iter().zip(&self.bare.rates).map(|(ours, bare)| ours / bare).collect())
    }

    /// Our 99th percentile over the bare one.
    pub(crate) fn p99_ratio(&self) -> f64 {
        self.ours.took.quantile_ms(0.99) / self.bare.took.quantile_ms(0.99).max(1e-9)
    }

    pub(crate) fn row(&self, key: impl Into<String>) -> Row {
        let figure = |name, value| Figure { name, value };
        Row {
            key: key.into(),
            figures: vec![
                figure("ours /s", median(self.ours.rates.clone())),
                figure("bare /s", median(self.bare.rates.clone())),
                figure("ratio", self.ratio()),
                figure("ours p99 ms", self.ours.took.quantile_ms(0.99)),
                figure("bare p99 ms", self.bare.took.quantile_ms(0.99)),
                figure("p99 ratio", self.p99_ratio()),
            ],
        }
    }
}

/// Measures both sides under `clients` that ask again as soon as they are answered, in turns; who begins changes each time.
pub(crate) async fn compare(
    effort: Effort,
    clients: usize,
    ours: &Operation,
    bare: &Operation,
) -> Result<Compared> {
    for side in [ours, bare] {
        load(side, clients, effort.window / 4).await?;
    }
    let (mut of_ours, mut of_bare) = (Side::default(), Side::default());
    for round in 0..effort.rounds {
        let mut turns = [(ours, &mut of_ours), (bare, &mut of_bare)];
        if round % 2 == 1 {
            turns.reverse();
        }
        for (operation, side) in turns {
            let (rate, took) = load(operation, clients, effort.window).await?;
            side.rates.push(rate);
            side.took.extend(took);
        }
    }
    Ok(Compared { ours: of_ours, bare: of_bare })
}

/// One turn: units a second, and how long each operation took.
pub(crate) async fn load(
    operation: &Operation,
    clients: usize,
    window: Duration,
) -> Result<(f64, Vec<Duration>)> {
    let began = Instant::now();
    let clients: Vec<_> = (0..clients)
        .map(|client| {
            let operation = Arc::clone(operation);
            tokio::spawn(async move {
                let (mut units, mut took) = (0_usize, Vec::new());
                while began.elapsed() < window {
                    let asked = Instant::now();
                    units += operation(client).await?;
                    took.push(asked.elapsed());
                }
                anyhow::Ok((units, took))
            })
        })
        .collect();
    let (mut units, mut took) = (0_usize, Vec::new());
    for client in clients {
        let (more, durations) = client.await??;
        units += more;
        took.extend(durations);
    }
    Ok((count(units) / began.elapsed().as_secs_f64(), took))
}

/// Measures ways of doing a bounded piece of work, such as emptying a queue, in turns: units a second of each, the middle one.
pub(crate) async fn rates<const N: usize>(
    rounds: u32,
    mut work: impl AsyncFnMut(usize) -> Result<f64>,
) -> Result<[f64; N]> {
    let mut rates = [const { Vec::new() }; N];
    for round in 0..rounds as usize {
        for turn in 0..N {
            let way = (turn + round) % N;
            if let Some(rates) = rates.get_mut(way) {
                rates.push(work(way).await?);
            }
        }
    }
    Ok(rates.map(median))
}
