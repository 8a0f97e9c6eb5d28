//! Random sequences of calls, compared step by step with a plain map that may forget, and cut down to the shortest that shows a
//! difference.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flames_cache::CacheStoreExt;
use flames_clock::Monotonic;
use flames_conformance_runner::{Sequences, seeds};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{Fixture, key};

const SEQUENCES: Sequences = Sequences { least: 12, most: 64, time: Duration::from_secs(6) };
const STEPS: usize = 30;
const KEYS: [&str; 4] = ["a", "a:", "{a}b", "b"];

#[derive(Debug, Clone)]
enum Step {
    Get(usize),
    /// With a value of this many bytes, for so many units.
    Set {
        key: usize,
        size: usize,
        units: u32,
    },
    Delete(usize),
    /// Expecting what is there by the reference, or none, or something else.
    Swap {
        key: usize,
        expected: usize,
        size: usize,
        units: u32,
    },
    /// Lets so many units pass.
    Pass(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any_key = 0..KEYS.len();
    let size = prop_oneof![Just(0_usize), Just(1), 2..300_usize, Just(40_000)];
    let units = prop_oneof![1 => Just(0_u32), 2 => Just(2), 6 => Just(1_000)];
    let step = prop_oneof![
        8 => any_key.clone().prop_map(Step::Get),
        8 => (any_key.clone(), size.clone(), units.clone())
            .prop_map(|(key, size, units)| Step::Set { key, size, units }),
        4 => any_key.clone().prop_map(Step::Delete),
        8 => (any_key, 0..3_usize, size, units)
            .prop_map(|(key, expected, size, units)| Step::Swap { key, expected, size, units }),
        1 => (1..4_u32).prop_map(Step::Pass),
    ];
    vec(step, 1..=STEPS)
}

/// What does not agree.
type Difference = String;

struct Run<'f> {
    fixture: &'f dyn Fixture,
    prefix: String,
    /// The reference: the value last set, and until when it may be there.
    values: BTreeMap<usize, (Bytes, Monotonic)>,
    writes: u8,
}

impl Run<'_> {
    fn value(&mut self, size: usize) -> Bytes {
        self.writes = self.writes.wrapping_add(1);
        Bytes::from(vec![self.writes; size])
    }

    /// A little longer than asked: the cache may look a step of its clock later.
    fn until(&self, units: u32) -> Monotonic {
        let now = self.fixture.clock().monotonic();
        now.saturating_add(self.fixture.unit() * units + self.fixture.unit() / 2)
    }

    /// What may be there now.
    fn reference(&self, number: usize) -> Option<Bytes> {
        let now = self.fixture.clock().monotonic();
        self.values.get(&number).filter(|(_, until)| now < *until).map(|(value, _)| value.clone())
    }

    async fn step(&mut self, step: &Step) -> Result<(), Difference> {
        let (cache, unit) = (self.fixture.cache(), self.fixture.unit());
        let name = |number: &usize| key(&format!("{}{}", self.prefix, KEYS[*number]));
        let failed = |error: flames_error::Error| format!("{step:?}: {error:?}");
        match step {
            Step::Get(number) => {
                let before = self.reference(*number);
                let found = cache.find(&name(number)).await.map_err(failed)?;
                if found.is_some() && found != before {
                    let (found, before) = (found.map(|value| value.len()), before.map(|value| value.len()));
                    return Err(format!(
                        "{step:?}: a value of {found:?} bytes, and not of {before:?} or a miss"
                    ));
                }
                if found.is_none() {
                    self.values.remove(number);
                }
            }
            Step::Set { key, size, units } => {
                let name = name(key);
                let value = self.value(*size);
                cache.set(&name, value.clone(), unit * *units).await.map_err(failed)?;
                self.values.insert(*key, (value, self.until(*units)));
                if *units == 0 {
                    self.values.remove(key);
                }
            }
            Step::Delete(number) => {
                cache.delete(&name(number)).await.map_err(failed)?;
                self.values.remove(number);
            }
            Step::Swap { key, expected, size, units } => {
                if !cache.capabilities().compare_and_set {
                    return Ok(());
                }
                let name = name(key);
                let before = self.reference(*key);
                let other = Some(Bytes::from_static(b"another"));
                let expected = [before.clone(), None, other].into_iter().nth(*expected).flatten();
                let value = self.value(*size);
                let swapped =
                    cache.compare_and_set(&name, expected.as_ref(), value.clone(), unit * *units).await;
                let did = swapped.map_err(failed)?;
                // A value may be forgotten at any time; one that is there may not be taken for another.
                let may_do = expected == before || expected.is_none();
                let may_refuse = expected.is_some() || before.is_some();
                if (did && !may_do) || (!did && !may_refuse) {
                    return Err(format!(
                        "{step:?}: {did}, where {} bytes were expected",
                        expected.map_or(0, |e| e.len())
                    ));
                }
                if did {
                    self.values.insert(*key, (value, self.until(*units)));
                    if *units == 0 {
                        self.values.remove(key);
                    }
                }
            }
            Step::Pass(units) => self.fixture.advance(unit * *units).await,
        }
        Ok(())
    }
}

/// Runs a sequence on keys of its own.
async fn run(fixture: &dyn Fixture, number: usize, steps: &[Step]) -> Result<(), Difference> {
    let mut run = Run { fixture, prefix: format!("run/{number}/"), values: BTreeMap::new(), writes: 0 };
    for step in steps {
        run.step(step).await?;
    }
    for number in 0..KEYS.len() {
        run.step(&Step::Get(number)).await?;
    }
    Ok(())
}

pub(crate) async fn random_operations_agree_with_a_model_that_may_forget(fixture: &dyn Fixture) {
    let seeds = seeds("random_operations_agree_with_a_model_that_may_forget", [101]);
    SEQUENCES.agree(seeds, steps(), async |number, steps| run(fixture, number, steps).await).await;
}
