//! The connection: made when it is needed, shared by all calls, given up when anything went wrong with it.

use std::sync::Mutex as Lock;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use flames_clock::{Clock, ClockExt, Monotonic};
use flames_error::{Error, ErrorKind, Result};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisFuture, Value};
use tokio::sync::Mutex;

use crate::config::{OPEN, RedisConfig};
use crate::error;

/// After a connection could not be made, so long no other one is tried: calls fail at once meanwhile.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);
/// How much of the id of a server's run is in each key: 64 random bits.
const RUN_LETTERS: usize = 16;

/// A connection, to a node or to a cluster.
#[derive(Clone)]
pub(crate) enum Wire {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Wire {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Node(wire) => wire.req_packed_command(command),
            Self::Cluster(wire) => wire.req_packed_command(command),
        }
    }
    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Node(wire) => wire.req_packed_commands(commands, offset, count),
            Self::Cluster(wire) => wire.req_packed_commands(commands, offset, count),
        }
    }
    fn get_db(&self) -> i64 {
        match self {
            Self::Node(wire) => wire.get_db(),
            Self::Cluster(wire) => wire.get_db(),
        }
    }
}

/// A connection that works, as far as is known.
#[derive(Clone)]
pub(crate) struct Linked {
    pub(crate) wire: Wire,
    /// What keys begin with on it.
    pub(crate) prefix: Arc<str>,
    number: u64,
}

#[derive(Default)]
struct State {
    linked: Option<Linked>,
    count: u64,
    failed_at: Option<(Monotonic, ErrorKind)>,
}

enum Target {
    Node(Box<Client>),
    Cluster(Box<ClusterClient>),
}

pub(crate) struct Link {
    target: Target,
    config: RedisConfig,
    clock: Arc<dyn Clock>,
    state: Lock<State>,
    /// Held by the one that makes a connection; the others wait for it.
    connecting: Mutex<()>,
}

impl Link {
    pub(crate) fn new(config: RedisConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        let nodes = config.nodes()?;
        let wrong = |error| error::of_connecting(&config, OPEN, error);
        let target = if config.is_cluster {
            // Without tries of its own: it cannot know which commands may be done twice.
            let client = ClusterClient::builder(nodes)
                .retries(0)
                .connection_timeout(config.connect)
                .response_timeout(config.call);
            Target::Cluster(Box::new(client.build().map_err(wrong)?))
        } else {
            let node = nodes.into_iter().next().ok_or_else(|| Error::internal(OPEN, "no node"))?;
            Target::Node(Box::new(Client::open(node).map_err(wrong)?))
        };
        Ok(Self { target, config, clock, state: Lock::default(), connecting: Mutex::default() })
    }

    /// The connection, made now if there is none. Bounded by the caller's deadline and by `connect`.
    pub(crate) async fn get(&self, operation: &'static str) -> Result<Linked> {
        if let Some(linked) = self.with(|state| state.linked.clone()) {
            return Ok(linked);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(linked) = self.with(|state| state.linked.clone()) {
            return Ok(linked);
        }
        let failed = self.with(|state| state.failed_at);
        if let Some((when, kind)) = failed
            && self.clock.monotonic().saturating_since(when) < PAUSE_AFTER_FAILURE
        {
            return Err(
                error::unreachable(&self.config, operation, "a moment ago it was not").with_kind(kind)
            );
        }
        let connected =
            match self.clock.timeout(self.config.connect, self.connect(operation)).await {
                Ok(connected) => connected,
                Err(deadline) => Err(error::unreachable(&self.config, operation, "no connection in time")
                    .with_source(deadline)),
            };
        let now = self.clock.monotonic();
        self.with(|state| match connected {
            Ok((wire, prefix)) => {
                state.count += 1;
                let linked = Linked { wire, prefix, number: state.count };
                state.linked = Some(linked.clone());
                state.failed_at = None;
                Ok(linked)
            }
            Err(error) => {
                state.failed_at = Some((now, error.kind()));
                Err(error)
            }
        })
    }

    /// Gives the connection up. Another one may have taken its place already.
    pub(crate) fn give_up(&self, linked: &Linked) {
        tracing::debug!(url = self.config.place(), "giving up a connection");
        let given_up = self.with(|state| {
            let is_current = state.linked.as_ref().is_some_and(|current| current.number == linked.number);
            is_current.then(|| state.linked.take()).flatten()
        });
        drop(given_up);
    }

    async fn connect(&self, operation: &'static str) -> Result<(Wire, Arc<str>)> {
        let failed = |error| error::of_connecting(&self.config, operation, error);
        let mut wire = match &self.target {
            Target::Node(client) => {
                // Deadlines are ours, by the injected clock.
                let config =
                    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
                let connected = client.get_multiplexed_async_connection_with_config(&config).await;
                Wire::Node(connected.map_err(failed)?)
            }
            Target::Cluster(client) => Wire::Cluster(client.get_async_connection().await.map_err(failed)?),
        };
        let prefix = &self.config.prefix;
        let prefix = match &wire {
            Wire::Cluster(_) => Arc::from(prefix.as_str()),
            Wire::Node(_) => {
                let asked = redis::cmd("INFO").arg("server").query_async::<String>(&mut wire).await;
                let info = asked.map_err(failed)?;
                let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default();
                if run.len() < RUN_LETTERS {
                    return Err(Error::internal(operation, "redis: the server does not tell its run_id"));
                }
                Arc::from(format!("{prefix}{}:", &run[..RUN_LETTERS]))
            }
        };
        Ok((wire, prefix))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn config(&self) -> &RedisConfig {
        &self.config
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
}
