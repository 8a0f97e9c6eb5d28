//! The configuration, as a user meets it: what is chosen by it, and what bad input gets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Ended, Installation, finish};

/// An installation with a configuration file that no other configuration of this machine stands beside.
struct Place {
    installation: Installation,
}

impl Place {
    fn new() -> Self {
        Self { installation: Installation::new() }
    }

    fn folder(&self) -> PathBuf {
        self.installation.folder.path().canonicalize().unwrap()
    }

    fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    fn config(&self, text: &str) -> String {
        let path = self.folder().join("flames.toml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.installation.command(arguments);
        command.env("XDG_CONFIG_HOME", self.folder().join("no-config"));
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Ended {
        finish(&mut self.command(arguments), b"")
    }

    /// `flames up` with a simulated host, which must be refused with one line; the line.
    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let mut all = vec!["up", "--listen", "0", "--driver", "simulated"];
        all.extend(arguments);
        one_line(self.run(&all))
    }

    /// `flames config check`, which must find one thing wrong; the line.
    #[track_caller]
    fn check_refused(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-q", "config", "check", "--listen", "0", "--driver", "simulated"];
        all.extend(arguments);
        one_line(self.run(&all))
    }

    fn up(&mut self, arguments: &[&str]) -> serde_json::Value {
        let mut all = vec!["--driver", "simulated"];
        all.extend(arguments);
        self.installation.up(&all)
    }

    /// Up once, and ended in order.
    fn used(&mut self) {
        self.up(&[]);
        assert_eq!(self.installation.interrupt().0, 0);
    }
}

/// The one line of a refusal, which ends with 2.
#[track_caller]
fn one_line(ended: Ended) -> String {
    let said = ended.failed(2);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 1, "{said}");
    lines[0].strip_prefix("flames: ").unwrap_or_else(|| panic!("{said}")).to_owned()
}

#[track_caller]
fn tells(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
}

/// Every file below a folder with its contents, and every folder.
fn everything(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path.clone());
                all.insert(path, None);
            } else {
                let bytes = fs::read(&path).ok();
                all.insert(path, bytes);
            }
        }
    }
    all
}

/// Sets the schema number in a closed SQLite file: `user_version`, at byte 60 of its header
/// (<https://www.sqlite.org/fileformat2.html#the_database_header>).
fn set_schema(path: &Path, number: u32) {
    let mut bytes = fs::read(path).unwrap();
    bytes[60..64].copy_from_slice(&number.to_be_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn without_a_configuration_everything_is_durable_and_in_one_folder() {
    let mut place = Place::new();
    let told = place.up(&[]);
    let providers = &told["providers"];
    for (provider, backend) in
        [("state", "sqlite"), ("blob", "fs"), ("cache", "memory"), ("queue", "sqlite"), ("ingress", "proxy")]
    {
        assert_eq!(providers[provider], backend, "{told}");
    }
    assert!(told["ingress"].as_str().unwrap().starts_with("127.0.0.1:"), "{told}");
    for name in ["lock", "version", "state.sqlite", "queue.sqlite", "blobs"] {
        assert!(place.data().join(name).exists(), "{name}");
    }
    place.installation.import_small_image();
    place.installation.run(&["run", "-d", "--name", "x", "test", "--", "sleep", "infinity"]).ok();
    assert_eq!(place.installation.interrupt().0, 0);
    place.up(&[]);
    assert_eq!(place.installation.inspect("x")["name"], "x");
}

#[test]
fn ephemeral_is_all_in_memory() {
    let mut place = Place::new();
    let told = place.up(&["--ephemeral"]);
    for provider in ["state", "blob", "cache", "queue"] {
        assert_eq!(told["providers"][provider], "memory", "{told}");
    }
    place.installation.import_small_image();
    place.installation.run(&["run", "test", "--", "true"]).ok();
    let kept = everything(&place.data());
    let names: Vec<_> = kept.keys().filter_map(|path| path.file_name()?.to_str()).collect();
    assert!(!names.iter().any(|name| name.contains("sqlite") || *name == "blobs"), "{names:?}");
}

#[test]
fn the_file_chooses_and_the_environment_and_flags_go_before_it() {
    let mut place = Place::new();
    let config =
        place.config("name = \"by-file\"\n[queue]\nbackend = \"memory\"\n[ingress]\nbackend = \"noop\"\n");
    let told = place.up(&["--config", &config]);
    assert_eq!(
        (&told["providers"]["queue"], &told["providers"]["ingress"]),
        (&"memory".into(), &"noop".into())
    );
    support::eventually("the controller is registered", || {
        place.installation.run(&["controllers"]).ok().contains("by-file").then_some(())
    });
    let mut shown = place.command(&["--json", "config", "show", "--config", &config, "--name", "by-flag"]);
    shown.env("FLAMES_QUEUE_BACKEND", "sqlite");
    let shown = finish(&mut shown, b"").json();
    let find = |setting: &str| {
        let settings = shown["settings"].as_array().unwrap();
        let found = settings.iter().find(|one| one["setting"] == setting).unwrap();
        (found["value"].as_str().unwrap().to_owned(), found["source"].as_str().unwrap().to_owned())
    };
    assert_eq!(find("name"), ("by-flag".to_owned(), "--name".to_owned()));
    assert_eq!(find("queue.backend"), ("sqlite".to_owned(), "FLAMES_QUEUE_BACKEND".to_owned()));
    assert_eq!(find("ingress.backend"), ("noop".to_owned(), format!("{config}:5")));
    assert_eq!(find("state.backend").1, "default");
}

#[test]
fn commands_find_the_data_folder_that_the_file_names() {
    let mut place = Place::new();
    place.up(&[]);
    let config = place.config(&format!("data = {:?}\n", place.data().display().to_string()));
    let mut command = support::flames();
    command.args(["--config", &config, "ps"]).env("HOME", place.folder()).env_remove("XDG_DATA_HOME");
    finish(&mut command, b"").ok();
}

#[test]
fn the_example_is_a_configuration_that_can_be_used() {
    let place = Place::new();
    let example = place.run(&["config", "example"]).ok();
    assert_eq!(
        example,
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("flames.example.toml")).unwrap()
    );
    let config = place.config(&example);
    place.run(&["config", "check", "--config", &config, "--listen", "0"]).ok();
}

#[test]
fn a_check_changes_nothing_and_says_what_a_start_would_make() {
    let mut place = Place::new();
    let ended = place.run(&["--json", "config", "check", "--listen", "0"]).json();
    assert_eq!(ended["ok"], true, "{ended:#}");
    assert!(!place.data().exists(), "a check makes no folder");
    let state =
        ended["checks"].as_array().unwrap().iter().find(|check| check["provider"] == "state").unwrap();
    assert_eq!((&state["verdict"], &state["backend"]), (&"note".into(), &"sqlite".into()), "{state}");
    assert!(state["found"].as_str().unwrap().contains("first start makes it"), "{state}");
    place.used();
    let before = everything(&place.data());
    let table = place.run(&["config", "check", "--listen", "0"]).ok();
    assert_eq!(everything(&place.data()), before);
    for word in ["PROVIDER", "VERDICT", "state", "sqlite", "blob", "cache", "queue", "ingress", " ms"] {
        assert!(table.contains(word), "{word} is not in {table}");
    }
}

#[test]
fn a_check_beside_a_running_flames_finds_nothing_wrong() {
    let mut place = Place::new();
    let told = place.up(&[]);
    let ingress = told["ingress"].as_str().unwrap();
    place.run(&["config", "check", "--ingress-listen", ingress]).ok();
    place.installation.run(&["ps"]).ok();
}

#[test]
fn a_wrong_key_is_one_line_with_what_was_meant_and_nothing_is_made() {
    let place = Place::new();
    let config = place.config("[state]\nbackend = \"sqlite\"\nreadrs = 4\n");
    let parts = ["state", "setting `state.readrs`", &format!("{config}:3"), "did you mean `readers`?"];
    tells(&place.refused(&["--config", &config]), &parts);
    tells(&place.check_refused(&["--config", &config]), &parts);
    assert!(!place.data().exists());
}

#[test]
fn a_configuration_that_is_not_there_is_told() {
    let place = Place::new();
    tells(
        &place.refused(&["--config", "/no/such/flames.toml"]),
        &["setting `config`", "/no/such/flames.toml", "--config"],
    );
}

#[test]
fn everything_that_is_wrong_is_told_by_a_check_each_in_its_line() {
    let place = Place::new();
    let config = place.config("listen = \"0.0.0.0:1\"\n[state]\nreaders = 0\n[ingress]\ntrusted_proxies = [\"x\"]\nlisten = [\"y\"]\n");
    let said = place.run(&["config", "check", "--config", &config]).failed(2);
    assert_eq!(said.lines().count(), 1, "what cannot be read at all comes first: {said}");
    let config = place.config("[state]\nreaders = 0\n[ingress]\nlisten = [\"y\"]\n");
    let said = place.run(&["config", "check", "--config", &config]).failed(2);
    assert_eq!(said.lines().count(), 2, "{said}");
    tells(&said, &["state (sqlite), setting `state.readers`", "ingress (proxy), setting `ingress.listen`"]);
    let json = place.run(&["--json", "config", "check", "--config", &config]);
    assert_eq!(json.code, 2);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["problems"][0]["setting"], "state.readers");
}

#[test]
#[cfg(not(all(
    feature = "postgres",
    feature = "redis",
    feature = "nats",
    feature = "caddy",
    feature = "s3",
    feature = "etcd"
)))]
fn a_backend_that_is_not_compiled_in_says_so_and_how_to_get_it() {
    let place = Place::new();
    for (flag, backend, has) in [
        ("--state-backend", "postgres", cfg!(feature = "postgres")),
        ("--state-backend", "etcd", cfg!(feature = "etcd")),
        ("--blob-backend", "s3", cfg!(feature = "s3")),
        ("--cache-backend", "redis", cfg!(feature = "redis")),
        ("--queue-backend", "nats", cfg!(feature = "nats")),
        ("--ingress-backend", "caddy", cfg!(feature = "caddy")),
    ] {
        if !has {
            let line = place.refused(&[flag, backend]);
            tells(&line, &[backend, &format!("cargo build -p flames --features {backend}"), "backend`"]);
        }
    }
    assert!(!place.data().exists());
}

#[test]
fn a_database_of_a_newer_version_is_refused_and_left_as_it_is() {
    for (name, provider) in
        [("state", "state (sqlite), setting `state.path`"), ("queue", "queue (sqlite), setting `queue.path`")]
    {
        let mut place = Place::new();
        place.used();
        let file = place.data().join(format!("{name}.sqlite"));
        set_schema(&file, 99);
        let before = fs::read(&file).unwrap();
        let path = file.display().to_string();
        tells(&place.refused(&[]), &[provider, &path, "newer version", "99"]);
        tells(&place.check_refused(&[]), &[provider, &path, "newer version", "99"]);
        assert_eq!(fs::read(&file).unwrap(), before);
        set_schema(&file, 1);
        place.used();
    }
}

#[test]
fn a_state_file_that_was_emptied_is_not_taken_for_a_new_one() {
    let mut place = Place::new();
    let file = place.data().join("state.sqlite");
    // In a folder that no Flames has worked in it is new.
    fs::create_dir(place.data()).unwrap();
    fs::write(&file, "").unwrap();
    place.used();
    let kept = fs::read(&file).unwrap();
    fs::write(&file, "").unwrap();
    let path = file.display().to_string();
    for line in [place.refused(&[]), place.check_refused(&[])] {
        tells(
            &line,
            &["state (sqlite), setting `state.path`", &path, "is empty", "from a backup", "remove it"],
        );
    }
    assert_eq!(fs::read(&file).unwrap(), b"", "nothing was changed");
    // Both ways out work.
    fs::write(&file, kept).unwrap();
    place.used();
    fs::remove_file(&file).unwrap();
    place.used();
}

#[test]
fn a_data_folder_of_a_newer_version_is_refused() {
    let mut place = Place::new();
    place.used();
    fs::write(place.data().join("version"), r#"{"schema":7}"#).unwrap();
    let before = everything(&place.data());
    for line in [place.refused(&[]), place.check_refused(&[])] {
        tells(&line, &["setting `data`", "newer version", "schema 7", "--data"]);
    }
    assert_eq!(everything(&place.data()), before);
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_as_it_is() {
    let place = Place::new();
    let file = place.folder().join("precious");
    fs::write(&file, "not a database, and worth keeping".repeat(200)).unwrap();
    let before = fs::read(&file).unwrap();
    let path = file.display().to_string();
    for (flag, provider) in [("--state-path", "state (sqlite)"), ("--queue-path", "queue (sqlite)")] {
        tells(&place.refused(&[flag, &path]), &[provider, &path]);
        tells(&place.check_refused(&[flag, &path]), &[provider, &path]);
    }
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(
        fs::read_dir(place.folder())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() != "data")
            .count(),
        1
    );
}

#[test]
fn a_folder_that_is_not_there_or_is_none_is_told_with_its_setting() {
    let place = Place::new();
    let missing = place.folder().join("no/such/state.sqlite").display().to_string();
    tells(
        &place.refused(&["--state-path", &missing]),
        &["state (sqlite), setting `state.path`", &missing, "folder"],
    );
    assert!(!place.data().exists(), "a start that is refused leaves nothing");
    tells(&place.check_refused(&["--state-path", &missing]), &["setting `state.path`", "no/such"]);
    let file = place.folder().join("file");
    fs::write(&file, "").unwrap();
    let path = file.display().to_string();
    tells(&place.refused(&["--blob-path", &path]), &["blob (fs), setting `blob.path`", &path]);
    tells(&place.check_refused(&["--blob-path", &path]), &["blob (fs), setting `blob.path`", &path]);
    let data = ["--data", path.as_str()];
    tells(&place.refused(&data), &["setting `data`", &path]);
    tells(&place.check_refused(&data), &["setting `data`", &path]);
}

#[test]
fn an_address_that_is_taken_is_told_with_its_setting() {
    let place = Place::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for line in
        [place.refused(&["--ingress-listen", &address]), place.check_refused(&["--ingress-listen", &address])]
    {
        tells(&line, &["ingress (proxy), setting `ingress.listen`", &address]);
        assert!(!place.data().exists(), "a start that is refused leaves nothing");
    }
}

#[test]
fn no_secret_is_shown_by_any_command() {
    let place = Place::new();
    let arguments = ["--state-backend", "postgres", "--state-url", "postgres://flames@127.0.0.1:1/flames"];
    for action in [
        &["config", "show"][..],
        &["config", "check"],
        &["--json", "config", "check"],
        &["up", "--listen", "0"],
    ] {
        let mut command = place.command(&[action, &arguments].concat());
        command.env("FLAMES_STATE_PASSWORD", "hunter2");
        let ended = finish(&mut command, b"");
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!said.contains("hunter2"), "{said}");
        assert!(action != ["config", "show"] || said.contains("***"), "{said}");
    }
    let line = place.refused(&[
        "--state-backend",
        "postgres",
        "--state-url",
        "postgres://flames:hunter2@127.0.0.1/flames",
    ]);
    tells(&line, &["setting `state.url`", "state.password_file"]);
    assert!(!line.contains("hunter2"));
}

#[test]
fn views_are_for_postgres_alone() {
    let place = Place::new();
    let said = place.run(&["db", "views"]).failed(2);
    tells(&said, &["state (sqlite)", "only `postgres`", "--state-backend postgres"]);
    assert!(!place.data().exists());
}

#[test]
fn settings_are_completed_by_the_shell_and_explained_by_help() {
    let place = Place::new();
    let script = place.run(&["completions", "bash"]).ok();
    for word in ["--state-backend", "--queue-password-file", "--ingress-listen"] {
        assert!(script.contains(word), "{word}");
    }
    let help = place.run(&["up", "--help"]).ok();
    tells(
        &help,
        &[
            "--state-url",
            "FLAMES_STATE_URL",
            "--cache-password-file",
            "FLAMES_CACHE_PASSWORD",
            "[default: 127.0.0.1:7070]",
        ],
    );
    let short = place.run(&["up", "-h"]).ok();
    assert!(short.contains("--state-backend") && !short.contains("--state-acquire-deadline"), "{short}");
}
