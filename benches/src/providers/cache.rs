//! CacheStore in Redis, beside the redis crate used by hand: one multiplexed connection each.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flames_cache::{CacheKey, CacheStore};
use flames_cache_redis::{RedisCache, RedisConfig};
use flames_clock::SystemClock;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands as _, AsyncConnectionConfig};

use super::compare::{compare, operation};
use super::servers::Servers;
use super::state::{KEYS, next, value};
use super::{Findings, ProvidersArguments};

const PREFIX: &str = "flames-bench";
const TTL: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(10);

struct Ours {
    cache: RedisCache,
    keys: Vec<CacheKey>,
    asked: AtomicU64,
}

impl Ours {
    fn key(&self) -> Result<&CacheKey> {
        self.keys.get(next(&self.asked)).context("a key")
    }
}

struct Bare {
    connection: MultiplexedConnection,
    asked: AtomicU64,
}

impl Bare {
    fn key(&self) -> String {
        format!("{PREFIX}-bare:{}", next(&self.asked))
    }
}

pub(crate) async fn measure(
    arguments: &ProvidersArguments,
    servers: &Servers,
    findings: &mut Findings,
) -> Result<()> {
    let url = match servers.redis() {
        Ok(url) => url,
        Err(missing) => {
            findings.skip("cache/redis", missing);
            return Ok(());
        }
    };
    let mut config = RedisConfig::new(&url);
    config.prefix = PREFIX.to_owned();
    config.call = PATIENCE;
    let cache = RedisCache::open(config, Arc::new(SystemClock::new())).await?;
    let keys = (0..KEYS).map(|number| Ok(CacheKey::new(number.to_string())?)).collect::<Result<Vec<_>>>()?;
    let ours = Arc::new(Ours { cache, keys, asked: AtomicU64::new(0) });
    // Its own default, half a second, is short for a machine that is busy with the measurement itself.
    let patient = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    let connection = redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&patient).await?;
    let bare = Arc::new(Bare { connection, asked: AtomicU64::new(0) });

    let our_sets = operation(&ours, async |ours, _| {
        ours.cache.set(ours.key()?, value(), TTL).await?;
        Ok(1)
    });
    let bare_sets = operation(&bare, async |bare, _| {
        let () = bare
            .connection
            .clone()
            .pset_ex(bare.key(), value().as_ref(), TTL.as_millis().try_into()?)
            .await?;
        Ok(1)
    });
    let our_gets = operation(&ours, async |ours, _| {
        ours.cache.get(ours.key()?).await?;
        Ok(1)
    });
    let bare_gets = operation(&bare, async |bare, _| {
        let found: Option<Vec<u8>> = bare.connection.clone().get(bare.key()).await?;
        std::hint::black_box(Bytes::from(found.context("a value")?));
        Ok(1)
    });
    let mut rows = Vec::new();
    for clients in [1, 16, 64] {
        let sets = compare(arguments.effort(), clients, &our_sets, &bare_sets).await?;
        rows.push(sets.row(format!("set, {clients} clients")));

        for key in &ours.keys {
            ours.cache.set(key, value(), TTL).await?;
            let name = format!("{PREFIX}-bare:{key}");
            let () =
                bare.connection.clone().pset_ex(name, value().as_ref(), TTL.as_millis().try_into()?).await?;
        }
        let gets = compare(arguments.effort(), clients, &our_gets, &bare_gets).await?;
        rows.push(gets.row(format!("get, {clients} clients")));
    }
    findings.section(
        "cache/redis beside the redis crate by hand, over one multiplexed connection each",
        "work",
        rows,
    );
    Ok(())
}
