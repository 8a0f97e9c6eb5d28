//! What several servers can share, and what one server has alone.

use std::fs::File;
use std::path::PathBuf;

use crate::config::{Problem, Section, Settings, Source};
use crate::data;
use crate::exit::{CONFLICT, Failure};

/// What keeps a server from working beside others, or from being started again.
pub(super) fn problems(settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    let forgets = |section: Section, what: &str, choose: &str| {
        let setting = format!("{}.backend", section.name());
        let sentence = format!(
            "`memory` is forgotten when this server ends, while hosts and other servers go on{what}: choose {choose} (from {}).",
            settings.source(&setting)
        );
        Problem::new(section, setting, sentence).of_backend("memory")
    };
    let backend = |section| settings.backend(section);
    if backend(Section::State) == "memory" {
        problems.push(forgets(
            Section::State,
            ", and hosts would end all VMs that it does not know any more",
            "`postgres` or `etcd`, or `sqlite` for one server alone",
        ));
    }
    if backend(Section::Blob) == "memory" {
        problems.push(forgets(Section::Blob, "", "`s3`, `gcs` or `azure`, or `fs` for one server alone"));
    }
    if backend(Section::Queue) == "memory" {
        problems.push(forgets(
            Section::Queue,
            " and cannot share it",
            "`postgres` or `nats`, or `sqlite` for one server alone",
        ));
    }
    if matches!(backend(Section::State), "postgres" | "etcd") {
        if backend(Section::Blob) == "fs" && settings.source("blob.path") == Source::Default {
            let sentence = "the records are shared with other servers, and images in a folder of this one are not: choose `s3`, `gcs` or \
                 `azure`; or, where this is to stay the only server, name its folder in `blob.path`.";
            problems.push(Problem::new(Section::Blob, "blob.backend", sentence).of_backend("fs"));
        }
        if backend(Section::Queue) == "sqlite" {
            let sentence = "the records are shared with other servers, and a queue in a file of this machine is not: choose `postgres` or `nats`.";
            problems.push(Problem::new(Section::Queue, "queue.backend", sentence).of_backend("sqlite"));
        }
    }
    problems
}

/// Takes the records for this server alone, where they lie in a file: servers tell each other of changes through a database, which a file
/// cannot. None: they can be shared.
pub(crate) fn lock_alone(settings: &Settings) -> Result<Option<File>, Failure> {
    let Some(path) = settings.path("state.path").filter(|_| settings.backend(Section::State) == "sqlite")
    else {
        return Ok(None);
    };
    // Where the folder cannot be made, opening the file says so better.
    let _ = path.parent().map(std::fs::create_dir_all);
    let mut name = path.clone().into_os_string();
    name.push(".server");
    let lock = data::lock_file(&PathBuf::from(name)).map_err(|error| {
        Failure::io(format!("setting `state.path`: {} cannot be locked", path.display()), &error)
    })?;
    lock.map(Some).ok_or_else(|| {
        let sentence = format!(
            "state (sqlite), setting `state.path`: another `flames server` works with {}, and a file is for one server alone.",
            path.display()
        );
        Failure::new(CONFLICT, sentence)
            .advise("Choose `postgres` or `etcd` as `state.backend` for several servers.")
    })
}
