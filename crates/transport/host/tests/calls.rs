//! The host API as a controller meets it, through its client.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flames_blob_memory::MemoryBlobStore;
use flames_client::wire::host::{
    Assignment, ControllerId, DriverInfo, HostSession, IncarnationId, Labels, RegisterRequest, Report,
    ReportBatch, ReportOutcome, Resources, SessionToken, VmName,
};
use flames_client::{Client, ClientConfig, HostApi, HostClient};
use flames_clock::{Clock, SystemClock, SystemRandom, UuidSource};
use flames_error::{Error, ErrorKind};
use flames_model::{
    FencingToken, ImageDefaults, ImageKind, ImageManifest, ImageName, IncarnationState, ProjectName, Reason,
    ReasonCode, SecretString, Source, VmId, Wanted,
};
use flames_records::{Change, Records};
use flames_service::{
    ImageImporter, ImportProgress, Imported, NoLinks, Service, ServiceConfig, ServiceParts,
};
use flames_state_memory::MemoryStore;
use flames_transport_host::{HostConfig, clean_report, router};
use uuid::Uuid;

#[derive(Debug)]
struct NoImages;

#[async_trait]
impl ImageImporter for NoImages {
    async fn import(
        &self,
        _: ImageKind,
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
            cpu: flames_model::CpuFacts {
                vendor: "v".to_owned(),
                model: "m".to_owned(),
                features: "f".to_owned(),
            },
            default_kernel: None,
            network: Default::default(),
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
        spec,
        source: Source::Boot,
        image: manifest(),
        kernel: None,
        restore: None,
        snapshot: None,
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
    assert_eq!(host.report(&first.session, batch).await.unwrap_err().kind(), ErrorKind::LeaseLost);
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
    assert_eq!(host.report(&session, batch).await.unwrap(), [ReportOutcome::Unknown; 2]);
    let batch = ReportBatch { reports: (0..257).map(report).collect() };
    let error = host.report(&session, batch).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("reports")));
}

#[tokio::test]
async fn registering_takes_the_join_token_where_there_is_one() {
    let service = service();
    let config = HostConfig { join_token: Some("join".to_owned()), ..HostConfig::default() };
    for (token, admitted) in [(None, false), (Some("wrong"), false), (Some("join"), true)] {
        let host = host_of(&service, config.clone(), token);
        let registered = host.register(&request(1, "host-1")).await;
        assert_eq!(registered.is_ok(), admitted, "{token:?}");
    }
    assert!(!format!("{config:?}").contains("\"join\""));
}

#[tokio::test]
async fn what_a_controller_says_of_itself_is_bounded() {
    let service = service();
    let host = host(&service);
    let mut long = request(1, "host-1");
    long.driver.acceleration = "x".repeat(300);
    let error = host.register(&long).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidInput, Some("driver")));
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
