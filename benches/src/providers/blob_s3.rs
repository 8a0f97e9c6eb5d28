//! BlobStore on S3, beside object_store used by hand: one put, one get, without digest, record or condition.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use flames_blob::BlobStore;
use flames_blob_object_store::{CloudBlobStore, CloudLimits, S3Config};
use flames_clock::{SystemClock, SystemRandom};
use flames_test_servers::S3Access;
use futures::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStoreExt};

use super::blob_files::{Ours, SIZES, content};
use super::compare::{compare, operation};
use super::servers::Servers;
use super::{Findings, ProvidersArguments};

const BUCKET: &str = "flames-bench";
const REGION: &str = "us-east-1";

struct Bare {
    store: AmazonS3,
    bytes: Bytes,
}

impl Bare {
    async fn put(&self, client: usize) -> Result<()> {
        self.store.put(&path(client), self.bytes.clone().into()).await?;
        Ok(())
    }

    async fn get(&self, client: usize) -> Result<()> {
        let stream = self.store.get(&path(client)).await?.into_stream();
        let size = stream.try_fold(0, async |sum, chunk| Ok(sum + chunk.len())).await?;
        ensure!(size == self.bytes.len(), "{size} bytes came back");
        Ok(())
    }
}

fn path(client: usize) -> Path {
    Path::from(format!("bare/bench-{client}"))
}

/// object_store makes no buckets.
async fn make_bucket(access: &S3Access) -> Result<()> {
    let http = ReqwestConnector::default().connect(&ClientOptions::new().with_allow_http(true))?;
    let credential = AwsCredential {
        key_id: access.access_key.clone(),
        secret_key: access.secret_key.clone(),
        token: None,
    };
    let mut request: HttpRequest = http::Request::builder()
        .method(http::Method::PUT)
        .uri(format!("{}/{BUCKET}", access.endpoint))
        .body(HttpRequestBody::empty())?;
    AwsAuthorizer::new(&credential, "s3", REGION).try_authorize(&mut request, None)?;
    let status = http.execute(request).await?.status().as_u16();
    ensure!(matches!(status, 200 | 409), "the bucket cannot be made: {status}");
    Ok(())
}

pub(crate) async fn measure(
    arguments: &ProvidersArguments,
    servers: &Servers,
    findings: &mut Findings,
) -> Result<()> {
    let access = match servers.s3() {
        Ok(access) => access,
        Err(missing) => {
            findings.skip("blob/s3", missing);
            return Ok(());
        }
    };
    // The first one wins, and it is the only one here: another part may have been first.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    make_bucket(&access).await?;
    let config = S3Config {
        prefix: "ours".to_owned(),
        endpoint: Some(access.endpoint.clone()),
        region: REGION.to_owned(),
        access_key: Some(access.access_key.clone()),
        secret_key: Some(access.secret_key.as_str().into()),
        ..S3Config::new(BUCKET)
    };
    let store = CloudBlobStore::open_s3(
        config,
        CloudLimits::default(),
        Arc::new(SystemClock::new()),
        Arc::new(SystemRandom),
    );
    let store: Arc<dyn BlobStore> = Arc::new(store.await?);
    let by_hand = AmazonS3Builder::new()
        .with_endpoint(&access.endpoint)
        .with_allow_http(true)
        .with_region(REGION)
        .with_bucket_name(BUCKET)
        .with_access_key_id(&access.access_key)
        .with_secret_access_key(&access.secret_key)
        .build()
        .context("object_store")?;
    let mut rows = Vec::new();
    for (name, size, clients) in SIZES {
        let ours = Ours::new(Arc::clone(&store), size);
        let bare = Arc::new(Bare { store: by_hand.clone(), bytes: content(size) });
        let puts = operation(&bare, async |bare, client| bare.put(client).await.map(|()| 1));
        let gets = operation(&bare, async |bare, client| bare.get(client).await.map(|()| 1));
        let compared = compare(arguments.effort(), clients, &ours.puts(), &puts).await?;
        rows.push(compared.row(format!("put {name}, {clients} clients")));
        let compared = compare(arguments.effort(), clients, &ours.gets(), &gets).await?;
        rows.push(compared.row(format!("get {name}, {clients} clients")));
    }
    findings.section("blob/s3 beside object_store by hand (no digest, no record of the blob)", "work", rows);
    Ok(())
}
