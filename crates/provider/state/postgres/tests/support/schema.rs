//! A schema of its own for each fixture.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// A schema's name that no other fixture has. What the store makes in it is dropped with this value.
#[derive(Debug)]
pub struct Schema {
    pub url: String,
    pub name: String,
}

impl Schema {
    pub async fn new(url: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // A run that was killed may have left one of this name.
        drop_schema(url, &name).await.unwrap();
        Self { url: url.to_owned(), name }
    }
}

async fn drop_schema(url: &str, name: &str) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    // Without the notices about each table that goes with it.
    let statement = format!("SET client_min_messages = warning; DROP SCHEMA IF EXISTS \"{name}\" CASCADE");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await
}

impl Drop for Schema {
    fn drop(&mut self) {
        let (url, name) = (self.url.clone(), self.name.clone());
        // On a thread of its own: this may be dropped within a runtime, which must not be blocked on.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let limit = Duration::from_secs(20);
                tokio::time::timeout(limit, drop_schema(&url, &name)).await
            })
        });
        match dropping.join() {
            Ok(Ok(Ok(()))) => {}
            other => eprintln!("the schema {} is left behind: {other:?}", self.name),
        }
    }
}
