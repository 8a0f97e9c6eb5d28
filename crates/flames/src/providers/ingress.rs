//! The ingress that is chosen.

use std::sync::Arc;
#[cfg(feature = "proxy")]
use std::time::Duration;

use flames_ingress::{Dial, IngressProvider};
#[cfg(feature = "caddy")]
use flames_ingress_caddy::{CaddyConfig, CaddyIngress};
use flames_ingress_noop::NoopIngress;
#[cfg(feature = "proxy")]
use flames_ingress_proxy::{CertificateFiles, Hooks, Listener, Network, Proxy, ProxyConfig};

use crate::config::{Problem, Section, Settings};

const SECTION: Section = Section::Ingress;
/// How long requests may run on when the proxy ends.
#[cfg(feature = "proxy")]
const DRAIN: Duration = Duration::from_secs(10);

/// Who wakes VMs that a request is for: only a proxy in this process asks.
#[cfg(feature = "proxy")]
pub(crate) type Wake = Arc<dyn flames_ingress_proxy::WakeTarget>;
#[cfg(not(feature = "proxy"))]
pub(crate) type Wake = std::convert::Infallible;

/// What is to be started.
#[derive(Debug, Clone)]
pub(crate) enum IngressPlan {
    Noop,
    #[cfg(feature = "proxy")]
    Proxy(Box<ProxyConfig>),
    #[cfg(feature = "caddy")]
    Caddy(Box<CaddyConfig>),
}

/// The ingress, started.
#[derive(Debug, Clone)]
pub(crate) struct Ingress {
    /// The table of routes.
    pub(crate) provider: Arc<dyn IngressProvider>,
    /// The proxy, when it is in this process: it has listeners, and an end.
    #[cfg(feature = "proxy")]
    pub(crate) proxy: Option<Arc<Proxy>>,
}

impl IngressPlan {
    pub(super) fn of(settings: &Settings) -> Result<Self, Problem> {
        match settings.backend(SECTION) {
            "proxy" => proxy(settings),
            "caddy" => caddy(settings),
            _ => Ok(Self::Noop),
        }
    }

    /// Starts it. `dial` reaches guests' ports; without it only addresses can be targets. `wake` wakes VMs that rest; without it nobody does.
    pub(crate) async fn start(
        self,
        dial: Option<Arc<dyn Dial>>,
        wake: Option<Wake>,
    ) -> Result<Ingress, Problem> {
        let _ = (&dial, &wake);
        match self {
            Self::Noop => Ok(Ingress::plain(Arc::new(NoopIngress::new()))),
            #[cfg(feature = "proxy")]
            Self::Proxy(config) => {
                let hooks = Hooks { dial, wake, ..Hooks::default() };
                let proxy = Proxy::start(*config, hooks).await;
                let proxy =
                    Arc::new(proxy.map_err(|error| Problem::of_error(SECTION, "proxy", "listen", &error))?);
                Ok(Ingress { provider: proxy.clone(), proxy: Some(proxy) })
            }
            #[cfg(feature = "caddy")]
            Self::Caddy(config) => {
                let problem = |error| Problem::of_error(SECTION, "caddy", "admin", &error);
                let caddy = CaddyIngress::new(*config).map_err(problem)?;
                caddy.check().await.map_err(problem)?;
                Ok(Ingress::plain(Arc::new(caddy)))
            }
        }
    }
}

impl Ingress {
    fn plain(provider: Arc<dyn IngressProvider>) -> Self {
        Self {
            provider,
            #[cfg(feature = "proxy")]
            proxy: None,
        }
    }

    /// Where it listens, when it is in this process.
    pub(crate) fn address(&self) -> Option<std::net::SocketAddr> {
        #[cfg(feature = "proxy")]
        return self.proxy.as_ref().and_then(|proxy| proxy.addresses().first().copied());
        #[cfg(not(feature = "proxy"))]
        None
    }

    /// Ends it in order: no new connections, and what is under way may end.
    pub(crate) async fn close(&self) {
        #[cfg(feature = "proxy")]
        if let Some(proxy) = &self.proxy {
            let cut = proxy.shutdown(DRAIN).await;
            if cut > 0 {
                tracing::warn!(cut, "connections to guests were cut");
            }
        }
    }
}

#[cfg(any(feature = "proxy", feature = "caddy"))]
fn public_port(settings: &Settings) -> Result<Option<u16>, Problem> {
    let Some(port) = settings.number("ingress.public_port") else { return Ok(None) };
    u16::try_from(port).ok().filter(|port| *port > 0).map(Some).ok_or_else(|| {
        let sentence = "a port is 1 to 65535: correct it.";
        Problem::new(SECTION, "ingress.public_port", sentence).of_backend(settings.backend(SECTION))
    })
}

#[cfg(feature = "proxy")]
fn proxy(settings: &Settings) -> Result<IngressPlan, Problem> {
    let refuse =
        |setting: &str, sentence: String| Problem::new(SECTION, setting, sentence).of_backend("proxy");
    let mut listeners = Vec::new();
    for (setting, tls) in [("ingress.listen", false), ("ingress.listen_tls", true)] {
        for text in settings.list(setting) {
            let address = text.parse().map_err(|_| {
                refuse(setting, format!("`{text}` is no address: write 127.0.0.1:7080 or [::]:443."))
            })?;
            listeners.push(Listener { address, tls });
        }
    }
    if listeners.iter().any(|listener| listener.tls) && settings.list("ingress.certificates").is_empty() {
        return Err(refuse(
            "ingress.certificates",
            "`listen_tls` needs a certificate: name its files, CERTIFICATE:KEY.".to_owned(),
        ));
    }
    let mut tls = Vec::new();
    for text in settings.list("ingress.certificates") {
        let mut parts = text.split(':').map(str::to_owned);
        let (Some(certificate), Some(key)) = (parts.next(), parts.next()) else {
            return Err(refuse(
                "ingress.certificates",
                format!("`{text}` is not CERTIFICATE:KEY or CERTIFICATE:KEY:HOST:HOST…."),
            ));
        };
        tls.push(CertificateFiles {
            hosts: parts.collect(),
            certificate: certificate.into(),
            key: key.into(),
        });
    }
    let mut trusted_proxies = Vec::new();
    for text in settings.list("ingress.trusted_proxies") {
        let network: Network = text.parse().map_err(|_| {
            refuse(
                "ingress.trusted_proxies",
                format!("`{text}` is no block of addresses: write 10.0.0.0/8 or ::1."),
            )
        })?;
        trusted_proxies.push(network);
    }
    let Some(first) = listeners.first() else {
        return Err(refuse(
            "ingress.listen",
            "the proxy listens nowhere: give an address and port.".to_owned(),
        ));
    };
    let domain = settings.required(SECTION, "ingress.domain")?;
    let config = ProxyConfig {
        public_port: public_port(settings)?,
        public_tls: settings.switch("ingress.public_tls"),
        tls,
        trusted_proxies,
        ..ProxyConfig::new(first.address, domain)
    };
    Ok(IngressPlan::Proxy(Box::new(ProxyConfig { listeners, ..config })))
}

#[cfg(not(feature = "proxy"))]
fn proxy(settings: &Settings) -> Result<IngressPlan, Problem> {
    Err(super::lacks(SECTION, settings, "proxy"))
}

#[cfg(feature = "caddy")]
fn caddy(settings: &Settings) -> Result<IngressPlan, Problem> {
    let admin = settings.required(SECTION, "ingress.admin")?;
    let admin = admin.parse().map_err(|error| Problem::of_error(SECTION, "caddy", "admin", &error))?;
    let text = |path: &str| settings.required(SECTION, path).map(str::to_owned);
    let config = CaddyConfig {
        cluster: text("ingress.cluster")?,
        server: text("ingress.server")?,
        listen: settings.list("ingress.listen"),
        automatic_https: settings.switch("ingress.automatic_https").unwrap_or(false),
        public_tls: settings.switch("ingress.public_tls").unwrap_or(false),
        public_port: public_port(settings)?,
        deadline: settings.duration("ingress.deadline"),
        ..CaddyConfig::new(admin, text("ingress.domain")?, "")
    };
    Ok(IngressPlan::Caddy(Box::new(config)))
}

#[cfg(not(feature = "caddy"))]
fn caddy(settings: &Settings) -> Result<IngressPlan, Problem> {
    Err(super::lacks(SECTION, settings, "caddy"))
}
