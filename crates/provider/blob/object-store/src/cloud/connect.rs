//! Making a client of each cloud.

use std::sync::Arc;
use std::time::Duration;

use flames_error::{Error, Result};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::calls::Objects;
use super::config::{self, CloudLimits};
use super::failures::Place;
use super::uploads::Uploads;

const OPERATION: &str = "blob.open";

/// A cloud that can be asked.
pub(super) struct Connected {
    pub(super) objects: Arc<dyn Objects>,
    pub(super) place: Place,
    pub(super) root: String,
    pub(super) uploads: Uploads,
}

/// TLS needs a cryptography provider for the process. Ours is ring, unless the program chose one already.
fn provide_cryptography() {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
}

/// Deadlines and tries are ours (`calls`), by the injected clock: the client library makes one try and waits.
fn options(limits: &CloudLimits, allow_http: bool) -> (ClientOptions, RetryConfig) {
    provide_cryptography();
    let client = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(limits.connect)
        .with_allow_http(allow_http);
    let retry =
        RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, backoff: BackoffConfig::default() };
    (client, retry)
}

fn is_plain(endpoint: Option<&str>) -> bool {
    endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"))
}

fn wrong_config(provider: &'static str) -> impl FnOnce(object_store::Error) -> Error {
    move |error| {
        Error::invalid(OPERATION, provider, format!("{provider}: the settings do not fit together."))
            .with_source(error)
    }
}

#[cfg(feature = "s3")]
pub(super) fn s3(config: super::S3Config, limits: &CloudLimits) -> Result<Connected> {
    use super::uploads::{Server, Signer};
    use object_store::aws::AmazonS3Builder;
    use object_store::client::{HttpConnector, ReqwestConnector};

    config::given("bucket", &config.bucket)?;
    config::given("region", &config.region)?;
    config::check_endpoint(config.endpoint.as_deref())?;
    if config.access_key.is_some() != config.secret_key.is_some() {
        return Err(Error::invalid(
            OPERATION,
            "secret_key",
            "s3: `access_key` and `secret_key` go together: give both or none.",
        ));
    }
    let (client, retry) = options(limits, is_plain(config.endpoint.as_deref()));
    let http = ReqwestConnector::default().connect(&client).map_err(wrong_config("s3"))?;
    let endpoint = config
        .endpoint
        .as_deref()
        .map(|endpoint| endpoint.trim_end_matches('/').to_owned())
        .unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", config.region));
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&config.bucket)
        .with_region(&config.region)
        .with_virtual_hosted_style_request(config.virtual_hosted)
        .with_client_options(client)
        .with_retry(retry);
    if config.endpoint.is_some() {
        builder = builder.with_endpoint(&endpoint);
    }
    if let (Some(access), Some(secret)) = (&config.access_key, &config.secret_key) {
        builder = builder.with_access_key_id(access).with_secret_access_key(secret.expose());
    }
    if let Some(token) = &config.session_token {
        builder = builder.with_token(token.expose());
    }
    let objects = builder.build().map_err(wrong_config("s3"))?;
    let bucket_url = match (config.virtual_hosted, &config.endpoint) {
        (true, Some(_)) => endpoint.clone(),
        (true, None) => format!("https://{}.s3.{}.amazonaws.com", config.bucket, config.region),
        (false, _) => format!("{endpoint}/{}", config.bucket),
    };
    let signer = Signer::S3 { credentials: Arc::clone(objects.credentials()), region: config.region };
    Ok(Connected {
        root: config::root(&config.prefix)?,
        objects: Arc::new(objects),
        place: Place {
            provider: "s3",
            bucket: config.bucket,
            bucket_setting: "bucket",
            endpoint,
            credential_settings: "`access_key` and `secret_key`",
        },
        uploads: Uploads::Listed(Server { http, bucket_url, signer }),
    })
}

#[cfg(feature = "gcs")]
pub(super) fn gcs(config: super::GcsConfig, limits: &CloudLimits) -> Result<Connected> {
    use super::uploads::{Server, Signer};
    use object_store::client::{HttpConnector, ReqwestConnector};
    use object_store::gcp::GoogleCloudStorageBuilder;

    config::given("bucket", &config.bucket)?;
    config::check_endpoint(config.endpoint.as_deref())?;
    let (client, retry) = options(limits, is_plain(config.endpoint.as_deref()));
    let http = ReqwestConnector::default().connect(&client).map_err(wrong_config("gcs"))?;
    let endpoint = config
        .endpoint
        .as_deref()
        .map_or("https://storage.googleapis.com", |endpoint| endpoint.trim_end_matches('/'))
        .to_owned();
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&config.bucket)
        .with_client_options(client)
        .with_retry(retry);
    if config.endpoint.is_some() {
        builder = builder.with_base_url(&endpoint);
    }
    if let Some(key) = &config.service_account_key {
        builder = builder.with_service_account_key(key.expose());
    }
    let objects = builder.build().map_err(wrong_config("gcs"))?;
    let bucket_url = format!("{endpoint}/{}", config.bucket);
    let signer = Signer::Gcs { credentials: Arc::clone(objects.credentials()) };
    Ok(Connected {
        root: config::root(&config.prefix)?,
        objects: Arc::new(objects),
        place: Place {
            provider: "gcs",
            bucket: config.bucket,
            bucket_setting: "bucket",
            endpoint,
            credential_settings: "`service_account_key`",
        },
        uploads: Uploads::Listed(Server { http, bucket_url, signer }),
    })
}

#[cfg(feature = "azure")]
pub(super) fn azure(config: super::AzureConfig, limits: &CloudLimits) -> Result<Connected> {
    use object_store::azure::MicrosoftAzureBuilder;

    config::given("account", &config.account)?;
    config::given("container", &config.container)?;
    config::check_endpoint(config.endpoint.as_deref())?;
    let (client, retry) = options(limits, is_plain(config.endpoint.as_deref()));
    let endpoint = config
        .endpoint
        .as_deref()
        .map(|endpoint| endpoint.trim_end_matches('/').to_owned())
        .unwrap_or_else(|| format!("https://{}.blob.core.windows.net", config.account));
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account(&config.account)
        .with_container_name(&config.container)
        .with_client_options(client)
        .with_retry(retry);
    if config.endpoint.is_some() {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(key) = &config.access_key {
        builder = builder.with_access_key(key.expose());
    }
    Ok(Connected {
        root: config::root(&config.prefix)?,
        objects: Arc::new(builder.build().map_err(wrong_config("azure"))?),
        place: Place {
            provider: "azure",
            bucket: config.container,
            bucket_setting: "container",
            endpoint,
            credential_settings: "`account` and `access_key`",
        },
        uploads: Uploads::GoByThemselves,
    })
}
