//! Is a history of concurrent operations the history of some sequential run?
//!
//! The search of Wing and Gong ("Testing and verifying concurrent objects", 1993) with the memory of configurations that Lowe added
//! ("Testing for linearizability", 2017): operations are put in sequence one by one, each among those that no other one has to precede;
//! a pair (which operations are placed, what state they leave) that was seen before is not tried again.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// What a sequential object does.
pub trait Specification {
    /// What the object holds.
    type State: Clone + Eq + Hash;
    /// What it is asked.
    type Input: Debug;
    /// What it answers.
    type Output: Debug;

    /// The state that `input` leaves when `output` is an answer that the object may give in `state`; none when it is not.
    ///
    /// Without an output the answer was lost: the state that the operation leaves when it takes effect, none when it has none.
    fn step(state: &Self::State, input: &Self::Input, output: Option<&Self::Output>) -> Option<Self::State>;

    /// Whether an operation that was answered so changes nothing in whatever state it is answered so.
    fn only_reads(input: &Self::Input, output: &Self::Output) -> bool;
}

/// One operation of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<Input, Output> {
    /// Who asked. Only for people.
    pub client: usize,
    /// What was asked.
    pub input: Input,
    /// What was answered; none: the answer was lost, so the operation took effect at any time after `invoked`, or never.
    pub output: Option<Output>,
    /// When it was asked. Times are numbers, each given once; they need no unit.
    pub invoked: u64,
    /// When the answer came. Of no meaning without an output.
    pub returned: u64,
}

/// What the check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is a sequence: the operations' places in the history, in that order. Lost ones that took no effect are left out.
    Linearizable(Vec<usize>),
    /// There is none.
    Violation {
        /// The longest sequence found.
        placed: Vec<usize>,
        /// The operations of which one had to come next, and none can.
        stuck: Vec<usize>,
    },
    /// The limit of steps was reached first.
    Undecided,
}

/// Which operations are placed.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Placed(Vec<u64>);

impl Placed {
    fn none_of(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }
    fn has(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }
    fn flip(&mut self, index: usize) {
        self.0[index / 64] ^= 1 << (index % 64);
    }
}

/// A step of the search: what was placed in which state, and what else may be tried there.
struct Frame<State> {
    state: State,
    placed: Option<usize>,
    untried: Vec<usize>,
}

/// Checks `history`, in at most `max_steps` steps of the search.
pub fn check<S: Specification>(
    initial: S::State,
    history: &[Operation<S::Input, S::Output>],
    max_steps: u64,
) -> Verdict {
    Search::<S>::over(history).run(initial, max_steps)
}

struct Search<'a, S: Specification> {
    history: &'a [Operation<S::Input, S::Output>],
    /// The history's places in the order in which the operations were asked.
    by_invocation: Vec<usize>,
    placed: Placed,
    /// How many operations with an answer are not placed.
    answered_left: usize,
    seen: HashSet<(Placed, S::State)>,
}

impl<'a, S: Specification> Search<'a, S> {
    fn over(history: &'a [Operation<S::Input, S::Output>]) -> Self {
        let mut by_invocation: Vec<usize> = (0..history.len()).collect();
        by_invocation.sort_by_key(|index| history[*index].invoked);
        Self {
            history,
            by_invocation,
            placed: Placed::none_of(history.len()),
            answered_left: history.iter().filter(|operation| operation.output.is_some()).count(),
            seen: HashSet::new(),
        }
    }

    fn run(mut self, initial: S::State, max_steps: u64) -> Verdict {
        let mut longest: (Vec<usize>, Vec<usize>) = (Vec::new(), self.next_ones());
        let mut order: Vec<usize> = Vec::new();
        let untried = self.worth_trying(&initial);
        let mut stack = vec![Frame { state: initial, placed: None, untried }];
        let mut steps = 0;
        while self.answered_left > 0 {
            let Some(frame) = stack.last_mut() else {
                let (placed, stuck) = longest;
                return Verdict::Violation { placed, stuck };
            };
            let Some(index) = frame.untried.pop() else {
                let placed = frame.placed;
                stack.pop();
                if let Some(index) = placed {
                    self.flip(index);
                    order.pop();
                }
                continue;
            };
            steps += 1;
            if steps > max_steps {
                return Verdict::Undecided;
            }
            let Some(state) = self.step(&frame.state, index) else { continue };
            self.flip(index);
            if !self.seen.insert((self.placed.clone(), state.clone())) {
                self.flip(index);
                continue;
            }
            order.push(index);
            if order.len() > longest.0.len() {
                longest = (order.clone(), self.next_ones());
            }
            let untried = self.worth_trying(&state);
            stack.push(Frame { state, placed: Some(index), untried });
        }
        Verdict::Linearizable(order)
    }

    fn step(&self, state: &S::State, index: usize) -> Option<S::State> {
        let operation = &self.history[index];
        S::step(state, &operation.input, operation.output.as_ref())
    }

    fn flip(&mut self, index: usize) {
        let was_placed = self.placed.has(index);
        self.placed.flip(index);
        if self.history[index].output.is_some() {
            self.answered_left = if was_placed { self.answered_left + 1 } else { self.answered_left - 1 };
        }
    }

    /// The operations that may come next: asked before any other one that is not placed was answered.
    fn next_ones(&self) -> Vec<usize> {
        let mut first_answer = u64::MAX;
        let mut next = Vec::new();
        for index in self.by_invocation.iter().copied().filter(|index| !self.placed.has(*index)) {
            let operation = &self.history[index];
            if operation.invoked > first_answer {
                break;
            }
            next.push(index);
            if operation.output.is_some() {
                first_answer = first_answer.min(operation.returned);
            }
        }
        next.retain(|index| self.history[*index].invoked < first_answer);
        next
    }

    /// Those of the next ones that are to be tried in `state`, the last one first.
    ///
    /// One that only reads, may come next and is right in `state` is placed at once, without a second choice: whatever sequence goes on
    /// from here still does when that operation is moved to its front. (Not so for one that merely changes nothing in `state`, such
    /// as the deletion of what is absent: further back it may change something.)
    fn worth_trying(&self, state: &S::State) -> Vec<usize> {
        let mut next = self.next_ones();
        let reads = next.iter().copied().find(|index| {
            let operation = &self.history[*index];
            let only_reads =
                operation.output.as_ref().is_some_and(|output| S::only_reads(&operation.input, output));
            only_reads && self.step(state, *index).is_some()
        });
        if let Some(reads) = reads {
            return vec![reads];
        }
        // Answered ones first: a lost one mostly matters later, if at all.
        next.sort_by_key(|index| {
            let operation = &self.history[*index];
            (operation.output.is_some(), std::cmp::Reverse(operation.returned))
        });
        next
    }
}
