//! Misbehaviour on demand.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use flames_clock::{Random, RandomExt};
use flames_error::ErrorKind;
use flames_vmm::IncarnationName;

use crate::lock;

/// The driver's calls, as rules name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Operation {
    Capabilities,
    Adopt,
    Prepare,
    Start,
    Pause,
    Resume,
    Update,
    Snapshot,
    DeleteSnapshot,
    Connect,
    Accept,
    Console,
    Stats,
    Stop,
    Observe,
    Destroy,
    Exits,
}

impl Operation {
    /// The operation's name in errors (`vmm.start`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Capabilities => "vmm.capabilities",
            Self::Adopt => "vmm.adopt",
            Self::Prepare => "vmm.prepare",
            Self::Start => "vmm.start",
            Self::Pause => "vmm.pause",
            Self::Resume => "vmm.resume",
            Self::Update => "vmm.update",
            Self::Snapshot => "vmm.snapshot",
            Self::DeleteSnapshot => "vmm.delete_snapshot",
            Self::Connect => "vmm.connect",
            Self::Accept => "vmm.accept",
            Self::Console => "vmm.console",
            Self::Stats => "vmm.stats",
            Self::Stop => "vmm.stop",
            Self::Observe => "vmm.observe",
            Self::Destroy => "vmm.destroy",
            Self::Exits => "vmm.exits",
        }
    }
}

/// Whether trouble strikes before or after the call took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Applied {
    /// Nothing was changed.
    No,
    /// The call did its work; only the answer is lost.
    Yes,
}

/// What `observe` and `adopt` say instead of the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lie {
    /// The driver cannot tell: `Unknown`.
    Unknown,
    /// The phase before the true one: `Running` of what has exited, `Starting` of what runs.
    EarlierPhase,
}

/// How a guest or its monitor dies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Death {
    /// The guest powers itself off.
    PowerOff,
    /// The monitor crashes.
    Crash,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misbehaviour {
    /// The call fails with this kind.
    Fail {
        /// The error's kind.
        kind: ErrorKind,
        /// Whether it took effect.
        applied: Applied,
    },
    /// The call never returns.
    Hang {
        /// Whether it took effect.
        applied: Applied,
    },
    /// The call takes this much longer, before it takes effect.
    Delay(Duration),
    /// `observe`, or `adopt` for this incarnation, lies.
    Lie(Lie),
    /// `start`: the monitor dies before the guest runs. The call fails with `Internal` and this message.
    DieStarting {
        /// The monitor's last words.
        message: String,
    },
    /// `start`: the guest dies this long after it began to run.
    Die {
        /// How long it runs.
        after: Duration,
        /// How it dies.
        how: Death,
    },
    /// [`Operation::Exits`]: the hint of an exit is not sent.
    LoseHint,
}

impl Misbehaviour {
    /// Its name in [`Script::fired`].
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Fail { applied: Applied::No, .. } => "fail before",
            Self::Fail { applied: Applied::Yes, .. } => "fail after",
            Self::Hang { applied: Applied::No } => "hang before",
            Self::Hang { applied: Applied::Yes } => "hang after",
            Self::Delay(_) => "delay",
            Self::Lie(_) => "lie",
            Self::DieStarting { .. } => "die starting",
            Self::Die { .. } => "die",
            Self::LoseHint => "lose hint",
        }
    }
}

/// When something goes wrong, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The call concerned.
    pub operation: Operation,
    /// Only for this incarnation; none: for all.
    pub incarnation: Option<IncarnationName>,
    /// How often it fires before it is used up; none: always.
    pub times: Option<u32>,
    /// The chance of each matching call, in millionths.
    pub chance: u32,
    /// What goes wrong.
    pub misbehaviour: Misbehaviour,
}

impl Rule {
    /// The next call of `operation`, for whatever incarnation.
    pub fn once(operation: Operation, misbehaviour: Misbehaviour) -> Self {
        Self { operation, incarnation: None, times: Some(1), chance: 1_000_000, misbehaviour }
    }

    /// Every call of `operation`.
    pub fn always(operation: Operation, misbehaviour: Misbehaviour) -> Self {
        Self { times: None, ..Self::once(operation, misbehaviour) }
    }

    /// Only for `incarnation`.
    #[must_use]
    pub fn of(mut self, incarnation: &IncarnationName) -> Self {
        self.incarnation = Some(incarnation.clone());
        self
    }

    /// As often as this.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// With this chance, in millionths.
    #[must_use]
    pub fn with_chance(mut self, millionths: u32) -> Self {
        self.chance = millionths;
        self
    }
}

/// The rules by which a host misbehaves. They can be changed at any time.
///
/// Several rules can strike one call: a delay, then trouble, then a death. Of two of the same sort the one added first strikes, and
/// the other waits for the next call.
#[derive(Debug, Default)]
pub struct Script(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    rules: Vec<Rule>,
    fired: BTreeMap<(Operation, &'static str), u64>,
}

/// What goes wrong with one call.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) delay: Option<Duration>,
    pub(crate) before: Option<Trouble>,
    pub(crate) after: Option<Trouble>,
    pub(crate) lie: Option<Lie>,
    pub(crate) death: Option<PlannedDeath>,
    pub(crate) hint_lost: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    Fail(ErrorKind),
    Hang,
}

#[derive(Debug)]
pub(crate) enum PlannedDeath {
    Starting(String),
    Later(Duration, Death),
}

impl Plan {
    /// Takes the misbehaviour in, unless one of its sort is there.
    fn take(&mut self, misbehaviour: &Misbehaviour) -> bool {
        fn fill<T>(place: &mut Option<T>, value: T) -> bool {
            let free = place.is_none();
            if free {
                *place = Some(value);
            }
            free
        }
        let place = |plan: &mut Self, applied: Applied, trouble| match applied {
            Applied::No => fill(&mut plan.before, trouble),
            Applied::Yes => fill(&mut plan.after, trouble),
        };
        match misbehaviour {
            Misbehaviour::Fail { kind, applied } => place(self, *applied, Trouble::Fail(*kind)),
            Misbehaviour::Hang { applied } => place(self, *applied, Trouble::Hang),
            Misbehaviour::Delay(by) => fill(&mut self.delay, *by),
            Misbehaviour::Lie(lie) => fill(&mut self.lie, *lie),
            Misbehaviour::DieStarting { message } => {
                fill(&mut self.death, PlannedDeath::Starting(message.clone()))
            }
            Misbehaviour::Die { after, how } => {
                fill(&mut self.death, PlannedDeath::Later(*after, how.clone()))
            }
            Misbehaviour::LoseHint => !std::mem::replace(&mut self.hint_lost, true),
        }
    }
}

impl Script {
    /// Adds a rule behind the others.
    pub fn add(&self, rule: Rule) {
        lock(&self.0).rules.push(rule);
    }

    /// Removes all rules. What hangs already goes on hanging.
    pub fn clear(&self) {
        lock(&self.0).rules.clear();
    }

    /// How many rules are not used up.
    pub fn pending(&self) -> usize {
        lock(&self.0).rules.len()
    }

    /// How often each sort of misbehaviour struck each operation.
    pub fn fired(&self) -> BTreeMap<(Operation, &'static str), u64> {
        lock(&self.0).fired.clone()
    }

    pub(crate) fn plan(
        &self,
        operation: Operation,
        incarnation: Option<&IncarnationName>,
        random: &dyn Random,
    ) -> Plan {
        let mut plan = Plan::default();
        let mut inner = lock(&self.0);
        let Inner { rules, fired } = &mut *inner;
        rules.retain_mut(|rule| {
            let matches = rule.operation == operation
                && rule.incarnation.as_ref().is_none_or(|only| Some(only) == incarnation)
                && rule.times != Some(0);
            // `adopt` asks twice: as a call, and for each incarnation, about lies.
            let of_this_sort = operation != Operation::Adopt
                || matches!(rule.misbehaviour, Misbehaviour::Lie(_)) == incarnation.is_some();
            let strikes = matches
                && of_this_sort
                && (rule.chance >= 1_000_000 || random.below(1_000_000) < u64::from(rule.chance));
            if strikes && plan.take(&rule.misbehaviour) {
                *fired.entry((operation, rule.misbehaviour.as_str())).or_default() += 1;
                rule.times = rule.times.map(|left| left.saturating_sub(1));
            }
            rule.times != Some(0)
        });
        plan
    }
}
