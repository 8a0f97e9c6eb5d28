//! TLS towards the API: whom to trust.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use flames_error::{Error, ErrorKind, Result};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// The authorities whose certificates are taken.
#[derive(Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

impl Trust {
    /// The authorities whose certificates stand in a file of PEM, and no others. Blocks while it reads.
    ///
    /// Errors: `InvalidInput` when it cannot be read or holds no certificate that can be one of an authority.
    pub fn of_file(path: &Path) -> Result<Self> {
        const OPERATION: &str = "client.trust";
        let refuse = |what: &str| {
            Error::new(ErrorKind::InvalidInput, OPERATION, what)
                .with_context("file", path.display())
                .with_user_message(format!("{}: {what}.", path.display()))
        };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
            .map_err(|error| refuse("it holds no certificates in PEM that can be read").with_source(error))?;
        let mut roots = RootCertStore::empty();
        let (taken, _) = roots.add_parsable_certificates(certificates);
        if taken == 0 {
            return Err(refuse("it holds no certificate of an authority"));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::internal(OPERATION, "TLS cannot be set up").with_source(error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config: Arc::new(config) })
    }
}

/// An address with what is expected there.
pub(crate) struct TlsAddress {
    pub(crate) address: String,
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl fmt::Debug for TlsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsAddress").field("address", &self.address).finish_non_exhaustive()
    }
}

impl TlsAddress {
    pub(crate) fn new(address: &str, name: &str, trust: &Trust) -> Option<Self> {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned()).ok()?;
        let connector = TlsConnector::from(Arc::clone(&trust.config));
        Some(Self { address: address.to_owned(), name, connector })
    }

    /// The caller sets a limit to it.
    pub(crate) async fn dial(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        self.connector.connect(self.name.clone(), stream).await
    }
}

/// Why a server did not prove itself, when that is what went wrong.
pub(crate) fn untrusted(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(error.to_string());
        }
        // An error of I/O shows what it wraps only here.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}
