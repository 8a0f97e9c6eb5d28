//! State and queue in Postgres.

use super::database::Database;
use std::path::Path;

use super::*;

fn config(database: &Database, secret: &Path) -> String {
    let (url, _) = database.parts();
    let section = format!(
        "backend = \"postgres\"\nurl = {url:?}\npassword_file = {:?}\n",
        secret.display().to_string()
    );
    format!("[state]\n{section}[queue]\n{section}")
}

fn variables(database: &Database) -> Vec<(&'static str, String)> {
    let of = |name| (name, database.url());
    vec![
        ("FLAMES_STATE_BACKEND", "postgres".to_owned()),
        ("FLAMES_QUEUE_BACKEND", "postgres".to_owned()),
        of("FLAMES_STATE_URL"),
        of("FLAMES_QUEUE_URL"),
    ]
}

fn borrowed<'v>(variables: &'v [(&'static str, String)]) -> Vec<(&'static str, &'v str)> {
    variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

pub(crate) fn state_and_queue_in_postgres_outlive_a_restart() {
    let database = Database::new();
    let mut installation = Installation::new();
    let secret = secret_file(&installation, &database.parts().1);
    let told = up_with(&mut installation, &config(&database, &secret));
    assert_eq!(
        (&told["providers"]["state"], &told["providers"]["queue"]),
        (&"postgres".into(), &"postgres".into())
    );
    use_it(&installation);
    assert_eq!(installation.interrupt().0, 0);
    assert_eq!(database.schemas(), ["flames", "flames_queue"]);
    assert!(
        !installation.data().join("state.sqlite").exists()
            && !installation.data().join("queue.sqlite").exists()
    );
    up_with(&mut installation, &config(&database, &secret));
    assert_eq!(installation.inspect("kept")["state"], "stopped");
}

pub(crate) fn a_check_of_postgres_makes_no_tables_and_says_that_a_start_would() {
    let database = Database::new();
    let mut installation = Installation::new();
    let variables = variables(&database);
    let variables = borrowed(&variables);
    for provider in ["state", "queue"] {
        let row = checked(&installation, &variables, provider);
        assert_eq!(row["verdict"], "note", "{row}");
        tells(row["found"].as_str().unwrap(), &["the first start makes its tables"]);
        tells(row["version"].as_str().unwrap(), &["Postgres "]);
        assert!(!row.to_string().contains(&database.parts().1), "{row}");
    }
    assert_eq!(database.schemas(), [""; 0], "a check makes nothing");
    let secret = secret_file(&installation, &database.parts().1);
    up_with(&mut installation, &config(&database, &secret));
    // The numbers that the check knows are those that the adapters make.
    for provider in ["state", "queue"] {
        let row = checked(&installation, &variables, provider);
        assert_eq!(row["verdict"], "ok", "{row}");
        tells(row["found"].as_str().unwrap(), &["of number 1"]);
    }
    assert_eq!(database.ask("SELECT max(number)::text FROM flames.migration"), ["1"]);
    assert_eq!(database.ask("SELECT schema_version::text FROM flames_queue.meta"), ["1"]);
    database.ask(
        "DELETE FROM flames.migration; INSERT INTO flames.migration (number, oldest_code) VALUES (0, 0)",
    );
    let row = checked(&installation, &variables, "state");
    tells(row["found"].as_str().unwrap(), &["migrates the schema `flames` from number 0 to 1"]);
    assert_eq!(database.ask("SELECT max(number)::text FROM flames.migration"), ["0"], "it is only said");
}

pub(crate) fn a_wrong_password_or_database_of_postgres_is_told_and_not_echoed() {
    let database = Database::new();
    let installation = Installation::new();
    let (url, password) = database.parts();
    for (provider, setting) in [("state", "STATE"), ("queue", "QUEUE")] {
        let names: Vec<String> =
            ["BACKEND", "URL", "PASSWORD"].iter().map(|name| format!("FLAMES_{setting}_{name}")).collect();
        let with = |url: &str, password: &str| {
            let variables =
                [(names[0].as_str(), "postgres"), (names[1].as_str(), url), (names[2].as_str(), password)];
            [up_refused(&installation, &variables), check_refused(&installation, &variables)]
        };
        for line in with(&url, "hunter2") {
            tells(&line, &[&format!("{provider} (postgres), setting `{provider}.url`"), "password"]);
            assert!(!line.contains("hunter2"), "{line}");
        }
        for line in with(&format!("{}_not", url), &password) {
            tells(&line, &[&format!("{provider} (postgres), setting `{provider}."), "_not"]);
            assert!(!line.contains(&password), "{line}");
        }
        for line in with("postgres://flames@127.0.0.1:1/flames", &password) {
            tells(&line, &[&format!("{provider} (postgres), setting `{provider}.url`"), "127.0.0.1:1"]);
        }
    }
    assert_eq!(database.schemas(), [""; 0], "nothing was made");
    assert!(!installation.data().exists(), "nor here");
}

pub(crate) fn a_postgres_schema_of_a_newer_version_is_refused_and_left_as_it_is() {
    let database = Database::new();
    let mut installation = Installation::new();
    let secret = secret_file(&installation, &database.parts().1);
    up_with(&mut installation, &config(&database, &secret));
    assert_eq!(installation.interrupt().0, 0);
    let variables = variables(&database);
    let variables = borrowed(&variables);
    database.ask("INSERT INTO flames.migration (number, oldest_code) VALUES (99, 99)");
    for line in [up_refused(&installation, &variables), check_refused(&installation, &variables)] {
        tells(&line, &["state (postgres), setting `state.schema`", "newer version", "99"]);
    }
    assert_eq!(database.ask("SELECT count(*)::text FROM flames.migration"), ["2"]);
    database.ask("DELETE FROM flames.migration WHERE number = 99");
    database.ask("UPDATE flames_queue.meta SET schema_version = 99");
    for line in [up_refused(&installation, &variables), check_refused(&installation, &variables)] {
        tells(&line, &["queue (postgres), setting `queue.schema`", "newer version", "99"]);
    }
}

pub(crate) fn views_show_records_as_tables() {
    let database = Database::new();
    let mut installation = Installation::new();
    let secret = secret_file(&installation, &database.parts().1);
    up_with(&mut installation, &config(&database, &secret));
    use_it(&installation);
    let config = installation.folder.path().join("flames.toml");
    for _ in 0..2 {
        let made = installation.run(&["db", "views", "--config", config.to_str().unwrap()]).ok();
        tells(&made, &["flames.vms\n", "flames.incarnations\n", "flames.controllers\n"]);
    }
    let made = database.ask("SELECT name || ' ' || desired FROM flames.vms WHERE project = 'default'");
    assert_eq!(made, ["kept stopped"]);
    let states = database.ask(
        "SELECT state FROM flames.incarnations i JOIN flames.vms v USING (project, vm) WHERE v.name = 'kept'",
    );
    assert_eq!(states, ["stopped"]);
    assert_eq!(
        database.ask("SELECT image FROM flames.images WHERE size_bytes > 0 AND digest IS NOT NULL"),
        ["test"]
    );
    assert_eq!(database.ask("SELECT name FROM flames.controllers WHERE capacity IS NOT NULL"), ["local"]);
    assert_eq!(database.ask("SELECT count(*)::text FROM flames.deleted_vms"), ["1"]);
    assert_eq!(database.ask("SELECT (vms = 0)::text FROM flames.allocations"), ["true"]);
    for view in ["disks", "requests", "leases", "assignments"] {
        database.ask(&format!("SELECT count(*)::text FROM flames.{view}"));
    }
    // A column that leads nowhere would be null in every row.
    let columns = database.ask(
        "SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'flames' \
         AND table_name IN ('vms', 'incarnations', 'images', 'controllers', 'allocations', 'leases', 'requests', 'deleted_vms')",
    );
    // Of these guests some never ended, and none has an address: their host has no block.
    let empty = ["unplaced", "incarnation", "exit", "reason", "address", "address_block", "addresses"];
    for column in columns {
        let (view, name) = column.split_once('.').unwrap();
        let may_be_null = empty.contains(&name);
        let filled = database.ask(&format!("SELECT count(\"{name}\")::text FROM flames.{view}"));
        assert!(may_be_null || filled != ["0"], "{column} is null in every row");
    }
}
