//! Machines through a driver.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use flames_guest_protocol::{AgentClient, ConnectOptions, Identity};
use flames_vmm::{
    AGENT_PORT, IncarnationName, MachineSpec, SnapshotArtefacts, SnapshotKind, StartFrom, StopHow, VmDriver,
};

use super::Machines;

/// How long a guest may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks for something that comes into being.
pub(super) const LOOK: Duration = Duration::from_micros(500);

/// A driver, the machines that it is asked for, and what they are restored from.
pub(crate) struct Ours {
    pub(super) driver: Arc<dyn VmDriver>,
    pub(super) spec: Box<dyn Fn(usize) -> MachineSpec + Send + Sync>,
    pub(super) saved: Option<SnapshotArtefacts>,
    /// How its agents are known; none without agents.
    pub(super) identity: Option<Identity>,
    /// When the driver issued the start, or the load, of each machine.
    pub(super) issued: Arc<Mutex<HashMap<IncarnationName, Instant>>>,
    /// How many of what the driver makes ahead are there, and how many it shall have; none where it makes nothing ahead.
    pub(super) spares: Option<(Box<dyn Fn() -> usize + Send + Sync>, usize)>,
    names: Mutex<HashMap<usize, IncarnationName>>,
    made: AtomicU64,
}

impl Ours {
    pub(super) fn new(
        driver: Arc<dyn VmDriver>,
        identity: Option<Identity>,
        spec: impl Fn(usize) -> MachineSpec + Send + Sync + 'static,
    ) -> Self {
        Self {
            driver,
            spec: Box::new(spec),
            saved: None,
            identity,
            issued: Arc::default(),
            spares: None,
            names: Mutex::default(),
            made: AtomicU64::new(0),
        }
    }

    /// A name that was never used before.
    fn named(&self, number: usize) -> Result<IncarnationName> {
        let name = IncarnationName::new(format!("inc_{}", self.made.fetch_add(1, Ordering::Relaxed)))?;
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(number, name.clone());
        Ok(name)
    }

    /// From this moment to the one at which the driver issued its start or its load; zero when it does not tell.
    fn until_issued(&self, name: &IncarnationName, began: Instant) -> Duration {
        let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        issued.map_or(Duration::ZERO, |issued| issued.saturating_duration_since(began))
    }

    pub(super) fn name(&self, number: usize) -> Result<IncarnationName> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(&number).cloned().context("there is no machine of this number")
    }

    /// Boots a machine, waits until its agent answers, and saves it where its files stay.
    pub(super) async fn boot_and_save(&mut self, keep: &std::path::Path) -> Result<()> {
        let name = self.named(0)?;
        self.driver.prepare(&name, &(self.spec)(0)).await?;
        self.driver.start(&name, StartFrom::Boot, false).await?;
        if self.identity.is_some() {
            tokio::time::timeout(PATIENCE, self.answer(&name))
                .await
                .context("the guest does not come up")??;
        }
        let saved = self.driver.snapshot(&name, "base", SnapshotKind::Full).await?;
        let copy = |from: &std::path::Path, to: &str| -> Result<std::path::PathBuf> {
            let to = keep.join(to);
            // Simulated ones have no files.
            if from.exists() {
                std::fs::copy(from, &to)?;
                readable(&to)?;
                return Ok(to);
            }
            Ok(from.to_owned())
        };
        self.saved = Some(SnapshotArtefacts {
            state: copy(&saved.state, "state")?,
            memory: saved.memory.as_deref().map(|memory| copy(memory, "memory")).transpose()?,
        });
        if keep.join("state").exists() {
            self.driver.destroy(&name).await?;
        }
        Ok(())
    }

    /// Returns once the agent has answered.
    async fn answer(&self, name: &IncarnationName) -> Result<()> {
        let Some(identity) = &self.identity else { return Ok(()) };
        loop {
            if let Ok(stream) = self.driver.connect(name, AGENT_PORT).await {
                let options =
                    ConnectOptions { handshake_timeout: Duration::from_secs(5), ..ConnectOptions::default() };
                if AgentClient::connect(stream, identity, options).await.is_ok() {
                    return Ok(());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// For whoever the file is given to.
pub(super) fn readable(path: &std::path::Path) -> Result<()> {
    Ok(std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o444))?)
}

#[async_trait]
impl Machines for Ours {
    async fn get_ready(&self) -> Result<()> {
        let Some((waiting, wanted)) = &self.spares else { return Ok(()) };
        let began = Instant::now();
        while waiting() < *wanted {
            ensure!(began.elapsed() < PATIENCE, "the driver does not make its spares");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn start(&self, number: usize) -> Result<[Duration; 2]> {
        let (name, spec) = (self.named(number)?, (self.spec)(number));
        let began = Instant::now();
        self.driver.prepare(&name, &spec).await?;
        self.driver.start(&name, StartFrom::Boot, true).await?;
        let answered = began.elapsed();
        Ok([self.until_issued(&name, began), answered])
    }

    async fn restore(&self, number: usize) -> Result<[Duration; 3]> {
        let (name, spec) = (self.named(number)?, (self.spec)(number));
        let from = StartFrom::Snapshot(self.saved.clone().context("nothing was saved")?);
        let began = Instant::now();
        self.driver.prepare(&name, &spec).await?;
        self.driver.start(&name, from, false).await?;
        let loaded = began.elapsed();
        let issued = self.until_issued(&name, began);
        if self.identity.is_none() {
            return Ok([issued, loaded, Duration::ZERO]);
        }
        tokio::time::timeout(PATIENCE, self.answer(&name)).await.context("the guest does not answer")??;
        Ok([issued, loaded, began.elapsed()])
    }

    async fn pause(&self, number: usize) -> Result<()> {
        Ok(self.driver.pause(&self.name(number)?).await?)
    }

    async fn resume(&self, number: usize) -> Result<()> {
        Ok(self.driver.resume(&self.name(number)?).await?)
    }

    async fn snapshot(&self, number: usize) -> Result<()> {
        self.driver.snapshot(&self.name(number)?, "one", SnapshotKind::Full).await?;
        Ok(())
    }

    async fn end(&self, number: usize) -> Result<()> {
        let name = self.name(number)?;
        self.driver.stop(&name, StopHow::Kill).await?;
        Ok(self.driver.destroy(&name).await?)
    }

    async fn pid(&self, number: usize) -> Result<Option<u32>> {
        Ok(self.driver.observe(&self.name(number)?).await?.pid)
    }
}
