//! The state store that is chosen.

use std::sync::Arc;

use flames_clock::Clock;
use flames_state::StateStore;
use flames_state_memory::MemoryStore;

#[cfg(feature = "etcd")]
use flames_state_etcd::{EtcdConfig, EtcdStore};
#[cfg(feature = "postgres")]
use flames_state_postgres::{PostgresConfig, PostgresStore};
#[cfg(feature = "sqlite")]
use flames_state_sqlite::{SqliteConfig, SqliteStore};

use crate::config::{Problem, Section, Settings};
use crate::data::DataFolder;

const SECTION: Section = Section::State;

/// What is to be opened.
#[derive(Debug, Clone)]
pub(crate) enum StatePlan {
    Memory,
    #[cfg(feature = "sqlite")]
    Sqlite(SqliteConfig),
    #[cfg(feature = "postgres")]
    Postgres(PostgresConfig),
    #[cfg(feature = "etcd")]
    Etcd(Box<EtcdConfig>),
}

/// The store, open.
#[derive(Debug, Clone)]
pub(crate) enum State {
    Memory(Arc<MemoryStore>),
    #[cfg(feature = "sqlite")]
    Sqlite(Arc<SqliteStore>),
    #[cfg(feature = "postgres")]
    Postgres(Arc<PostgresStore>),
    #[cfg(feature = "etcd")]
    Etcd(Arc<EtcdStore>),
}

impl StatePlan {
    pub(super) fn of(settings: &Settings) -> Result<Self, Problem> {
        match settings.backend(SECTION) {
            "sqlite" => sqlite(settings),
            "postgres" => postgres(settings),
            "etcd" => etcd(settings),
            _ => Ok(Self::Memory),
        }
    }

    /// Refuses a file that was emptied and would be taken for a new one, where the data folder knows better.
    pub(crate) fn check_not_emptied(&self, folder: &DataFolder) -> Result<(), Problem> {
        let _ = folder;
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(config) if folder.was_used() && is_empty(&config.path) => {
                let sentence = format!(
                    "{} is empty, though a Flames has worked in {}: its records are gone. Put the file back from a backup; or remove it, to begin \
                     anew without the VMs and images that it told of.",
                    config.path.display(),
                    folder.path().display()
                );
                Err(Problem::new(SECTION, "state.path", sentence).of_backend("sqlite"))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn open(self, clock: &Arc<dyn Clock>) -> Result<State, Problem> {
        let _ = clock;
        match self {
            Self::Memory => Ok(State::Memory(Arc::new(MemoryStore::new()))),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(config) => {
                let store = SqliteStore::open(config, Arc::clone(clock)).await;
                store
                    .map(Arc::new)
                    .map(State::Sqlite)
                    .map_err(|error| Problem::of_error(SECTION, "sqlite", "path", &error))
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(config) => {
                let store = PostgresStore::open(config, Arc::clone(clock)).await;
                store
                    .map(Arc::new)
                    .map(State::Postgres)
                    .map_err(|error| Problem::of_error(SECTION, "postgres", "url", &error))
            }
            #[cfg(feature = "etcd")]
            Self::Etcd(config) => {
                let store = EtcdStore::open(*config, Arc::clone(clock)).await;
                store
                    .map(Arc::new)
                    .map(State::Etcd)
                    .map_err(|error| Problem::of_error(SECTION, "etcd", "endpoints", &error))
            }
        }
    }
}

#[cfg(feature = "sqlite")]
fn is_empty(path: &std::path::Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0)
}

#[cfg(feature = "sqlite")]
fn sqlite(settings: &Settings) -> Result<StatePlan, Problem> {
    let path = settings.required(SECTION, "state.path")?;
    Ok(StatePlan::Sqlite(SqliteConfig {
        operation_deadline: settings.duration("state.operation_deadline"),
        readers: super::small(SECTION, settings, "state.readers", 1)?,
        max_bytes: settings.bytes("state.max_size"),
        ..SqliteConfig::at(path)
    }))
}

#[cfg(not(feature = "sqlite"))]
fn sqlite(settings: &Settings) -> Result<StatePlan, Problem> {
    Err(super::lacks(SECTION, settings, "sqlite"))
}

#[cfg(feature = "postgres")]
fn postgres(settings: &Settings) -> Result<StatePlan, Problem> {
    Ok(StatePlan::Postgres(PostgresConfig {
        schema: settings.required(SECTION, "state.schema")?.to_owned(),
        max_connections: super::small(SECTION, settings, "state.max_connections", 1)?,
        connect_deadline: settings.duration("state.connect_deadline"),
        acquire_deadline: settings.duration("state.acquire_deadline"),
        operation_deadline: settings.duration("state.operation_deadline"),
        ..PostgresConfig::at(super::signed_in(SECTION, settings, "url", "password")?)
    }))
}

#[cfg(not(feature = "postgres"))]
fn postgres(settings: &Settings) -> Result<StatePlan, Problem> {
    Err(super::lacks(SECTION, settings, "postgres"))
}

#[cfg(feature = "etcd")]
fn etcd(settings: &Settings) -> Result<StatePlan, Problem> {
    let text = |path: &str| settings.text(path).map(str::to_owned);
    let config = EtcdConfig {
        endpoints: settings.required_list(SECTION, "state.endpoints")?,
        username: text("state.username"),
        password: text("state.password"),
        prefix: text("state.prefix").unwrap_or_default(),
        max_requests: super::small(SECTION, settings, "state.max_requests", 1)?,
        connect_deadline: settings.duration("state.connect_deadline"),
        acquire_deadline: settings.duration("state.acquire_deadline"),
        operation_deadline: settings.duration("state.operation_deadline"),
    };
    Ok(StatePlan::Etcd(Box::new(config)))
}

#[cfg(not(feature = "etcd"))]
fn etcd(settings: &Settings) -> Result<StatePlan, Problem> {
    Err(super::lacks(SECTION, settings, "etcd"))
}

impl State {
    /// The store, as everything above knows it.
    pub(crate) fn store(&self) -> Arc<dyn StateStore> {
        match self {
            Self::Memory(store) => store.clone(),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => store.clone(),
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.clone(),
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => store.clone(),
        }
    }

    /// Closes it in order.
    pub(crate) async fn close(&self) {
        match self {
            Self::Memory(_) => {}
            #[cfg(feature = "sqlite")]
            Self::Sqlite(store) => {
                if let Err(error) = store.close().await {
                    tracing::warn!(?error, "the state was left as by a crash");
                }
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(store) => store.close().await,
            #[cfg(feature = "etcd")]
            Self::Etcd(store) => store.close().await,
        }
    }
}
