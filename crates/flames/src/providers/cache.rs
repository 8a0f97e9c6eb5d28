//! The cache that is chosen.

use std::sync::Arc;

use flames_cache::CacheStore;
use flames_cache_memory::MemoryCache;
#[cfg(feature = "redis")]
use flames_cache_redis::{RedisCache, RedisConfig};
use flames_clock::Clock;

use crate::config::{Problem, Section, Settings};

const SECTION: Section = Section::Cache;

/// What is to be opened.
#[derive(Debug, Clone)]
pub(crate) enum CachePlan {
    /// So many bytes at most.
    Memory(u64),
    #[cfg(feature = "redis")]
    Redis(Box<RedisConfig>),
}

impl CachePlan {
    pub(super) fn of(settings: &Settings) -> Result<Self, Problem> {
        match settings.backend(SECTION) {
            "redis" => redis(settings),
            _ => Ok(Self::Memory(
                settings.bytes("cache.max_size").unwrap_or(flames_cache_memory::DEFAULT_MAX_BYTES),
            )),
        }
    }

    pub(super) async fn open(self, clock: &Arc<dyn Clock>) -> Result<Arc<dyn CacheStore>, Problem> {
        match self {
            Self::Memory(most) => Ok(Arc::new(MemoryCache::with_max_bytes(Arc::clone(clock), most))),
            #[cfg(feature = "redis")]
            Self::Redis(config) => {
                let cache = RedisCache::open(*config, Arc::clone(clock)).await;
                Ok(Arc::new(cache.map_err(|error| {
                    let denied = error.kind() == flames_error::ErrorKind::PermissionDenied;
                    Problem::of_error(SECTION, "redis", if denied { "password" } else { "urls" }, &error)
                })?))
            }
        }
    }
}

#[cfg(feature = "redis")]
fn redis(settings: &Settings) -> Result<CachePlan, Problem> {
    let config = RedisConfig {
        urls: settings.required_list(SECTION, "cache.urls")?,
        is_cluster: settings.switch("cache.is_cluster").unwrap_or(false),
        username: settings.text("cache.username").map(str::to_owned),
        password: settings.text("cache.password").map(Into::into),
        prefix: settings.required(SECTION, "cache.prefix")?.to_owned(),
        connect: settings.duration("cache.connect_deadline"),
        call: settings.duration("cache.call_deadline"),
    };
    Ok(CachePlan::Redis(Box::new(config)))
}

#[cfg(not(feature = "redis"))]
fn redis(settings: &Settings) -> Result<CachePlan, Problem> {
    Err(super::lacks(SECTION, settings, "redis"))
}
