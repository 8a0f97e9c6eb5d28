//! Random sequences of operations, each compared with a reference model step by step, and cut down to the shortest that differs.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// How often, and for how long, a sequence that differs is run again to cut it down.
const SHRINKS: usize = 400;
const SHRINKING: Duration = Duration::from_secs(20);

/// The seeds that a case runs with: its own, or the one that the environment variable `FLAMES_SEED` gives. They are printed, so
/// that a failure can be repeated.
///
/// # Panics
/// When `FLAMES_SEED` is no number.
#[allow(clippy::print_stderr)]
pub fn seeds<const N: usize>(case: &str, own: [u64; N]) -> Vec<u64> {
    let seeds = match std::env::var("FLAMES_SEED") {
        Ok(text) => {
            vec![text.parse().unwrap_or_else(|_| panic!("FLAMES_SEED must be a number, not {text:?}"))]
        }
        Err(_) => own.to_vec(),
    };
    eprintln!("{case}: seeds {seeds:?} (FLAMES_SEED=N runs it with another)");
    seeds
}

/// Why a sequence of operations ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The provider did something else than the model.
    Differs(String),
    /// The machine was too slow for the times of the sequence to mean anything: it counts as not run.
    TooSlow,
}

impl From<String> for End {
    fn from(difference: String) -> Self {
        Self::Differs(difference)
    }
}

/// Compares what a provider answered with what its model says.
///
/// # Errors
/// The difference, in words, when they are not the same.
pub fn agree<T: PartialEq + Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?}, and not {expected:?}")) }
}

/// How many random sequences of operations a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequences {
    /// So many, whatever time they take.
    pub least: usize,
    /// No more than so many.
    pub most: usize,
    /// For how long sequences are run beyond the least number.
    pub time: Duration,
}

impl Sequences {
    /// Draws sequences of `operations` from each of the seeds and runs them with `run`, which is also told how many were run before, so that
    /// it can give each a place of its own.
    ///
    /// # Panics
    /// When a sequence differs, with the shortest one found that does; and when the machine was too slow for all of a seed's.
    pub async fn agree<Operation: Debug, Ended: Into<End>>(
        self,
        seeds: Vec<u64>,
        operations: impl Strategy<Value = Vec<Operation>>,
        mut run: impl AsyncFnMut(usize, &[Operation]) -> Result<(), Ended>,
    ) {
        let mut runs = 0;
        let mut run = async |sequence: &[Operation]| {
            runs += 1;
            run(runs, sequence).await.map_err(Into::into)
        };
        for seed in seeds {
            let (started, mut agreed) = (Instant::now(), 0);
            let mut runner = TestRunner::new_with_rng(Config::default(), random(seed));
            for sequence in 1..=self.most {
                if sequence > self.least && started.elapsed() > self.time {
                    break;
                }
                let Ok(mut tree) = operations.new_tree(&mut runner) else {
                    panic!("seed {seed}: no sequence can be drawn");
                };
                match run(&tree.current()).await {
                    Ok(()) => agreed += 1,
                    Err(End::TooSlow) => {}
                    Err(End::Differs(difference)) => {
                        let (shortest, difference) = shrink(&mut run, &mut tree, difference).await;
                        panic!(
                            "seed {seed}, sequence {sequence}: {difference}\nthe shortest found: {shortest:#?}"
                        );
                    }
                }
            }
            assert!(agreed > 0, "seed {seed}: the machine was too slow for every sequence");
        }
    }
}

fn random(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

/// Cuts a sequence that differs down, as far as it goes.
async fn shrink<Operation>(
    run: &mut impl AsyncFnMut(&[Operation]) -> Result<(), End>,
    tree: &mut impl ValueTree<Value = Vec<Operation>>,
    mut difference: String,
) -> (Vec<Operation>, String) {
    let (started, mut shortest) = (Instant::now(), tree.current());
    let mut is_smaller = tree.simplify();
    for _ in 0..SHRINKS {
        if !is_smaller || started.elapsed() > SHRINKING {
            break;
        }
        let sequence = tree.current();
        is_smaller = match run(&sequence).await {
            Err(End::Differs(found)) => {
                (shortest, difference) = (sequence, found);
                tree.simplify()
            }
            Ok(()) | Err(End::TooSlow) => tree.complicate(),
        };
    }
    (shortest, difference)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;

    use super::*;

    const FEW: Sequences = Sequences { least: 20, most: 20, time: Duration::ZERO };

    /// The first operation of 900 or more is what differs.
    async fn run(sequence: &[u32]) -> Result<(), String> {
        match sequence.iter().find(|operation| **operation >= 900) {
            Some(operation) => Err(format!("{operation} is too much")),
            None => Ok(()),
        }
    }

    #[tokio::test]
    async fn a_seed_gives_the_same_sequences_again_each_with_a_number_of_its_own() {
        let mut drawn = [Vec::new(), Vec::new()];
        for drawn in &mut drawn {
            FEW.agree(vec![7], vec(0_u32..900, 1..30), async |number, sequence| {
                drawn.push((number, sequence.to_vec()));
                run(sequence).await
            })
            .await;
        }
        assert_eq!(drawn[0], drawn[1]);
        assert_eq!(drawn[0].len(), 20);
        assert!(drawn[0].iter().map(|(number, _)| *number).eq(1..=20));
    }

    #[tokio::test]
    #[should_panic(expected = "900 is too much\nthe shortest found: [\n    900,\n]")]
    async fn what_differs_is_cut_down_to_what_it_takes() {
        FEW.agree(vec![7], vec(0_u32..1_000, 1..30), async |_, sequence| run(sequence).await).await;
    }

    #[tokio::test]
    #[should_panic(expected = "too slow for every sequence")]
    async fn a_machine_that_is_too_slow_for_all_proves_nothing() {
        FEW.agree(vec![7], vec(0_u32..9, 1..3), async |_, _| Err(End::TooSlow)).await;
    }
}
