//! A network inside this process, which can be broken: for the wrong providers that prove a suite.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::Faults;

#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    /// How often all connections were cut.
    cuts: u64,
    stalled: bool,
    answers_stalled: bool,
    /// After how many bytes each connection is cut, and how often that was said.
    budget: Option<u64>,
    budgets: u64,
}

/// The way between a client and its server. Clones are the same network.
#[derive(Debug, Clone)]
pub struct SimulatedNetwork {
    weather: Arc<watch::Sender<Weather>>,
    latency: Duration,
}

impl Default for SimulatedNetwork {
    fn default() -> Self {
        Self::with_latency(Duration::ZERO)
    }
}

/// A connection between the two, over which a client speaks with its server.
#[derive(Debug)]
pub struct SimulatedConnection {
    network: SimulatedNetwork,
    cuts: u64,
    budgets: u64,
    passed: u64,
}

/// The connection was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// How many of the bytes that were on their way still arrived.
    pub arrived: u64,
}

impl SimulatedNetwork {
    /// One on which each message takes so long. Where that is no time, nobody else has a turn meanwhile.
    pub fn with_latency(latency: Duration) -> Self {
        Self { weather: Arc::new(watch::Sender::new(Weather::default())), latency }
    }

    /// A connection, which is there at once.
    pub fn connect(&self) -> SimulatedConnection {
        let Weather { cuts, budgets, .. } = *self.weather.borrow();
        SimulatedConnection { network: self.clone(), cuts, budgets, passed: 0 }
    }

    /// Whether nothing passes now.
    pub fn is_stalled(&self) -> bool {
        self.weather.borrow().stalled
    }

    /// Waits for the next time that all connections are cut.
    pub fn next_cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let cuts = self.weather.borrow().cuts;
        let mut watching = self.weather.subscribe();
        async move {
            let _ = watching.wait_for(|weather| weather.cuts != cuts).await.map(drop);
        }
    }

    /// How often all connections were cut.
    pub fn cuts(&self) -> u64 {
        self.weather.borrow().cuts
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.weather.send_modify(change);
    }
}

impl SimulatedConnection {
    /// Brings so many bytes to the server, once nothing holds them up: to be waited for with a deadline.
    ///
    /// # Errors
    /// When the connection is cut before they have all arrived.
    pub async fn send(&mut self, bytes: u64) -> Result<(), Cut> {
        self.pass(bytes, |weather| weather.stalled).await
    }

    /// Brings so many bytes to the client, as [`SimulatedConnection::send`].
    ///
    /// # Errors
    /// When the connection is cut before they have all arrived.
    pub async fn receive(&mut self, bytes: u64) -> Result<(), Cut> {
        self.pass(bytes, |weather| weather.stalled || weather.answers_stalled).await
    }

    /// Whether it was cut with all others.
    pub fn is_cut(&self) -> bool {
        self.network.cuts() != self.cuts
    }

    async fn pass(&mut self, bytes: u64, is_held: impl Fn(&Weather) -> bool) -> Result<(), Cut> {
        if !self.network.latency.is_zero() {
            tokio::time::sleep(self.network.latency).await;
        }
        let mut watching = self.network.weather.subscribe();
        let weather = watching.wait_for(|weather| !is_held(weather)).await.map(|weather| *weather);
        let weather = weather.map_err(|_| Cut { arrived: 0 })?;
        if weather.cuts != self.cuts {
            return Err(Cut { arrived: 0 });
        }
        if weather.budgets != self.budgets {
            (self.budgets, self.passed) = (weather.budgets, 0);
        }
        let left = weather.budget.map_or(u64::MAX, |budget| budget.saturating_sub(self.passed));
        self.passed += bytes;
        if bytes > left { Err(Cut { arrived: left }) } else { Ok(()) }
    }
}

#[async_trait]
impl Faults for SimulatedNetwork {
    async fn cut_connections(&self) {
        self.change(|weather| weather.cuts += 1);
    }
    async fn cut_after(&self, bytes: u64) {
        self.change(|weather| {
            weather.budget = Some(bytes);
            weather.budgets += 1;
        });
    }
    async fn stall(&self) {
        self.change(|weather| weather.stalled = true);
    }
    async fn stall_answers(&self) {
        self.change(|weather| weather.answers_stalled = true);
    }
    async fn heal(&self) {
        self.change(|weather| {
            *weather = Weather { cuts: weather.cuts, budgets: weather.budgets, ..Weather::default() };
        });
    }
}
