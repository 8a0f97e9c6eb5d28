//! The provider.

use std::fmt::Debug;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flames_error::{Error, ErrorKind, Result};
use flames_ingress::{
    IngressCapabilities, IngressProvider, MAX_PAGE, Registration, RegistrationPage, Route, RouteKey,
    RouteOwner, Target,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::admin::{Admin, AdminAddress};
use crate::document::{Naming, Table};
use crate::worker::{Change, Document, Request, run};

/// Changes that may wait.
const WAITING: usize = 1_024;

/// Which Caddy, and what of it is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaddyConfig {
    /// Where its admin API is.
    pub admin: AdminAddress,
    /// Whose routes these are: 1 to 32 of `a-z 0-9 -`. Several Flames clusters can share a Caddy, each with its own name; all servers
    /// of one cluster have the same.
    pub cluster: String,
    /// The name of the HTTP server in Caddy's configuration; made when it is not there.
    pub server: String,
    /// Where that server listens, when it is made: Caddy's network addresses (`:443`, `127.0.0.1:8080`).
    pub listen: Vec<String>,
    /// Whether a server that is made gets certificates by itself, and redirects to HTTPS.
    pub automatic_https: bool,
    /// The domain under which VMs are named: a port of a VM is `{port}-{vm}.{domain}`.
    pub domain: String,
    /// Whether URLs begin with `https`.
    pub public_tls: bool,
    /// The port that URLs name; none: the scheme's own.
    pub public_port: Option<u16>,
    /// How long one request to the admin API may take. A call waits at most for the change before its own, and its own.
    pub deadline: Duration,
}

impl CaddyConfig {
    /// A server named `flames` that listens at `listen`, plainly.
    pub fn new(admin: AdminAddress, domain: impl Into<String>, listen: impl Into<String>) -> Self {
        Self {
            admin,
            cluster: "default".to_owned(),
            server: "flames".to_owned(),
            listen: vec![listen.into()],
            automatic_https: false,
            domain: domain.into(),
            public_tls: false,
            public_port: None,
            deadline: Duration::from_secs(10),
        }
    }

    fn validate(&self) -> Result<()> {
        const OPERATION: &str = "ingress.start";
        let is_name = |name: &str, more: &[u8]| {
            let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b);
            (1..=32).contains(&name.len()) && name.bytes().all(allowed)
        };
        if !is_name(&self.cluster, b"-") {
            let sentence = "A cluster's name is 1 to 32 of a-z, 0-9 and `-`.";
            return Err(Error::invalid(OPERATION, "cluster", sentence));
        }
        if !is_name(&self.server, b"-_") {
            let sentence = "A server's name is 1 to 32 of a-z, 0-9, `-` and `_`.";
            return Err(Error::invalid(OPERATION, "server", sentence));
        }
        let key = RouteKey { vm: RouteOwner::new("vm")?, port: 1 };
        if (Route { key, hosts: vec![self.domain.clone()] }).validate().is_err() {
            return Err(Error::invalid(OPERATION, "domain", "The domain is a lower-case DNS name."));
        }
        if self.deadline.is_zero() {
            return Err(Error::invalid(OPERATION, "deadline", "The deadline is more than 0."));
        }
        Ok(())
    }
}

/// Routes in a Caddy. See the crate's docs.
pub struct CaddyIngress {
    document: Arc<Document>,
    requests: mpsc::Sender<Request>,
    worker: JoinHandle<()>,
}

impl Debug for CaddyIngress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaddyIngress").field("admin", &self.document.admin.address).finish_non_exhaustive()
    }
}

impl Drop for CaddyIngress {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl CaddyIngress {
    /// Takes the configuration; connects to nothing yet. Its task runs on the runtime that this is called on.
    ///
    /// Errors: `InvalidInput`, naming the setting.
    pub fn new(config: CaddyConfig) -> Result<Self> {
        config.validate()?;
        let naming = Naming {
            cluster: config.cluster,
            domain: config.domain,
            scheme: if config.public_tls { "https" } else { "http" },
            port: config.public_port,
        };
        let document = Arc::new(Document {
            admin: Admin { address: config.admin, deadline: config.deadline },
            naming,
            server: config.server,
            listen: config.listen,
            automatic_https: config.automatic_https,
        });
        let (requests, waiting) = mpsc::channel(WAITING);
        let worker = tokio::spawn(run(Arc::clone(&document), waiting));
        Ok(Self { document, requests, worker })
    }

    /// Asks the admin API, so that a wrong address shows at the start. Errors: `Unavailable`, `PermissionDenied`.
    pub async fn check(&self) -> Result<()> {
        self.document.read("ingress.check").await.map(drop)
    }

    async fn change(&self, operation: &'static str, change: Change) -> Result<bool> {
        let (answer, answered) = oneshot::channel();
        self.requests
            .try_send(Request { change, answer })
            .map_err(|_| Error::new(ErrorKind::Exhausted, operation, "too many changes wait for Caddy"))?;
        // Reading, closing and writing what was sent before this, and then this: each within its own deadline.
        let patience = self.document.admin.deadline * 6;
        match timeout(patience, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                Err(Error::internal(operation, "the task that changes Caddy's configuration ended"))
            }
            Err(_) => Err(Error::new(ErrorKind::OutcomeUnknown, operation, "Caddy took too long")),
        }
    }

    async fn table(&self, operation: &'static str) -> Result<Table> {
        Ok(self.document.read(operation).await?.0.table())
    }
}

#[async_trait]
impl IngressProvider for CaddyIngress {
    fn name(&self) -> &'static str {
        "caddy"
    }

    fn capabilities(&self) -> IngressCapabilities {
        IngressCapabilities { forwards: true, guest_targets: false }
    }

    fn url(&self, route: &Route) -> Option<String> {
        self.document.naming.url(route)
    }

    async fn register(&self, route: Route, target: Target) -> Result<Registration> {
        const OPERATION: &str = "ingress.register";
        self.document.naming.check(&route)?;
        if matches!(target, Target::Guest { .. }) {
            let message = "Caddy connects to addresses, not to guests' ports";
            return Err(Error::new(ErrorKind::NotSupported, OPERATION, message));
        }
        let url = self.document.naming.url(&route);
        let registration = Registration { route, target, url };
        self.change(OPERATION, Change::Register(registration.clone())).await?;
        Ok(registration)
    }

    async fn unregister_port(&self, key: &RouteKey) -> Result<()> {
        self.change("ingress.unregister_port", Change::RemovePort(key.clone())).await.map(drop)
    }

    async fn unregister(&self, vm: &RouteOwner) -> Result<()> {
        self.change("ingress.unregister", Change::RemoveVm(vm.clone())).await.map(drop)
    }

    async fn unregister_target(&self, key: &RouteKey, target: &Target) -> Result<bool> {
        let change = Change::RemoveTarget(key.clone(), target.clone());
        self.change("ingress.unregister_target", change).await
    }

    async fn get(&self, vm: &RouteOwner) -> Result<Vec<Registration>> {
        let table = self.table("ingress.get").await?;
        Ok(table.into_values().filter(|registration| registration.route.key.vm == *vm).collect())
    }

    async fn list(&self, after: Option<&RouteKey>, limit: usize) -> Result<RegistrationPage> {
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Error::invalid("ingress.list", "limit", "A page has 1 to 1,000 routes."));
        }
        let table = self.table("ingress.list").await?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = table.range((from, Bound::Unbounded));
        let registrations: Vec<Registration> =
            behind.by_ref().take(limit).map(|(_, registration)| registration.clone()).collect();
        let next = behind.next().and(registrations.last()).map(|last| last.route.key.clone());
        Ok(RegistrationPage { registrations, next })
    }
}
