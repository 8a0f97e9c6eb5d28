//! Listens for the agent of a guest that is tried under KVM.

use std::time::Duration;

use async_trait::async_trait;
use flames_error::{Error, ErrorKind, Result};
use flames_guest_protocol::{AgentClient, AgentKey, ConnectOptions, GuestConfig, Identity};
use flames_vmm::{GuestStream, SecretBytes};
use flames_vmm_qemu::AgentProbe;

const OPERATION: &str = "vmm.probe";
/// One attempt at the handshake. The driver connects again until its own deadline.
const ATTEMPT: Duration = Duration::from_secs(20);

/// A guest that only starts its agent: no root, no network, no workload.
#[derive(Debug)]
pub(super) struct Probe {
    config: SecretBytes,
}

impl Probe {
    pub(super) fn new() -> Result<Self> {
        let key = AgentKey::generate().map_err(told)?;
        let config = GuestConfig {
            incarnation: "probe".to_owned(),
            key,
            hostname: "probe".to_owned(),
            root: None,
            network: None,
            workload: None,
            epoch_ms: 0,
        };
        Ok(Self { config: SecretBytes(config.encode().map_err(told)?) })
    }
}

fn told(error: flames_guest_protocol::Error) -> Error {
    Error::new(ErrorKind::Unavailable, OPERATION, error.message)
}

#[async_trait]
impl AgentProbe for Probe {
    fn guest_config(&self) -> SecretBytes {
        SecretBytes(self.config.0.clone())
    }

    async fn first_message(&self, stream: GuestStream, guest_config: &SecretBytes) -> Result<()> {
        let config = GuestConfig::decode(&guest_config.0).map_err(told)?;
        let identity = Identity { incarnation: config.incarnation, key: config.key };
        let options = ConnectOptions { handshake_timeout: ATTEMPT, ..ConnectOptions::default() };
        let client = AgentClient::connect(stream, &identity, options).await.map_err(told)?;
        client.info().await.map(drop).map_err(told)
    }
}
