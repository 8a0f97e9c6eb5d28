//! The API over the memory store, called as a router in the same process.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use flames_blob::{BlobKey, BlobStore, ByteStream, PutOptions};
use flames_blob_memory::MemoryBlobStore;
use flames_clock::{Clock, SystemClock, SystemRandom, UuidSource};
use flames_error::{Error, ErrorKind, Result};
use flames_model::{
    Actor, ControllerId, DriverInfo, Exit, ImageDefaults, ImageManifest, IncarnationId, IncarnationState,
    Labels, ProjectName, Report, Resources, VmName,
};
use flames_records::Records;
use flames_service::{
    Caller, HostLinks, ImageImporter, ImportProgress, Imported, NewImage, NoLinks, Service, ServiceConfig,
    ServiceParts,
};
use flames_state_memory::MemoryStore;
use flames_transport_http::{Access, HttpApi, HttpConfig, HttpMetrics};
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

/// Stores the archive as the image; refuses one that begins with `bad`.
#[derive(Debug)]
pub(crate) struct PlainImporter(pub(crate) Arc<MemoryBlobStore>);

#[async_trait]
impl ImageImporter for PlainImporter {
    async fn import(
        &self,
        new: NewImage,
        mut archive: ByteStream,
        progress: ImportProgress,
    ) -> Result<Imported> {
        progress.send("Reading the archive.".to_owned()).await.ok();
        let mut whole = Vec::new();
        while let Some(chunk) = archive.next().await {
            whole.extend_from_slice(&chunk?);
            if whole.starts_with(b"too much") {
                return Err(
                    Error::new(ErrorKind::Exhausted, "test.import", "full").with_user_message("It is full.")
                );
            }
        }
        if whole.starts_with(b"bad") {
            return Err(Error::invalid("test.import", "body", "The archive is bad."));
        }
        if whole.starts_with(b"panic") {
            panic!("the password is hunter2");
        }
        progress.send("Storing the image.".to_owned()).await.ok();
        let key = format!("image/{}", blake3::hash(&whole).to_hex());
        let size_bytes = u64::try_from(whole.len()).unwrap();
        let stream = futures::stream::iter([Ok(Bytes::from(whole))]).boxed();
        self.0.put(&BlobKey::new(key.clone())?, stream, PutOptions::default()).await?;
        let digest = "sha256:0".to_owned();
        let defaults = ImageDefaults::default();
        Ok(Imported { manifest: ImageManifest { kind: new.kind, blob: key, digest, size_bytes, defaults } })
    }
}

pub(crate) struct Harness {
    pub(crate) service: Service,
    pub(crate) api: HttpApi,
    pub(crate) router: Router,
}

pub(crate) fn project() -> ProjectName {
    ProjectName::new("default").unwrap()
}

pub(crate) fn caller() -> Caller {
    Caller { project: project(), actor: Actor::User("tester".to_owned()), request_id: "test".to_owned() }
}

impl Harness {
    pub(crate) fn new() -> Self {
        Self::with(Arc::new(NoLinks), |_| {})
    }

    pub(crate) fn with(links: Arc<dyn HostLinks>, configure: impl FnOnce(&mut HttpConfig)) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let blobs = Arc::new(MemoryBlobStore::new(clock.clone()));
        let random = Arc::new(SystemRandom);
        let ids = Arc::new(UuidSource::new(clock.clone(), random.clone()));
        let service = Service::new(ServiceParts {
            records: Records::new(Arc::new(MemoryStore::new())),
            importer: Arc::new(PlainImporter(blobs.clone())),
            blobs,
            links,
            urls: Arc::new(flames_service::NoUrls),
            clock,
            ids: ids.clone(),
            random,
            config: ServiceConfig::default(),
        });
        let mut config = HttpConfig::new(project());
        configure(&mut config);
        let metrics = HttpMetrics::new(Arc::new(Mutex::default()));
        let api = HttpApi::new(service.clone(), ids, config, metrics);
        let router = api.router(Access::Trusted { actor: "tester".to_owned() });
        Self { service, api, router }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<&str>) -> Reply {
        self.call_with(method, path, body, &[]).await
    }

    pub(crate) async fn call_with(
        &self,
        method: &str,
        path: &str,
        body: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Reply {
        let mut request = Request::builder().method(method.parse::<Method>().unwrap()).uri(path);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map_or(Body::empty(), |text| Body::from(text.to_owned()));
        Reply::of(self.send(request.body(body).unwrap()).await).await
    }

    pub(crate) async fn import(&self, name: &str, kind: &str, content: &'static [u8]) -> Reply {
        let path = format!("/v1/images?name={name}&kind={kind}");
        let request = Request::post(path).header("content-type", "application/octet-stream");
        Reply::of(self.send(request.body(Body::from(content)).unwrap()).await).await
    }

    /// A VM of the image `debian`, which is imported first.
    pub(crate) async fn create(&self, name: &str) -> Value {
        if self.call("GET", "/v1/images/debian", None).await.status != StatusCode::OK {
            assert_eq!(self.import("debian", "rootfs", b"bytes").await.status, StatusCode::CREATED);
        }
        let body = format!(r#"{{"name":"{name}","spec":{{"image":"debian"}}}}"#);
        let reply = self.call("POST", "/v1/vms", Some(&body)).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
        reply.json
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) text: String,
    pub(crate) json: Value,
}

impl Reply {
    pub(crate) async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        let headers = parts
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap_or_default().to_owned()));
        Self { status: parts.status, headers: headers.collect(), text, json }
    }

    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status.as_u16(), self.json["code"].as_str()), (status, Some(code)), "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.json["status"], status);
        assert_eq!(self.json["type"], format!("/docs/errors/{code}"));
        assert_eq!(self.json["request_id"].as_str(), Some(self.headers["x-request-id"].as_str()));
        self
    }

    #[track_caller]
    pub(crate) fn field(&self, field: &str) -> &Self {
        assert_eq!(self.json["field"].as_str(), Some(field), "{self:?}");
        self
    }
}

/// A controller with room, as the service knows it.
pub(crate) async fn register(service: &Service) -> (ControllerId, flames_service::HostSession) {
    let id = ControllerId::from_uuid(uuid::Uuid::from_u128(7));
    let registered = service
        .register_controller(flames_service::Register {
            id,
            name: VmName::new("host-1").unwrap(),
            capacity: Resources { vcpus: 8, memory_mib: 8_192, disk_mib: 100_000, vms: 8 },
            labels: Labels::default(),
            driver: DriverInfo {
                name: "simulated".to_owned(),
                version: None,
                acceleration: "none".to_owned(),
                pause: true,
                snapshot: true,
                diff_snapshot: true,
                cpu: flames_model::CpuFacts {
                    vendor: "v".to_owned(),
                    model: "m".to_owned(),
                    features: "f".to_owned(),
                },
                default_kernel: None,
                network: Default::default(),
                live_network: false,
            },
            address_block: None,
        })
        .await
        .unwrap();
    (id, registered.session)
}

/// Places a VM on a controller as reconciliation does, and reports that it runs.
pub(crate) async fn place_and_run(service: &Service, vm: &str) -> IncarnationId {
    let (controller, session) = register(service).await;
    let records = service.records();
    let id = vm.parse().unwrap();
    let entry = records.vm(&project(), id).await.unwrap().unwrap();
    let allocation = records.allocation(controller).await.unwrap().unwrap();
    let host = records.controller(controller).await.unwrap().unwrap();
    let now = service.clock().now();
    let incarnation_id = IncarnationId::from_uuid(uuid::Uuid::from_u128(99));
    let incarnation = flames_model::Incarnation {
        id: incarnation_id,
        project: project(),
        vm: id,
        run: entry.vm.run,
        controller,
        resources: entry.vm.spec.resources(),
        address: None,
        token: flames_model::FencingToken(1),
        source: flames_model::Source::Boot,
        state: IncarnationState::Scheduled,
        state_before_loss: None,
        sequence: 0,
        reason: None,
        exit: None,
        endpoints: Vec::new(),
        network: Default::default(),
        timeline: BTreeMap::from([(IncarnationState::Scheduled, now)]),
        created_at: now,
        released_at: None,
        purged_at: None,
    };
    let placed = flames_model::Vm {
        incarnation: Some(incarnation_id),
        placements: 1,
        ..flames_model::Vm::clone(&entry.vm)
    };
    let mut change = flames_records::Change::new();
    change.update_vm(&entry.vm, &placed).insert_incarnation(&incarnation).require_controller(&host);
    change.update_allocation(
        &allocation,
        &flames_model::ControllerAllocation {
            reserved: allocation.reserved + incarnation.resources,
            ..flames_model::ControllerAllocation::clone(&allocation)
        },
    );
    records.apply(change).await.unwrap();
    let outcome =
        service.report(&session, &report(&incarnation, IncarnationState::Running, None)).await.unwrap();
    assert_eq!(outcome, flames_service::ReportOutcome::Taken);
    incarnation_id
}

/// Reports that the machine of a VM that `place_and_run` placed failed.
pub(crate) async fn fail(service: &Service, vm: &str) {
    let (_, session) = register(service).await;
    let entry = service.records().vm(&project(), vm.parse().unwrap()).await.unwrap().unwrap();
    let failed = report(&entry.incarnation.unwrap(), IncarnationState::Failed, None);
    let outcome = service.report(&session, &failed).await.unwrap();
    assert_eq!(outcome, flames_service::ReportOutcome::Taken);
}

pub(crate) fn report(
    incarnation: &flames_model::Incarnation,
    state: IncarnationState,
    exit: Option<Exit>,
) -> Report {
    Report {
        incarnation: incarnation.id,
        vm: incarnation.vm,
        project: incarnation.project.clone(),
        token: incarnation.token,
        sequence: incarnation.sequence + 1,
        state,
        reason: None,
        exit,
        endpoints: Vec::new(),
        network: Default::default(),
        timeline: BTreeMap::new(),
        released: false,
        purged: false,
    }
}
