//! TLS from files, read again when they change.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use flames_error::{Error, ErrorKind, Result};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::config::CertificateFiles;

/// Which certificate is shown for which server name.
#[derive(Debug, Default)]
struct Shown {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// By what stands behind `*.`.
    by_parent: HashMap<String, Arc<CertifiedKey>>,
    otherwise: Option<Arc<CertifiedKey>>,
}

impl Shown {
    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let named = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let exact = self.by_name.get(&name);
            exact.or_else(|| self.by_parent.get(name.split_once('.')?.1)).cloned()
        });
        named.or_else(|| self.otherwise.clone())
    }
}

/// The certificates in use: for the proxy's listeners, and for another listener of the same process that shows some.
pub struct Certificates {
    files: Vec<CertificateFiles>,
    shown: Arc<ArcSwap<Shown>>,
    stamps: Mutex<Vec<Stamp>>,
}

type Stamp = Option<(SystemTime, u64)>;

#[derive(Debug)]
struct Resolver(Arc<ArcSwap<Shown>>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().find(hello.server_name())
    }
}

impl Certificates {
    /// Reads all files. `InvalidInput` names the first that cannot be used.
    pub fn read(files: Vec<CertificateFiles>) -> Result<Self> {
        let stamps = Mutex::new(stamps(&files));
        let shown = Arc::new(ArcSwap::from_pointee(load(&files)?));
        Ok(Self { files, shown, stamps })
    }

    /// What a listener needs. HTTP/2 is offered before HTTP/1.1. `Internal` when TLS cannot be set up.
    pub fn server_config(&self) -> Result<ServerConfig> {
        let broken = |error| Error::internal("ingress.start", "TLS cannot be set up").with_source(error);
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver(Arc::clone(&self.shown))));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Reads the files again. When one cannot be used, all that are in use stay.
    pub(crate) fn reload(&self) -> Result<()> {
        let seen = stamps(&self.files);
        let loaded = load(&self.files)?;
        self.shown.store(Arc::new(loaded));
        *self.stamps.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        Ok(())
    }

    /// Reads them again when one has changed; when one cannot be used, all that are in use stay. Blocks while it reads.
    pub fn reload_if_changed(&self) {
        let seen = stamps(&self.files);
        if *self.stamps.lock().unwrap_or_else(PoisonError::into_inner) == seen {
            return;
        }
        match self.reload() {
            Ok(()) => tracing::info!("certificates were read again"),
            // Perhaps the other half of a pair is still to come.
            Err(error) => {
                tracing::warn!(error = ?error, "changed certificates cannot be used; the old ones stay")
            }
        }
    }
}

fn stamps(files: &[CertificateFiles]) -> Vec<Stamp> {
    let stamp = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.iter().flat_map(|files| [stamp(&files.certificate), stamp(&files.key)]).collect()
}

fn load(files: &[CertificateFiles]) -> Result<Shown> {
    let mut shown = Shown::default();
    for files in files {
        let key = Arc::new(load_one(files)?);
        if files.hosts.is_empty() {
            shown.otherwise.get_or_insert_with(|| Arc::clone(&key));
        }
        for host in &files.hosts {
            match host.strip_prefix("*.") {
                Some(parent) => shown.by_parent.insert(parent.to_owned(), Arc::clone(&key)),
                None => shown.by_name.insert(host.clone(), Arc::clone(&key)),
            };
        }
    }
    Ok(shown)
}

fn load_one(files: &CertificateFiles) -> Result<CertifiedKey> {
    let refuse = |path: &Path, what: &str| {
        Error::new(ErrorKind::InvalidInput, "ingress.certificates", what)
            .with_field("tls")
            .with_context("file", path.display())
            .with_user_message(format!("{}: {what}", path.display()))
    };
    let unusable = "it holds no certificate in PEM that can be read";
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| refuse(&files.certificate, unusable).with_source(error))?;
    if chain.is_empty() {
        return Err(refuse(&files.certificate, unusable));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| {
        refuse(&files.key, "it holds no private key in PEM that can be read").with_source(error)
    })?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error: rustls::Error| {
        refuse(&files.key, "its key is not the one of the certificate").with_source(error)
    })
}
