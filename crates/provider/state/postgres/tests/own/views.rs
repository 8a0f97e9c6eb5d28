//! Views for operators.

use flames_error::ErrorKind;
use flames_state::{Commit, Key, StateStore};
use flames_state_postgres::{ColumnKind, PostgresStore, ViewColumn, ViewDefinition};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{Database, put};

fn column(name: &str, path: &[&str], kind: ColumnKind) -> ViewColumn {
    let path = path.iter().map(|step| (*step).to_owned()).collect();
    ViewColumn { name: name.to_owned(), path, kind }
}

fn vms() -> ViewDefinition {
    ViewDefinition {
        name: "vm".to_owned(),
        keys: "{project}/vm/{vm}".to_owned(),
        columns: vec![
            column("name", &["record", "name"], ColumnKind::Text),
            column("vcpus", &["record", "spec", "vcpus"], ColumnKind::Number),
            column("first_label", &["record", "labels", "0"], ColumnKind::Text),
            column("spec", &["record", "spec"], ColumnKind::Json),
            column("quote_d", &["record", "it's"], ColumnKind::Text),
        ],
    }
}

fn controllers() -> ViewDefinition {
    ViewDefinition {
        name: "controller".to_owned(),
        keys: "system/controller/*".to_owned(),
        columns: Vec::new(),
    }
}

async fn fill(store: &PostgresStore) {
    put(
        store,
        "p1/vm/vm_1",
        r#"{"schema":1,"record":{"name":"web","spec":{"vcpus":2},"labels":["x"],"it's":"here"}}"#,
    )
    .await;
    put(store, "p2/vm/vm_2", r#"{"schema":1,"record":{"name":"db","spec":{"vcpus":4}}}"#).await;
    put(store, "p1/vm/vm_1/inc/inc_1", r#"{"schema":1,"record":{"name":"not a vm"}}"#).await;
    put(store, "system/controller/c1", r#"{"schema":1,"record":{}}"#).await;
    // Values that are no JSON, and a key that is no text.
    put(store, "p1/vmname/web", "vm_1").await;
    let mut commit = Commit::new();
    commit
        .put(Key::new(&b"p1/label/a\0b\0vm_1"[..]).unwrap(), "")
        .put(Key::new(&[0xff, 0][..]).unwrap(), vec![0xff, 0]);
    store.commit(&commit).await.unwrap();
}

async fn rows(database: &Database, connection: &mut PgConnection, sql: &str) -> Vec<String> {
    let sql = sql.replace("{s}", &database.schema.name);
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await.unwrap()
}

pub(crate) async fn an_operator_reads_records_as_tables(database: &Database) {
    let store = database.open().await;
    fill(&store).await;
    store.apply_views(&[vms(), controllers()]).await.unwrap();
    let mut connection = database.connection().await;
    let all = "SELECT concat_ws(' ', project, vm, name, vcpus, first_label, spec, quote_d, key, value->>'schema', version > 0) \
               FROM {s}.vm ORDER BY vm";
    assert_eq!(
        rows(database, &mut connection, all).await,
        [
            r#"p1 vm_1 web 2 x {"vcpus": 2} here p1/vm/vm_1 1 t"#,
            r#"p2 vm_2 db 4 {"vcpus": 4} p2/vm/vm_2 1 t"#
        ]
    );
    // A query's own conditions do not reach rows that are no JSON.
    let one = "SELECT vm FROM {s}.vm WHERE (value->'record'->>'name') = 'db' AND vcpus + 1 = 5";
    assert_eq!(rows(database, &mut connection, one).await, ["vm_2"]);
    let sum = "SELECT sum(vcpus)::text FROM {s}.vm";
    assert_eq!(rows(database, &mut connection, sum).await, ["6"]);
    assert_eq!(
        rows(database, &mut connection, "SELECT key FROM {s}.controller").await,
        ["system/controller/c1"]
    );
    // The store goes on with its views there, and opens again.
    drop(store);
    put(&database.open().await, "p3/vm/vm_3", r#"{"schema":1,"record":{"name":"new"}}"#).await;
    assert_eq!(
        rows(database, &mut connection, "SELECT name FROM {s}.vm ORDER BY vm").await,
        ["web", "db", "new"]
    );
}

pub(crate) async fn applying_views_again_replaces_them_all(database: &Database) {
    let store = database.open().await;
    store.apply_views(&[vms(), controllers()]).await.unwrap();
    let mut fewer = vms();
    fewer.columns.truncate(1);
    store.apply_views(&[fewer]).await.unwrap();
    let mut connection = database.connection().await;
    let views = "SELECT viewname::text FROM pg_views WHERE schemaname = '{s}'";
    assert_eq!(rows(database, &mut connection, views).await, ["vm"]);
    let columns = "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '{s}.vm'::regclass AND attnum > 0";
    assert_eq!(rows(database, &mut connection, columns).await, ["key project vm name version value"]);
    let mut wrong = vms();
    wrong.keys = "{".to_owned();
    assert_eq!(store.apply_views(&[controllers(), wrong]).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(rows(database, &mut connection, views).await, ["vm"], "nothing was changed");
}

pub(crate) async fn a_view_that_others_stand_on_is_not_dropped(database: &Database) {
    let store = database.open().await;
    store.apply_views(&[vms()]).await.unwrap();
    let mut connection = database.connection().await;
    database
        .execute(&mut connection, "CREATE SCHEMA {s}_operator; CREATE VIEW {s}_operator.big AS SELECT * FROM {s}.vm WHERE vcpus > 8")
        .await;
    let error = store.apply_views(&[controllers()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    let views = "SELECT viewname::text FROM pg_views WHERE schemaname = '{s}'";
    assert_eq!(rows(database, &mut connection, views).await, ["vm"], "nothing was changed");
    database.execute(&mut connection, "DROP SCHEMA {s}_operator CASCADE").await;
    store.apply_views(&[controllers()]).await.unwrap();
}
