//! The host API as a controller meets it, through its client.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flames_blob::{BlobKey, BlobStoreExt, PutOptions};
use flames_blob_memory::MemoryBlobStore;
use flames_client::wire::host::{
    Assignment, ControllerId, DriverInfo, HostSession, IncarnationId, Labels, RegisterRequest, Report,
    ReportBatch, ReportOutcome, Resources, SessionToken, VmName,
};
use flames_client::{Client, ClientConfig, HostApi, HostClient, HostCredentials};
use flames_clock::{Clock, SystemClock, SystemRandom, UuidSource};
use flames_error::{Error, ErrorKind};
use flames_model::{
    FencingToken, ImageDefaults, ImageKind, ImageManifest, ImageName, IncarnationState, ProjectName, Reason,
    ReasonCode, SecretString, SnapshotManifest, Source, VmId, Wanted,
};
use flames_records::{Change, Records};
use flames_service::{
    Caller, ImageImporter, ImportProgress, Imported, Mutation, NoLinks, Service, ServiceConfig, ServiceParts,
};
use flames_state_memory::MemoryStore;
use flames_transport_host::{Admission, HostConfig, clean_report, router};
use http_body_util::{BodyExt, Full};
use uuid::Uuid;

#[derive(Debug)]
struct NoImages;

#[async_trait]
impl ImageImporter for NoImages {
    async fn import(
        &self,
        _: flames_service::NewImage,
        _: flames_blob::ByteStream,
        _: ImportProgress,
    ) -> flames_error::Result<Imported> {
        Err(Error::unavailable("test.import", "no images here"))
    }
}

fn service() -> Service {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let random = Arc::new(SystemRandom);
    Service::new(ServiceParts {
        records: Records::new(Arc::new(MemoryStore::new())),
        blobs: Arc::new(MemoryBlobStore::new(clock.clone())),
        importer: Arc::new(NoImages),
        links: Arc::new(NoLinks),
        urls: Arc::new(flames_service::NoUrls),
        ids: Arc::new(UuidSource::new(clock.clone(), random.clone())),
        clock,
        random,
        config: ServiceConfig::default(),
    })
}

fn host_of(service: &Service, config: HostConfig, token: Option<&str>) -> HostClient {
    let client = ClientConfig { token: token.map(str::to_owned), ..ClientConfig::default() };
    HostClient::new(Client::over(router(service.clone(), config), client))
}

fn network() -> HostConfig {
    let admission = Admission::Network { join_token: Some("join".to_owned()) };
    HostConfig { admission, ..HostConfig::default() }
}

/// A controller on another machine, whose secret is one digit 64 times.
fn networked(service: &Service, secret: char, token: Option<&str>) -> HostClient {
    let secret = secret.to_string().repeat(64);
    let credentials = HostCredentials { secret, join_token: token.map(str::to_owned) };
    host_of(service, network(), None).with_credentials(credentials)
}

fn caller() -> Caller {
    Caller::system(ProjectName::new("default").unwrap(), "test")
}

fn host(service: &Service) -> HostClient {
    host_of(service, HostConfig::default(), None)
}

fn controller(number: u128) -> ControllerId {
    ControllerId::from_uuid(Uuid::from_u128(number))
}

fn request(number: u128, name: &str) -> RegisterRequest {
    RegisterRequest {
        id: controller(number),
        name: VmName::new(name).unwrap(),
        capacity: Resources { vcpus: 4, memory_mib: 4_096, disk_mib: 10_000, vms: 4 },
        labels: Labels::default(),
        driver: DriverInfo {
            name: "simulated".to_owned(),
            version: None,
            acceleration: "none".to_owned(),
            pause: true,
            snapshot: true,
            diff_snapshot: false,
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
    }
}

fn manifest() -> ImageManifest {
    ImageManifest {
        kind: ImageKind::Rootfs,
        blob: "image/x".to_owned(),
        digest: "sha256:0".to_owned(),
        size_bytes: 1,
        defaults: ImageDefaults::default(),
    }
}

fn assignment(number: u128, to: ControllerId) -> Assignment {
    let create = flames_client::wire::CreateVm::new("debian");
    let (_, _, mut spec) = create.into_model().unwrap();
    spec.image = ImageName::new("debian").unwrap();
    spec.secret_env.insert("TOKEN".to_owned(), SecretString::new("hunter2"));
    Assignment {
        incarnation: IncarnationId::from_uuid(Uuid::from_u128(number)),
        vm: VmId::from_uuid(Uuid::from_u128(number)),
        project: ProjectName::new("default").unwrap(),
        name: VmName::new("web").unwrap(),
        controller: to,
        token: FencingToken(1),
        wanted: Wanted::Running,
        address: None,
        spec: spec.into(),
        network_revision: 0,
        source: Source::Boot,
        image: manifest(),
        kernel: None,
        restore: None,
        snapshot: None,
        snapshot_base: None,
    }
}

async fn assign(service: &Service, assignment: &Assignment) {
    let mut change = Change::new();
    change.insert_assignment(assignment);
    service.records().apply(change).await.unwrap();
}

fn report(incarnation: u128) -> Report {
    Report {
        incarnation: IncarnationId::from_uuid(Uuid::from_u128(incarnation)),
        vm: VmId::from_uuid(Uuid::from_u128(incarnation)),
        project: ProjectName::new("default").unwrap(),
        token: FencingToken(1),
        sequence: 1,
        state: IncarnationState::Running,
        reason: None,
        exit: None,
        endpoints: Vec::new(),
        network: Default::default(),
        timeline: BTreeMap::new(),
        released: false,
        purged: false,
    }
}

#[tokio::test]
async fn a_controller_registers_renews_and_registers_again_which_ends_its_older_session() {
    let service = service();
    let host = host(&service);
    let first = host.register(&request(1, "host-1")).await.unwrap();
    assert_eq!(first.lease_ms, 15_000);
    host.renew(&first.session).await.unwrap();
    let second = host.register(&request(1, "host-1")).await.unwrap();
    host.renew(&second.session).await.unwrap();
    let error = host.renew(&first.session).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::LeaseLost, Some("CONTROLLER_SUPERSEDED")));
    let error = host.assignments(&first.session, None, 10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    let error = host.changes(&first.session, &first.changes_from, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    let batch = ReportBatch { reports: vec![report(1)] };
    assert_eq!(host.report(&first.session, &batch).await.unwrap_err().kind(), ErrorKind::LeaseLost);
}

#[tokio::test]
async fn a_name_belongs_to_one_controller() {
    let service = service();
    let host = host(&service);
    host.register(&request(1, "host-1")).await.unwrap();
    let error = host.register(&request(2, "host-1")).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::AlreadyExists, Some("CONTROLLER_NAME_TAKEN")));
}

#[tokio::test]
async fn a_session_that_nobody_was_given_reads_nothing() {
    let service = service();
    let host = host(&service);
    host.register(&request(1, "host-1")).await.unwrap();
    assign(&service, &assignment(9, controller(1))).await;
    let guessed =
        HostSession { controller: controller(1), session: SessionToken::from_uuid(Uuid::from_u128(5)) };
    assert!(host.assignments(&guessed, None, 10).await.is_err());
}

#[tokio::test]
async fn assignments_are_read_in_pages_with_their_secrets_and_only_by_their_own_controller() {
    let service = service();
    let host = host(&service);
    let mine = host.register(&request(1, "host-1")).await.unwrap().session;
    let others = host.register(&request(2, "host-2")).await.unwrap().session;
    for number in 1..=3 {
        assign(&service, &assignment(number, controller(1))).await;
    }
    let first = host.assignments(&mine, None, 2).await.unwrap();
    assert_eq!(first.items[0], assignment(1, controller(1)));
    assert_eq!(first.items[0].spec.secret_env["TOKEN"].expose(), "hunter2");
    let rest = host.assignments(&mine, first.next, 2).await.unwrap();
    assert_eq!((first.items.len(), rest.items.len(), rest.next), (2, 1, None));
    assert!(host.assignments(&others, None, 10).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_change_is_told_at_once_and_a_silence_ends_with_the_wait() {
    let service = service();
    let host = host(&service);
    let registered = host.register(&request(1, "host-1")).await.unwrap();
    let wait = Duration::from_secs(20);
    let waiting = host.changes(&registered.session, &registered.changes_from, wait);
    let assigning = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assign(&service, &assignment(4, controller(1))).await;
    };
    let (changes, ()) = tokio::join!(waiting, assigning);
    let changes = changes.unwrap();
    assert_eq!(changes.changed[0].assignment, Some(Arc::new(assignment(4, controller(1)))));
    let silence = host.changes(&registered.session, &changes.next, Duration::from_millis(30)).await.unwrap();
    assert_eq!((silence.changed.len(), &silence.next), (0, &changes.next));
    let error = host.changes(&registered.session, "not a place", Duration::ZERO).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("after")));
}

#[tokio::test]
async fn a_batch_of_reports_gets_one_outcome_for_each_and_one_too_many_is_refused() {
    let service = service();
    let host = host(&service);
    let session = host.register(&request(1, "host-1")).await.unwrap().session;
    let batch = ReportBatch { reports: vec![report(1), report(2)] };
    assert_eq!(host.report(&session, &batch).await.unwrap(), [ReportOutcome::Unknown; 2]);
    let batch = ReportBatch { reports: (0..257).map(report).collect() };
    let error = host.report(&session, &batch).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("reports")));
}

#[tokio::test]
async fn registering_takes_the_join_token_where_there_is_one() {
    let service = service();
    let made = service.create_join_token(&caller(), Duration::from_secs(60)).await.unwrap();
    for (token, admitted) in
        [(None, false), (Some("wrong"), false), (Some(made.token.as_str()), true), (Some("join"), true)]
    {
        let host = networked(&service, '1', token);
        let registered = host.register(&request(1, "host-1")).await;
        assert_eq!(registered.is_ok(), admitted, "{token:?}");
    }
    assert!(!format!("{:?}", network()).contains("\"join\""));
    assert!(!format!("{made:?}").contains(&made.token));
    // Without a secret nobody is let in, whatever token they show.
    let error = host_of(&service, network(), Some("join")).register(&request(2, "host-2")).await.unwrap_err();
    assert_eq!(error.code(), Some("UNAUTHENTICATED"));
}

#[tokio::test]
async fn who_has_joined_proves_itself_by_its_secret_alone_and_nobody_else_can_be_it() {
    let service = service();
    networked(&service, '1', Some("join")).register(&request(1, "host-1")).await.unwrap();
    networked(&service, '1', None).register(&request(1, "host-1")).await.unwrap();
    let error = networked(&service, '2', Some("join")).register(&request(1, "host-1")).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::PermissionDenied, Some("UNAUTHENTICATED")));
    let kept = service.records().credential(controller(1)).await.unwrap().unwrap();
    assert!(!kept.digest.contains(&"1".repeat(64)), "only a digest is kept");
    service.remove_controller(&caller(), controller(1), false, &Mutation::default()).await.unwrap();
    let error = networked(&service, '1', None).register(&request(1, "host-1")).await.unwrap_err();
    assert_eq!(error.code(), Some("UNAUTHENTICATED"), "a removed controller has to join anew");
    networked(&service, '2', Some("join")).register(&request(1, "host-1")).await.unwrap();
}

#[tokio::test]
async fn a_join_token_expires_and_is_removed() {
    let service = service();
    let made = service.create_join_token(&caller(), Duration::from_secs(1)).await.unwrap();
    assert!(service.join_token_holds(&made.token).await.unwrap());
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(!service.join_token_holds(&made.token).await.unwrap());
    assert_eq!(service.list_join_tokens().await.unwrap(), []);
    let next = service.create_join_token(&caller(), Duration::from_secs(60)).await.unwrap();
    assert_eq!(service.records().join_tokens().await.unwrap().len(), 1, "the expired one is gone");
    service.remove_join_token(next.record.id()).await.unwrap();
    assert!(!service.join_token_holds(&next.token).await.unwrap());
    let error = service.remove_join_token(next.record.id()).await.unwrap_err();
    assert_eq!(error.code(), Some("JOIN_TOKEN_NOT_FOUND"));
    for holds in [Duration::ZERO, Duration::from_secs(400 * 24 * 3_600)] {
        let error = service.create_join_token(&caller(), holds).await.unwrap_err();
        assert_eq!(error.field(), Some("ttl_seconds"));
    }
}

#[tokio::test]
async fn what_a_controller_says_of_itself_is_bounded() {
    let service = service();
    let host = host(&service);
    let mut long = request(1, "host-1");
    long.driver.acceleration = "x".repeat(300);
    let error = host.register(&long).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("driver")));
    long.driver.acceleration = DriverInfo::text("it said: ä\n".repeat(100));
    host.register(&long).await.unwrap();
    let mut huge = request(1, "host-1");
    huge.driver.name = "x".repeat(2 * 1024 * 1024);
    assert_eq!(host.register(&huge).await.unwrap_err().code(), Some("BODY_TOO_LARGE"));
}

#[test]
fn a_report_from_a_hostile_guest_is_cut_and_cleaned() {
    let mut hostile = report(1);
    let message = format!("\u{1b}[31m{}", "x".repeat(100_000));
    hostile.reason = Some(Reason { code: ReasonCode::GuestStopped, message });
    let clean = clean_report(hostile.clone()).unwrap().reason.unwrap();
    assert!(clean.message.len() <= Reason::MAX_MESSAGE && !clean.message.contains('\u{1b}'));
    let endpoint = flames_model::Endpoint { guest_port: 1, address: ([127, 0, 0, 1], 1).into() };
    hostile.endpoints = vec![endpoint; 33];
    assert_eq!(clean_report(hostile).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// Calls for a blob as a controller; answers status and content.
async fn blob(
    host: &HostClient,
    session: &HostSession,
    method: &str,
    key: &str,
    content: &[u8],
) -> (u16, Vec<u8>) {
    let body = Full::new(Bytes::copy_from_slice(content)).map_err(|never| match never {}).boxed_unsync();
    let request =
        http::Request::builder().method(method).uri(format!("/host/v1/blobs/{key}")).body(body).unwrap();
    let response = host.forward(session, request).await.unwrap();
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test]
async fn a_controller_reads_the_blobs_of_its_own_assignments_alone() {
    let service = service();
    for key in ["image/x", "image/y"] {
        let content = Bytes::copy_from_slice(key.as_bytes());
        service.blobs().put_bytes(&BlobKey::new(key).unwrap(), content, PutOptions::default()).await.unwrap();
    }
    let host = host(&service);
    let one = host.register(&request(1, "host-1")).await.unwrap().session;
    let two = host.register(&request(2, "host-2")).await.unwrap().session;
    assert_eq!(blob(&host, &one, "GET", "image/x", b"").await.0, 403);
    assign(&service, &assignment(7, controller(1))).await;
    assert_eq!(blob(&host, &one, "GET", "image/x", b"").await, (200, b"image/x".to_vec()));
    assert_eq!(blob(&host, &one, "GET", "image/x?from=2&to=5", b"").await, (200, b"age".to_vec()));
    assert_eq!(blob(&host, &one, "HEAD", "image/x", b"").await.0, 200);
    for (session, method, key) in [
        (&two, "GET", "image/x"),
        (&two, "HEAD", "image/x"),
        (&one, "GET", "image/y"),
        (&one, "PUT", "image/x"),
        (&one, "PUT", "image/z"),
        (&one, "GET", "image/none"),
    ] {
        let (status, content) = blob(&host, session, method, key, b"mine").await;
        assert_eq!(status, 403, "{method} {key}");
        assert!(!content.starts_with(b"image/"), "{method} {key}");
    }
    let stranger = HostSession { session: SessionToken::from_uuid(Uuid::from_u128(9)), ..one };
    assert_eq!(blob(&host, &stranger, "GET", "image/x", b"").await.0, 409);
    for method in ["DELETE", "POST"] {
        assert_eq!(blob(&host, &one, method, "image/x", b"").await.0, 405);
    }
    let kept = service.blobs().get_bytes(&BlobKey::new("image/x").unwrap(), 100).await.unwrap();
    assert_eq!(kept, "image/x");
}

#[tokio::test]
async fn pieces_are_stored_only_for_a_snapshot_that_is_ordered_and_are_what_their_name_says() {
    let service = service();
    let host = host(&service);
    let session = host.register(&request(1, "host-1")).await.unwrap().session;
    let digest = blake3::hash(b"memory").to_hex().to_string();
    let piece = SnapshotManifest::chunk_blob(&digest);
    let list = SnapshotManifest::blob(&digest);
    let packed = zstd::bulk::compress(b"memory", 1).unwrap();
    assign(&service, &assignment(7, controller(1))).await;
    assert_eq!(blob(&host, &session, "PUT", &piece, &packed).await.0, 403);
    let ordered = Assignment {
        snapshot: Some(flames_model::SnapshotId::from_uuid(Uuid::from_u128(5))),
        ..assignment(8, controller(1))
    };
    assign(&service, &ordered).await;
    assert_eq!(blob(&host, &session, "HEAD", &piece, b"").await.0, 404);
    let other = zstd::bulk::compress(b"poison", 1).unwrap();
    for wrong in [&other[..], b"memory", &packed[..packed.len() - 1]] {
        assert_eq!(blob(&host, &session, "PUT", &piece, wrong).await.0, 400);
    }
    assert_eq!(blob(&host, &session, "PUT", &list, b"poison").await.0, 400);
    assert_eq!(blob(&host, &session, "HEAD", &piece, b"").await.0, 404, "nothing is kept of it");
    assert_eq!(blob(&host, &session, "PUT", &piece, &packed).await.0, 201);
    assert_eq!(blob(&host, &session, "PUT", &list, b"memory").await.0, 201);
    assert_eq!(blob(&host, &session, "HEAD", &piece, b"").await.0, 200);
    // What it stores it may still not read: only who loads the snapshot may.
    assert_eq!(blob(&host, &session, "GET", &piece, b"").await.0, 403);
}
