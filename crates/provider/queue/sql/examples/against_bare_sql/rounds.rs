//! Measuring in turns, so that what else the machine does falls on all alike.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often each subject has its turn.
const ROUNDS: usize = 7;
/// How long a turn is.
const TURN: Duration = Duration::from_millis(1_200);

/// What is measured.
#[async_trait::async_trait]
pub(crate) trait Subject: Send + Sync {
    /// Takes one job, or a batch, from enqueue to ack; answers how many.
    async fn way_of_jobs(&self, client: usize) -> usize;
}

/// What came out: medians over the rounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) per_second: f64,
    pub(crate) p99: Duration,
}

/// Measures each subject in turn with so many clients, and prints what came out.
pub(crate) async fn compare<const N: usize>(
    clients: usize,
    subjects: [(&str, Arc<dyn Subject>); N],
) -> [Figure; N] {
    let mut turns = vec![Vec::new(); N];
    for round in 0..=ROUNDS {
        for (number, (_, subject)) in subjects.iter().enumerate() {
            let figure = turn(clients, subject).await;
            // The first round warms up.
            if round > 0 {
                turns[number].push(figure);
            }
        }
    }
    let figures = turns.iter().map(|figures| median(figures)).collect::<Vec<_>>();
    for ((name, _), figure) in subjects.iter().zip(&figures) {
        println!(
            "  {name:<26} {:>8.0} jobs/s, p99 {:>8.2} ms",
            figure.per_second,
            figure.p99.as_secs_f64() * 1e3
        );
    }
    figures.try_into().unwrap()
}

async fn turn(clients: usize, subject: &Arc<dyn Subject>) -> Figure {
    let began = Instant::now();
    let until = began + TURN;
    let client = |number| {
        let subject = Arc::clone(subject);
        tokio::spawn(async move {
            let (mut jobs, mut times) = (0, Vec::new());
            while Instant::now() < until {
                let began = Instant::now();
                jobs += subject.way_of_jobs(number).await;
                times.push(began.elapsed());
            }
            (jobs, times)
        })
    };
    let done = futures::future::join_all((0..clients).map(client).collect::<Vec<_>>()).await;
    let done: Vec<(usize, Vec<Duration>)> = done.into_iter().map(Result::unwrap).collect();
    let jobs: usize = done.iter().map(|(jobs, _)| jobs).sum();
    let mut times: Vec<Duration> = done.into_iter().flat_map(|(_, times)| times).collect();
    times.sort_unstable();
    let p99 = times[(times.len() * 99 / 100).min(times.len() - 1)];
    Figure { per_second: jobs as f64 / began.elapsed().as_secs_f64(), p99 }
}

fn median(figures: &[Figure]) -> Figure {
    let mut rates: Vec<f64> = figures.iter().map(|figure| figure.per_second).collect();
    rates.sort_by(f64::total_cmp);
    let mut tails: Vec<Duration> = figures.iter().map(|figure| figure.p99).collect();
    tails.sort_unstable();
    Figure { per_second: rates[rates.len() / 2], p99: tails[tails.len() / 2] }
}
