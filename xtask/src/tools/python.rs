//! Packages of PyPI, each set in a virtual environment of its own below `target/tools`.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{find, tools_folder, works};
use crate::process::{Beside, Supervisor};

/// How often the end of an installation is looked for.
const POLL: Duration = Duration::from_millis(50);

/// How much of what a failed installation wrote is shown.
const SHOWN_LINES: usize = 20;

/// Makes the environment `$2` with the python `$1` and installs the rest into it.
const INSTALL: &str = r#"
python=$1
environment=$2
shift 2
"$python" -m venv --clear "$environment" &&
    exec "$environment/bin/pip" install --quiet --disable-pip-version-check "$@"
"#;

/// A set of packages.
pub(super) struct PythonEnvironment {
    folder: PathBuf,
    packages: Vec<&'static str>,
}

impl PythonEnvironment {
    /// The one of that name.
    pub(super) fn new(name: &str, packages: Vec<&'static str>) -> Self {
        Self { folder: tools_folder().join(name), packages }
    }

    /// The folder with its programs.
    pub(super) fn programs(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// What it consists of, to be read.
    pub(super) fn packages(&self) -> String {
        self.packages.join(", ")
    }

    /// Whether there is nothing to install.
    pub(super) fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    /// Whether exactly these packages are installed, for a Python that is still there.
    pub(super) fn is_installed(&self) -> bool {
        std::fs::read_to_string(self.marker()).is_ok_and(|packages| packages == self.packages.join("\n"))
            && works(Command::new(self.programs().join("python")).arg("--version"))
    }

    /// Written last, so an installation that was interrupted is done again.
    fn marker(&self) -> PathBuf {
        self.folder.join("installed")
    }

    /// Begins the installation, beside whatever else is installed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn begin(self, supervisor: &Supervisor, python: &std::path::Path) -> Result<Installing> {
        let name = self.folder.file_name().unwrap_or_default().to_owned();
        let log_path = supervisor.folder().join(name).with_extension("log");
        let log = File::create(&log_path).context("no log file for an installation")?;
        let mut command = Command::new("sh");
        command.args(["-c", INSTALL, "sh"]).arg(python).arg(&self.folder).args(&self.packages);
        let child = supervisor.start_beside(&command, &log)?;
        Ok(Installing { environment: self, child, log_path })
    }
}

/// An installation under way.
pub(super) struct Installing {
    environment: PythonEnvironment,
    child: Beside,
    log_path: PathBuf,
}

impl Installing {
    /// Waits for its end. Call it when no other command is running.
    ///
    /// # Errors
    /// When it failed, with what it wrote, or the run was interrupted.
    pub(super) fn finish(self, supervisor: &Supervisor) -> Result<()> {
        let ended = loop {
            if let Some(ended) = supervisor.end_of(&self.child) {
                break ended;
            }
            supervisor.check()?;
            std::thread::sleep(POLL);
        };
        supervisor.check()?;
        if !ended.success() {
            let log = std::fs::read_to_string(&self.log_path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines.get(lines.len().saturating_sub(SHOWN_LINES)..).unwrap_or_default().join("\n");
            bail!("pip install {}: {ended}\n{shown}", self.environment.packages.join(" "));
        }
        std::fs::write(self.environment.marker(), self.environment.packages.join("\n"))
            .context("cannot write into the virtual environment")
    }
}

/// A Python that can make virtual environments, which Debian's needs a package for.
pub(super) fn python() -> Option<PathBuf> {
    find("python3").filter(|python| works(Command::new(python).args(["-c", "import ensurepip, venv"])))
}
