//! What the suite of all StateStores cannot know of Postgres.

// What fails here fails the case.
#![allow(clippy::unwrap_used, clippy::print_stderr, unreachable_pub)]

use std::process::ExitCode;
use std::sync::Arc;

use flames_clock::SystemClock;
use flames_conformance_runner::{Row, Suite, run, table};
use flames_error::{Error, Result};
use flames_state::{Commit, Key, LogEntry, Position, StateStore, Version};
use flames_state_postgres::{PostgresConfig, PostgresStore};
use flames_test_servers::shared;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

mod commits;
mod hints;
mod lineage;
mod logs;
mod opening;
mod views;

#[path = "../support/schema.rs"]
mod schema;

use schema::Schema;

/// A schema of the shared server.
pub(crate) struct Database {
    pub(crate) schema: Schema,
}

impl Database {
    async fn new() -> Self {
        Self { schema: Schema::new(&shared::postgres().unwrap()).await }
    }

    pub(crate) fn config(&self) -> PostgresConfig {
        let mut config = PostgresConfig::at(&self.schema.url);
        config.schema.clone_from(&self.schema.name);
        config.max_connections = 8;
        config
    }

    pub(crate) async fn open(&self) -> PostgresStore {
        open(self.config()).await.unwrap()
    }

    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.schema.url).await.unwrap()
    }

    /// Runs statements with the schema's name in place of `{s}`.
    pub(crate) async fn execute(&self, connection: &mut PgConnection, sql: &str) {
        let sql = sql.replace("{s}", &self.schema.name);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
    }

    pub(crate) async fn number(&self, connection: &mut PgConnection, sql: &str) -> i64 {
        let sql = sql.replace("{s}", &self.schema.name);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.unwrap()
    }
}

pub(crate) async fn open(config: PostgresConfig) -> Result<PostgresStore> {
    PostgresStore::open(config, Arc::new(SystemClock::new())).await
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

pub(crate) async fn put(store: &PostgresStore, name: &str, value: &str) -> Version {
    store.commit(Commit::new().put(key(name), value.to_owned())).await.unwrap().version
}

pub(crate) async fn append(store: &PostgresStore, log: &str, payload: &str) {
    store.commit(Commit::new().append(key(log), payload.to_owned())).await.unwrap();
}

pub(crate) async fn log(store: &PostgresStore, name: &str, after: Position) -> Result<Vec<LogEntry>> {
    store.read_log(&key(name), after, 100).await
}

pub(crate) fn payloads(entries: &[LogEntry]) -> Vec<&str> {
    entries.iter().map(|entry| std::str::from_utf8(&entry.payload).unwrap()).collect()
}

/// As the store computes it; a copy, so that a change of the format is seen.
pub(crate) fn lock_number(schema: &str, key: &[u8]) -> i64 {
    let bytes = schema.as_bytes().iter().chain(&[0]).chain(key);
    bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
        .cast_signed()
}

/// One line, with the provider, the setting and no secret.
pub(crate) fn assert_helpful(error: &Error, setting: &str) {
    assert!(error.message().starts_with("postgres: ") && error.message().contains(setting), "{error:?}");
    assert!(!error.message().contains('\n') && !format!("{error:?}").contains("hunter2"), "{error:?}");
    assert_eq!(error.field(), Some(setting), "{error:?}");
}

fn rows() -> Vec<Row<Box<Database>>> {
    table![
        opening:
            many_processes_that_open_a_fresh_database_at_once_all_succeed,
            a_newer_schema_that_allows_this_code_is_used,
            a_newer_schema_that_does_not_is_refused_unchanged,
            two_versions_work_side_by_side,
            an_older_version_that_opens_while_a_newer_one_migrates_waits_and_then_works,
            tables_of_another_program_are_left_alone,
            a_user_without_rights_is_told_what_to_ask_for,
            a_user_needs_no_right_to_make_schemas_when_it_is_there,
            a_wrong_password_names_the_setting,
            an_unknown_database_names_the_setting,
            a_server_that_is_not_there_is_told_at_once,
            a_server_that_does_not_answer_is_told_within_the_deadline,
            a_read_only_server_is_refused,
            a_server_without_tls_is_refused_where_tls_is_asked_for;
        commits:
            a_serialization_failure_is_retried_inside,
            a_conflict_that_does_not_end_is_told_after_a_few_tries,
            commits_in_opposite_order_never_deadlock,
            a_refused_commit_takes_no_transaction_id,
            a_commit_that_waits_for_another_takes_no_transaction_id,
            a_commit_that_waited_sees_what_the_other_left,
            a_commit_is_one_round_trip,
            a_commit_cancelled_by_an_operator_is_not_applied,
            a_session_that_loses_what_it_wrote_is_not_accepted;
        logs:
            nothing_appears_behind_a_position_while_an_older_transaction_is_open,
            a_log_held_back_for_long_says_by_whom,
            a_reader_that_waits_goes_on_when_the_older_transaction_ends;
        lineage:
            after_a_failover_or_restore_versions_and_positions_go_on_behind_all_others,
            a_connection_made_after_a_failover_begins_the_generation;
        hints:
            a_hint_reaches_another_process,
            hints_of_many_commits_are_coalesced,
            a_listener_whose_connection_was_ended_tells_that_hints_were_lost_and_goes_on,
            a_teller_whose_connection_was_ended_goes_on,
            a_notification_in_an_unknown_form_means_that_anything_changed,
            a_store_that_was_dropped_leaves_no_connection;
        views:
            an_operator_reads_records_as_tables,
            applying_views_again_replaces_them_all,
            a_view_that_others_stand_on_is_not_dropped;
    ]
}

fn main() -> ExitCode {
    let fresh = || async { Box::new(Database::new().await) };
    run(Suite::own_tests("postgres", "postgres", shared::postgres().err(), rows(), fresh))
}
