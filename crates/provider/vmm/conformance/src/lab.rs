//! What the cases do over and over, in the words that they are read in.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flames_clock::{RandomExt, SystemRandom};
use flames_error::{ErrorKind, Result};
use flames_vmm::{
    AGENT_PORT, Exit, Found, GuestStream, IncarnationName, MachineSpec, Observation, Phase, StopHow, VmDriver,
};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};

use crate::{Fixture, Limits};

pub(crate) struct Lab<'f> {
    pub(crate) fixture: &'f dyn Fixture,
    pub(crate) limits: Limits,
}

/// A name that no other case, in this process or another, has: devices of the host are named after it.
pub(crate) fn fresh_name() -> IncarnationName {
    let number: u64 = SystemRandom.next_u64();
    IncarnationName::new(format!("inc_{number:016x}")).unwrap()
}

#[track_caller]
pub(crate) fn refused<T>(answer: Result<T>, kind: ErrorKind) {
    match answer {
        Ok(_) => panic!("it succeeded, but should be {kind}"),
        Err(error) => assert_eq!(error.kind(), kind, "{error:?}"),
    }
}

impl<'f> Lab<'f> {
    pub(crate) fn new(fixture: &'f dyn Fixture) -> Self {
        Self { fixture, limits: fixture.limits() }
    }

    pub(crate) fn driver(&self) -> Arc<dyn VmDriver> {
        self.fixture.driver()
    }

    /// Waits for a call, but not for ever.
    pub(crate) async fn call<T>(&self, what: &str, call: impl Future<Output = T>) -> T {
        let limit = self.limits.call;
        timeout(limit, call).await.unwrap_or_else(|_| panic!("{what} took longer than {limit:?}"))
    }

    /// Asks again and again until the answer is there.
    pub(crate) async fn until<T, Asked>(&self, limit: Duration, what: &str, ask: impl Fn() -> Asked) -> T
    where
        Asked: Future<Output = Option<T>>,
    {
        let begun = Instant::now();
        loop {
            let answer = timeout(self.limits.call, ask()).await;
            match answer.unwrap_or_else(|_| panic!("asking whether {what} took too long")) {
                Some(answer) => return answer,
                None => assert!(begun.elapsed() < limit, "not within {limit:?}: {what}"),
            }
            self.fixture.settle(self.limits.poll).await;
        }
    }

    pub(crate) async fn prepare(&self, name: &IncarnationName, spec: &MachineSpec) {
        self.call("prepare", self.driver().prepare(name, spec)).await.unwrap();
    }

    pub(crate) async fn start(&self, name: &IncarnationName) {
        self.try_start(name).await.unwrap();
    }

    pub(crate) async fn try_start(&self, name: &IncarnationName) -> Result<()> {
        let from = self.fixture.start_from().await;
        self.call("start", self.driver().start(name, from, false)).await
    }

    pub(crate) async fn pause(&self, name: &IncarnationName) {
        self.call("pause", self.driver().pause(name)).await.unwrap();
    }

    pub(crate) async fn resume(&self, name: &IncarnationName) {
        self.call("resume", self.driver().resume(name)).await.unwrap();
    }

    pub(crate) async fn kill(&self, name: &IncarnationName) {
        self.stop(name, StopHow::Kill).await;
    }

    pub(crate) async fn stop(&self, name: &IncarnationName, how: StopHow) {
        self.call("stop", self.driver().stop(name, how)).await.unwrap();
    }

    pub(crate) async fn destroy(&self, name: &IncarnationName) {
        self.call("destroy", self.driver().destroy(name)).await.unwrap();
    }

    pub(crate) async fn observe(&self, name: &IncarnationName) -> Observation {
        self.call("observe", self.driver().observe(name)).await.unwrap()
    }

    pub(crate) async fn is_not_there(&self, name: &IncarnationName) {
        refused(self.call("observe", self.driver().observe(name)).await, ErrorKind::NotFound);
    }

    #[track_caller]
    pub(crate) fn is(&self, name: &IncarnationName, phase: Phase) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let observed = self.observe(name).await;
            assert_eq!(observed.phase, phase, "at {place}");
            assert_eq!(
                observed.exit.is_some(),
                phase == Phase::Exited,
                "an exit is told of what has exited; at {place}"
            );
        }
    }

    /// An incarnation that is prepared.
    pub(crate) async fn prepared(&self) -> IncarnationName {
        let name = fresh_name();
        self.prepare(&name, &self.fixture.spec().await).await;
        name
    }

    /// One that runs.
    pub(crate) async fn running(&self) -> IncarnationName {
        let name = self.prepared().await;
        self.start(&name).await;
        name
    }

    /// One that was killed.
    pub(crate) async fn exited(&self) -> IncarnationName {
        let name = self.running().await;
        self.kill(&name).await;
        name
    }

    /// How it ended, once it is seen to have.
    pub(crate) async fn exit_of(&self, name: &IncarnationName) -> Exit {
        let exit = || async {
            let observed = self.driver().observe(name).await.unwrap();
            (observed.phase == Phase::Exited)
                .then(|| observed.exit.expect("an exit is told of what has exited"))
        };
        self.until(self.limits.call, "it is observed to have exited", exit).await
    }

    /// What `adopt` finds. Nothing may be found twice.
    pub(crate) async fn adopt(&self) -> BTreeMap<IncarnationName, Observation> {
        let found = self.call("adopt", self.driver().adopt()).await.unwrap();
        let count = found.len();
        let by_name: BTreeMap<_, _> =
            found.into_iter().map(|Found { incarnation, observation }| (incarnation, observation)).collect();
        assert_eq!(by_name.len(), count, "adopt found one incarnation twice");
        by_name
    }

    /// Waits until as many monitors run, as seen from outside: a killed process may take a moment to be gone.
    pub(crate) async fn monitors_are(&self, count: usize) {
        let what = format!("{count} monitors run");
        let asked = || async { (self.fixture.monitors().await == count).then_some(()) };
        self.until(self.limits.call, &what, asked).await;
    }

    /// Waits until nothing is left.
    pub(crate) async fn nothing_is_left(&self) {
        self.monitors_are(0).await;
        let residue = self.fixture.residue().await;
        assert!(residue.is_empty(), "left on the host: {residue:?}");
    }

    /// A connection over which the guest has answered.
    pub(crate) async fn talk(&self, name: &IncarnationName) -> GuestStream {
        let attempt = || async {
            let mut stream = match self.driver().connect(name, AGENT_PORT).await {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::Unavailable => return None,
                Err(error) => panic!("{error:?}"),
            };
            // A first connection right after boot may break (vsock): then the next one counts.
            let answered = timeout(self.limits.call / 2, self.fixture.converse(&mut stream)).await;
            matches!(answered, Ok(Ok(()))).then_some(stream)
        };
        self.until(self.limits.boot, "the guest answers", attempt).await
    }

    /// Reads until the stream has ended, in order or by an error.
    pub(crate) async fn ends(&self, stream: &mut GuestStream) {
        let mut buffer = [0; 4096];
        self.call("the end of the stream", async {
            while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
        })
        .await;
    }

    /// The console's text from an offset, once there is any.
    pub(crate) async fn console(&self, name: &IncarnationName, from: u64) -> flames_vmm::ConsoleChunk {
        let read = || async {
            let chunk = self.driver().console(name, from).await.unwrap();
            (!chunk.data.is_empty()).then_some(chunk)
        };
        self.until(self.limits.boot, "the guest writes on its console", read).await
    }
}

/// Panics unless both are the same, but for what time alone changes.
#[track_caller]
pub(crate) fn same<T: PartialEq + Debug>(before: &T, after: &T) {
    assert_eq!(before, after, "it changed");
}
