//! An S3 server as tests use it.

// Each test target uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use flames_blob_object_store::{CloudBlobStore, CloudLimits, S3Config};
use flames_clock::{RandomExt, SystemClock, SystemRandom};
use flames_error::Result;
use flames_test_servers::S3Access;
use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};

/// The bucket that all tests share, each under a prefix of its own.
pub(crate) const BUCKET: &str = "flames-blob";
const REGION: &str = "us-east-1";

/// Sends a signed request without a body; answers its status.
pub(crate) async fn ask(access: &S3Access, method: http::Method, path: &str) -> u16 {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let http = ReqwestConnector::default().connect(&ClientOptions::new().with_allow_http(true)).unwrap();
    let credential = AwsCredential {
        key_id: access.access_key.clone(),
        secret_key: access.secret_key.clone(),
        token: None,
    };
    let mut request: HttpRequest = http::Request::builder()
        .method(method)
        .uri(format!("{}/{path}", access.endpoint))
        .body(HttpRequestBody::empty())
        .unwrap();
    AwsAuthorizer::new(&credential, "s3", REGION).try_authorize(&mut request, None).unwrap();
    http.execute(request).await.unwrap().status().as_u16()
}

/// Makes the shared bucket, unless it is there.
pub(crate) async fn make_bucket(access: &S3Access) {
    let status = ask(access, http::Method::PUT, BUCKET).await;
    assert!(matches!(status, 200 | 409), "the bucket cannot be made: {status}");
}

/// A place in the shared bucket that nobody else has.
pub(crate) fn config(access: &S3Access) -> S3Config {
    let unique: String = SystemRandom.bytes::<8>().iter().map(|byte| format!("{byte:02x}")).collect();
    S3Config {
        prefix: format!("test/{unique}"),
        endpoint: Some(access.endpoint.clone()),
        access_key: Some(access.access_key.clone()),
        secret_key: Some(access.secret_key.as_str().into()),
        ..S3Config::new(BUCKET)
    }
}

/// For a server that fails, and tests that wait for it.
pub(crate) fn impatient() -> CloudLimits {
    CloudLimits {
        connect: Duration::from_millis(800),
        call: Duration::from_secs(1),
        stall: Duration::from_millis(700),
        attempts: 2,
        first_pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(100),
        ..CloudLimits::default()
    }
}

pub(crate) async fn open(config: &S3Config, limits: CloudLimits) -> Result<Arc<CloudBlobStore>> {
    let (clock, random) = (Arc::new(SystemClock::new()), Arc::new(SystemRandom));
    CloudBlobStore::open_s3(config.clone(), limits, clock, random).await.map(Arc::new)
}
