//! A schema of one's own on the server that all tests share.

use std::thread;

use flames_clock::{RandomExt, SystemRandom};
use flames_queue_sql::PostgresQueueConfig;
use flames_test_servers::shared;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// A schema's name that nobody else uses. What is in it is dropped with it.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Schema {
    pub(crate) fn new() -> Self {
        Self { url: shared::postgres().unwrap(), name: format!("queue_{:016x}", SystemRandom.next_u64()) }
    }

    pub(crate) fn config(&self) -> PostgresQueueConfig {
        PostgresQueueConfig { schema: self.name.clone(), ..PostgresQueueConfig::at(&self.url) }
    }
}

/// Runs statements on a connection of its own.
pub(crate) async fn run_raw(url: &str, statements: &[&str]) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe((*statement).to_owned())).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}

impl Drop for Schema {
    fn drop(&mut self) {
        let (url, statement) = (self.url.clone(), format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.name));
        // A runtime cannot be waited for from within another. A server that is gone has nothing to drop.
        let _ = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run_raw(&url, &[&statement]));
        })
        .join();
    }
}
