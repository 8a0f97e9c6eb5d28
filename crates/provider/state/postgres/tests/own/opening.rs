//! Opening a store: migrations, rights, and what is refused.

use std::time::{Duration, Instant};

use flames_error::ErrorKind;
use flames_state::StateStore;
use futures::future::join_all;

use crate::{Database, assert_helpful, key, lock_number, open, put};

pub(crate) async fn many_processes_that_open_a_fresh_database_at_once_all_succeed(database: &Database) {
    let stores = join_all((0..6).map(|_| database.open())).await;
    for (number, store) in stores.iter().enumerate() {
        put(store, &format!("k/{number}"), "v").await;
    }
    for number in 0..stores.len() {
        assert!(stores[0].get(&key(&format!("k/{number}"))).await.unwrap().is_some());
    }
    let mut connection = database.connection().await;
    assert_eq!(database.number(&mut connection, "SELECT count(*) FROM {s}.migration").await, 1);
    assert_eq!(database.number(&mut connection, "SELECT count(*) FROM {s}.lineage").await, 1);
}

pub(crate) async fn a_newer_schema_that_allows_this_code_is_used(database: &Database) {
    put(&database.open().await, "a", "1").await;
    let mut connection = database.connection().await;
    let newer =
        "ALTER TABLE {s}.entry ADD COLUMN added_later integer; INSERT INTO {s}.migration VALUES (2, 1)";
    database.execute(&mut connection, newer).await;
    let store = database.open().await;
    put(&store, "a", "2").await;
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value, "2");
    assert_eq!(database.number(&mut connection, "SELECT count(*) FROM {s}.migration").await, 2);
}

pub(crate) async fn a_newer_schema_that_does_not_is_refused_unchanged(database: &Database) {
    drop(database.open().await);
    let mut connection = database.connection().await;
    database.execute(&mut connection, "INSERT INTO {s}.migration VALUES (2, 1), (3, 2)").await;
    let error = open(database.config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{error:?}");
    assert_helpful(&error, "schema");
    assert_eq!(database.number(&mut connection, "SELECT count(*) FROM {s}.migration").await, 3);
}

pub(crate) async fn two_versions_work_side_by_side(database: &Database) {
    let older = database.open().await;
    put(&older, "before", "1").await;
    // What a newer version would do while the older one runs: add, under a new name, and allow the older one.
    let mut connection = database.connection().await;
    let migration = "BEGIN; ALTER TABLE {s}.log ADD COLUMN added_later integer; \
                     CREATE FUNCTION {s}.commit_2() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'; \
                     INSERT INTO {s}.migration VALUES (2, 1); COMMIT";
    database.execute(&mut connection, migration).await;
    let newer = database.open().await;
    for round in 0..5 {
        put(&older, "both", &format!("older {round}")).await;
        put(&newer, "both", &format!("newer {round}")).await;
        crate::append(&older, "log", "older").await;
        crate::append(&newer, "log", "newer").await;
    }
    let entries = crate::log(&older, "log", flames_state::Position::START).await.unwrap();
    assert_eq!(crate::payloads(&entries), ["older", "newer"].repeat(5));
}

pub(crate) async fn an_older_version_that_opens_while_a_newer_one_migrates_waits_and_then_works(
    database: &Database,
) {
    // The newer one, half-way: all that this version would make, and something of its own.
    let mut newer = database.connection().await;
    let number = lock_number(&database.schema.name, b"\0migrate");
    database.execute(&mut newer, &format!("BEGIN; SELECT pg_advisory_xact_lock({number})")).await;
    let first = include_str!("../../src/migration_1.sql")
        .replace("{schema}", "{s}")
        .replace("{transaction_bits}", "48");
    let making = "CREATE SCHEMA {s}; CREATE TABLE {s}.migration (number integer PRIMARY KEY, oldest_code integer NOT NULL, \
                  applied_at timestamptz NOT NULL DEFAULT now());";
    database.execute(&mut newer, &format!("{making} {first}")).await;
    let own = "CREATE TABLE {s}.added_later (id integer); INSERT INTO {s}.migration VALUES (1, 1), (2, 1); \
               INSERT INTO {s}.lineage SELECT 0, system_identifier, timeline_id FROM pg_control_system(), pg_control_checkpoint()";
    database.execute(&mut newer, own).await;
    let finishing = async {
        let mut watcher = database.connection().await;
        let waiting =
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objsubid = 1 \
                       AND ((classid::bigint << 32) | objid::bigint) = "
                .to_owned()
                + &number.to_string();
        while database.number(&mut watcher, &waiting).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        database.execute(&mut newer, "COMMIT").await;
    };
    let (store, ()) = futures::join!(database.open(), finishing);
    put(&store, "a", "1").await;
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value, "1");
    let mut connection = database.connection().await;
    assert_eq!(database.number(&mut connection, "SELECT count(*) FROM {s}.migration").await, 2);
}

pub(crate) async fn tables_of_another_program_are_left_alone(database: &Database) {
    let mut connection = database.connection().await;
    for theirs in ["CREATE TABLE {s}.orders (id integer)", "CREATE TABLE {s}.migration (id integer)"] {
        database
            .execute(
                &mut connection,
                &format!("DROP SCHEMA IF EXISTS {{s}} CASCADE; CREATE SCHEMA {{s}}; {theirs}"),
            )
            .await;
        let error = open(database.config()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        assert_helpful(&error, "schema");
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = '{s}'";
        assert_eq!(database.number(&mut connection, tables).await, 1);
    }
}

/// A user who may do nothing but log in; gone with the value's `remove`.
struct User<'a> {
    database: &'a Database,
    name: String,
}

impl<'a> User<'a> {
    async fn new(database: &'a Database) -> Self {
        let name = format!("user_of_{}", database.schema.name);
        let user = Self { database, name };
        let mut connection = database.connection().await;
        let create = format!("DROP ROLE IF EXISTS {0}; CREATE ROLE {0} LOGIN PASSWORD 'hunter2'", user.name);
        database.execute(&mut connection, &create).await;
        user
    }

    fn config(&self) -> flames_state_postgres::PostgresConfig {
        let mut config = self.database.config();
        let (_, server) = config.url.rsplit_once('@').unwrap();
        config.url = format!("postgres://{}:hunter2@{server}", self.name);
        config
    }

    async fn remove(self) {
        let mut connection = self.database.connection().await;
        self.database.execute(&mut connection, &format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name)).await;
    }
}

pub(crate) async fn a_user_without_rights_is_told_what_to_ask_for(database: &Database) {
    let user = User::new(database).await;
    let error = open(user.config()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert_helpful(&error, "schema");
    user.remove().await;
}

pub(crate) async fn a_user_needs_no_right_to_make_schemas_when_it_is_there(database: &Database) {
    let user = User::new(database).await;
    let mut connection = database.connection().await;
    database.execute(&mut connection, &format!("CREATE SCHEMA {{s}} AUTHORIZATION {}", user.name)).await;
    let store = open(user.config()).await.unwrap();
    put(&store, "a", "1").await;
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value, "1");
    store.close().await;
    user.remove().await;
}

pub(crate) async fn a_wrong_password_names_the_setting(database: &Database) {
    let user = User::new(database).await;
    let mut config = user.config();
    config.url = config.url.replace("hunter2", "hunter22");
    let error = open(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
    assert_helpful(&error, "url");
    user.remove().await;
}

pub(crate) async fn an_unknown_database_names_the_setting(database: &Database) {
    let mut config = database.config();
    let (server, _) = config.url.rsplit_once('/').unwrap();
    config.url = format!("{server}/no_such_database");
    let error = open(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
    assert_helpful(&error, "url");
    assert!(error.message().contains("no_such_database"), "{error:?}");
}

pub(crate) async fn a_server_that_is_not_there_is_told_at_once(_: &Database) {
    // Bound and not listened on: nobody else can listen there meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("postgres://flames:hunter2@{}/flames", socket.local_addr().unwrap());
    let started = Instant::now();
    let error = open(flames_state_postgres::PostgresConfig::at(url)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert_helpful(&error, "url");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

pub(crate) async fn a_server_that_does_not_answer_is_told_within_the_deadline(_: &Database) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://flames:hunter2@{}/flames", listener.local_addr().unwrap());
    let mut config = flames_state_postgres::PostgresConfig::at(url);
    config.connect_deadline = Duration::from_millis(300);
    let started = Instant::now();
    let error = open(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert_helpful(&error, "url");
    assert!(error.message().contains("connect_deadline"), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

pub(crate) async fn a_read_only_server_is_refused(database: &Database) {
    drop(database.open().await);
    let mut config = database.config();
    config.url.push_str("?options[default_transaction_read_only]=on");
    let error = open(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert_helpful(&error, "url");
}

pub(crate) async fn a_server_without_tls_is_refused_where_tls_is_asked_for(database: &Database) {
    let mut config = database.config();
    config.url.push_str("?sslmode=require");
    let error = open(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert_helpful(&error, "url");
    assert!(error.message().contains("sslmode"), "{error:?}");
}
