//! A database of its own on the shared Postgres.

use super::{shared, unique};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

/// A database of its own, dropped at the end.
pub(crate) struct Database {
    name: String,
}

/// Cases run on a runtime of their own, which must not be blocked on.
fn on_another_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn ask_url(url: String, statement: String) -> Vec<String> {
    on_another_thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let rows = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_all(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            rows.into_iter().map(|row| row.try_get::<String, _>(0).unwrap_or_default()).collect()
        })
    })
}

impl Database {
    pub(crate) fn new() -> Self {
        let name = unique();
        ask_url(shared::postgres().unwrap(), format!("CREATE DATABASE {name}"));
        Self { name }
    }

    pub(crate) fn url(&self) -> String {
        let url = shared::postgres().unwrap();
        let (server, _) = url.rsplit_once('/').unwrap();
        format!("{server}/{}", self.name)
    }

    /// The URL without the password, and the password.
    pub(crate) fn parts(&self) -> (String, String) {
        let url = self.url();
        let (scheme, rest) = url.split_once("://").unwrap();
        let (user, address) = rest.rsplit_once('@').unwrap();
        let (user, password) = user.split_once(':').unwrap();
        (format!("{scheme}://{user}@{address}"), password.to_owned())
    }

    pub(crate) fn ask(&self, statement: &str) -> Vec<String> {
        ask_url(self.url(), statement.to_owned())
    }

    pub(crate) fn schemas(&self) -> Vec<String> {
        self.ask("SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'flames%' ORDER BY 1")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        ask_url(shared::postgres().unwrap(), format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}
