use super::keys::Names;
use super::*;

const URL: &str = "postgres://flames@db/flames";

fn global() -> Global {
    Global { data: Some("/data".into()), ..Global::default() }
}

fn flag(path: &str, text: &str) -> flags::Given {
    given(path, text, |names| Source::Flag(names.flag.as_str()))
}

fn variable(path: &str, text: &str) -> flags::Given {
    given(path, text, |names| Source::Environment(names.variable.as_str()))
}

fn given(path: &str, text: &str, source: impl Fn(&'static Names) -> Source) -> flags::Given {
    let (key, names) = keys::find(path).unwrap();
    flags::Given { key, names, raw: Raw::of_text(key.kind, text), source: source(names) }
}

struct Case {
    file: &'static str,
    said: Vec<flags::Given>,
    secrets: Vec<(&'static str, &'static str)>,
    is_ephemeral: bool,
}

impl Case {
    fn new(file: &'static str, said: Vec<flags::Given>) -> Self {
        Self { file, said, secrets: Vec::new(), is_ephemeral: false }
    }

    fn resolve(self) -> Result<Settings, Vec<Problem>> {
        let path = PathBuf::from("/etc/flames/flames.toml");
        let said = file::understand(&path, self.file)?;
        let lookup = move |name: &str| {
            self.secrets.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        };
        let flags = SettingFlags { said: self.said };
        Settings::resolve_from(&global(), &flags, Some(ReadFile { path, said }), &lookup, self.is_ephemeral)
    }

    #[track_caller]
    fn settings(self) -> Settings {
        self.resolve().unwrap()
    }

    #[track_caller]
    fn refused(self) -> Vec<String> {
        self.resolve().unwrap_err().iter().map(ToString::to_string).collect()
    }
}

#[test]
fn a_boot_takes_no_longer_than_is_allowed_and_that_is_from_a_second_to_an_hour() {
    let deadline = |said| UpConfig::of(&Case::new("", said).settings()).map(|config| config.boot_deadline);
    assert_eq!(deadline(vec![]).unwrap(), Duration::from_secs(60));
    assert_eq!(deadline(vec![flag("boot_deadline", "3m")]).unwrap(), Duration::from_secs(180));
    for wrong in ["999ms", "61m"] {
        let problem = deadline(vec![flag("boot_deadline", wrong)]).unwrap_err().to_string();
        assert!(problem.contains("boot_deadline") && problem.contains("from 1s to 1h"), "{problem}");
    }
}

#[test]
fn without_a_configuration_everything_is_in_one_folder_and_nothing_else_is_needed() {
    let settings = Case::new("", vec![]).settings();
    let backends = Section::ALL[1..].iter().map(|section| settings.backend(*section));
    assert_eq!(backends.collect::<Vec<_>>(), ["sqlite", "fs", "memory", "sqlite", "proxy"]);
    for (path, place) in [
        ("state.path", "/data/state.sqlite"),
        ("blob.path", "/data/blobs"),
        ("queue.path", "/data/queue.sqlite"),
    ] {
        assert_eq!(settings.text(path), Some(place));
    }
    assert_eq!(settings.list("ingress.listen"), ["127.0.0.1:7080"]);
}

#[test]
fn a_flag_goes_before_the_environment_and_that_before_the_file_and_that_before_the_default() {
    let file = "log = \"info\"";
    let log = |said| Case::new(file, said).settings();
    assert_eq!(Case::new("", vec![]).settings().text("log"), Some("warn"));
    assert_eq!(log(vec![]).text("log"), Some("info"));
    assert_eq!(log(vec![]).source("log").to_string(), "/etc/flames/flames.toml:1");
    assert_eq!(log(vec![variable("log", "debug")]).text("log"), Some("debug"));
    let all = log(vec![flag("log", "error"), variable("log", "debug")]);
    assert_eq!((all.text("log"), all.source("log").to_string().as_str()), (Some("error"), "--log"));
}

#[test]
fn a_setting_of_another_backend_is_refused_where_it_was_said_together_with_it() {
    let together = Case::new("[state]\nbackend = \"sqlite\"\nschema = \"x\"", vec![]).refused();
    assert!(
        together[0].starts_with("state (sqlite), setting `state.schema`: it is for the backend postgres"),
        "{together:?}"
    );
    let later = Case::new("", vec![variable("state.url", URL)]).refused();
    assert!(later[0].contains("FLAMES_STATE_URL"), "{later:?}");
}

#[test]
fn for_a_try_another_backend_can_be_named_over_a_file_that_stays_as_it_is() {
    let file = "[state]\nbackend = \"postgres\"\nurl = \"postgres://flames@db/flames\"\npassword_file = \"/no/such/file\"";
    let settings = Case::new(file, vec![flag("state.backend", "memory")]).settings();
    assert_eq!((settings.backend(Section::State), settings.text("state.url")), ("memory", None));
    let ephemeral = Case { is_ephemeral: true, ..Case::new(file, vec![]) }.settings();
    for section in [Section::State, Section::Blob, Section::Cache, Section::Queue] {
        assert_eq!(ephemeral.backend(section), "memory");
    }
    assert_eq!(ephemeral.source("state.backend").to_string(), "--ephemeral");
}

#[test]
fn ephemeral_and_a_backend_named_beside_it_are_a_contradiction() {
    let case = Case { is_ephemeral: true, ..Case::new("", vec![flag("queue.backend", "nats")]) };
    assert!(case.refused()[0].contains("--ephemeral"));
}

#[test]
fn a_password_is_taken_from_its_file_or_the_environment_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "hunter2\n").unwrap();
    let both = vec![flag("state.backend", "postgres"), flag("state.url", URL)];
    let mut said = both.clone();
    said.push(flag("state.password", path.to_str().unwrap()));
    let from_file = Case::new("", said).settings();
    assert_eq!(from_file.text("state.password"), Some("hunter2"));
    let secrets = vec![("FLAMES_STATE_PASSWORD", "hunter3")];
    let from_variable = Case { secrets, ..Case::new("", both) }.settings();
    assert_eq!(from_variable.text("state.password"), Some("hunter3"));
    for settings in [from_file, from_variable] {
        let shown = format!("{settings:?} {}", serde_json::to_string(&settings.shown()).unwrap());
        assert!(shown.contains("state.password") && !shown.contains("hunter"), "{shown}");
    }
}

#[test]
fn a_password_in_a_url_is_refused_but_from_the_environment() {
    let url = "postgres://flames:hunter2@db/flames";
    let backend = || flag("state.backend", "postgres");
    let refused = Case::new("", vec![backend(), flag("state.url", url)]).refused();
    assert!(refused[0].contains("state.password_file") && !refused[0].contains("hunter2"), "{refused:?}");
    let settings = Case::new("[state]\nbackend = \"postgres\"", vec![variable("state.url", url)]).settings();
    assert_eq!(settings.shown_value("state.url"), "postgres://flames:***@db/flames");
}

#[test]
fn a_secret_whose_file_is_not_there_is_told_with_the_file() {
    let said = vec![
        flag("cache.backend", "redis"),
        flag("cache.urls", "redis://h"),
        flag("cache.password", "/no/such/file"),
    ];
    let refused = Case::new("", said).refused();
    assert!(
        refused[0].contains("setting `cache.password`") && refused[0].contains("/no/such/file"),
        "{refused:?}"
    );
}

#[test]
fn a_path_in_the_file_leads_from_the_files_folder() {
    let settings =
        Case::new("kernel = \"kernels/vmlinux\"\nagent = \"/bin/agent\"\nqemu = \"qemu\"", vec![]).settings();
    assert_eq!(settings.text("kernel"), Some("/etc/flames/kernels/vmlinux"));
    assert_eq!((settings.text("agent"), settings.text("qemu")), (Some("/bin/agent"), Some("qemu")));
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let refused =
        Case::new("listen = \"0.0.0.0:1\"\n[state]\nreaders = 4\noperation_deadline = \"soon\"", vec![])
            .refused();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused.iter().any(|line| line.contains("/etc/flames/flames.toml:4")));
}

#[test]
fn the_host_is_taken_from_the_settings() {
    let settings = Case::new(
        "host_labels = { zone = \"a\" }\ncapacity_memory = \"2G\"",
        vec![flag("driver", "simulated")],
    );
    let host = UpConfig::of(&settings.settings()).unwrap();
    assert_eq!((host.driver, host.capacity_memory), (Driver::Simulated, Some(2_048)));
    assert_eq!(host.host_labels, [("zone".to_owned(), "a".to_owned())]);
    let modules = Case::new("", vec![flag("kernel_modules", "/m")]).settings();
    assert_eq!(UpConfig::of(&modules).unwrap_err().setting, "kernel_modules");
    let both = Case::new("", vec![flag("initramfs", "/i"), flag("agent", "/a")]).settings();
    assert_eq!(UpConfig::of(&both).unwrap_err().setting, "agent");
}
