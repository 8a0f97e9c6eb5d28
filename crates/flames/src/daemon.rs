//! `flames controller run`: a host, in a process of its own, that runs what its servers place on it.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use flames_blob_remote::RemoteBlobStore;
use flames_client::wire::host::{ControllerId, HostSession, SessionToken};
use flames_client::{Client, ClientConfig, FailoverHost, HostApi, HostClient, HostCredentials, Trust};
use flames_clock::{Clock, ClockExt, IdSource, Monotonic, SystemClock, SystemRandom, UuidSource};
use flames_controller::{Refused, Sessions, ShutdownMode, Superseded};
use flames_error::ErrorKind;
use flames_transport_link::{LinkHandler, serve_link};
use serde_json::json;
use tokio::task::JoinSet;

use crate::args::{ControllerRunArgs, Global};
use crate::config::{
    self, OnExit, Problem, Section, ServerUrl, ServersConfig, Settings, UpConfig, host_name,
};
use crate::connect;
use crate::data::{DataFolder, LockedFolder, Works};
use crate::exit::{Failure, Outcome};
use crate::output::{self, Output};
use crate::providers::{Checked, Verdict};
use crate::up::host::{Host, Plane};
use crate::up::{Ends, log_to_stderr};

/// How long one server may take to answer before the next is asked: less than a call of the controller may take in all.
const ANSWER: Duration = Duration::from_secs(4);
/// The first wait before a link that broke is made again; doubled each time.
const RELINK_FIRST: Duration = Duration::from_millis(100);
/// The longest such wait.
const RELINK_MOST: Duration = Duration::from_secs(5);

/// Runs until told to end.
pub(crate) async fn run(global: &Global, output: Output, arguments: ControllerRunArgs) -> Outcome {
    // All that is wrong with the configuration is told before anything is touched.
    let settings = Settings::resolve(global, &arguments.settings, false);
    let settings = settings.map_err(|problems| config::failure(&problems))?;
    let mut process = UpConfig::of(&settings)?;
    process.name = host_name(&settings, &process.name)?;
    let servers = ServersConfig::of(&settings)?;
    let trust = trust(&servers)?;
    log_to_stderr(&process)?;
    let folder = match settings.path("data") {
        Some(path) => DataFolder::at(path),
        None => connect::data_folder(global)?,
    };
    let is_new = !folder.path().exists();
    let folder = folder.lock(Works::Host)?;
    let secret = folder.ensure_controller_secret()?;
    let mut ends = Ends::listen()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let credentials = HostCredentials { secret, join_token: servers.join_token.clone() };
    let clients = clients(&servers, trust.as_ref(), &credentials, &clock)?;
    let api = FailoverHost::new(clients.clone())?;
    let registered = Registered::default();
    let plane = Plane {
        api: Arc::new(api.clone()),
        blobs: Arc::new(blobs(api, registered.clone(), &clock)),
        superseded: Superseded::Stop,
        refused: Refused::Stop,
    };
    let base = folder.folder().path().to_owned();
    let host = tokio::select! {
        host = Host::start(&base, &folder, &process, plane, &clock, output) => match host {
            Ok(host) => host,
            Err(failure) => {
                if is_new {
                    folder.remove_unused();
                }
                return Err(failure);
            }
        },
        () = ends.next() => return Ok(ExitCode::SUCCESS),
    };
    // The controller is there before anything asks for blobs in its name.
    let _ = registered.set(host.controller.sessions());
    let mut links = JoinSet::new();
    for (client, server) in clients.into_iter().zip(&servers.servers) {
        let link = KeptLink {
            client,
            url: server.url.clone(),
            sessions: host.controller.sessions(),
            clock: clock.clone(),
        };
        links.spawn(link.keep(host.handler()));
    }
    tell(output, &folder, &process, &servers, &host)?;
    let outcome = tokio::select! {
        () = ends.next() => Ok(ExitCode::SUCCESS),
        why = host.controller.given_up() => Err(Failure::failed(why)),
    };
    // Who is not let in, or was superseded, has no say over VMs any more.
    let stops = process.on_exit == OnExit::Stop && outcome.is_ok();
    output.say(match stops {
        true => "Ending: VMs are being stopped. Ctrl-C once more ends at once.",
        false => "Ending: VMs run on. Ctrl-C once more ends at once.",
    });
    let mode = if stops { ShutdownMode::StopAll } else { ShutdownMode::LeaveRunning };
    let drained = async {
        host.shutdown(mode).await;
        // Streams were told of their end by the controller.
        links.shutdown().await;
    };
    tokio::select! {
        () = drained => {}
        () = ends.next() => return Ok(ExitCode::from(130)),
    }
    outcome
}

/// The controller's registrations, once there is a controller.
type Registered = Arc<OnceLock<Sessions>>;

/// The blobs of this host: those of its servers, as far as its assignments name them.
fn blobs(api: FailoverHost, registered: Registered, clock: &Arc<dyn Clock>) -> RemoteBlobStore {
    let waits = clock.clone();
    let sending = tower::service_fn(move |request: http::Request<flames_blob_remote::Body>| {
        let (api, registered, clock) = (api.clone(), registered.clone(), waits.clone());
        async move {
            let sessions = registered.get().ok_or("the controller has not registered yet")?;
            let session = clock.timeout(ANSWER, sessions.current()).await?;
            api.forward(&session, request).await
        }
    });
    RemoteBlobStore::over(sending, clock.clone(), flames_blob_remote::Limits::default())
}

fn trust(servers: &ServersConfig) -> Result<Option<Trust>, Failure> {
    let path = servers.authorities.as_ref().filter(|_| servers.servers.iter().any(|server| server.is_tls));
    let trust = path.map(|path| Trust::of_file(path)).transpose();
    trust.map_err(|error| {
        let told = error.user_message().unwrap_or(error.message()).to_owned();
        Problem::new(Section::Host, "server_ca", told).into()
    })
}

fn clients(
    servers: &ServersConfig,
    trust: Option<&Trust>,
    credentials: &HostCredentials,
    clock: &Arc<dyn Clock>,
) -> Result<Vec<HostClient>, Failure> {
    let client = |server| Ok(client(server, trust, clock)?.with_credentials(credentials.clone()));
    servers.servers.iter().map(client).collect()
}

fn client(server: &ServerUrl, trust: Option<&Trust>, clock: &Arc<dyn Clock>) -> Result<HostClient, Problem> {
    let config = ClientConfig { timeout: ANSWER, ..ClientConfig::default().with_clock(clock.clone()) };
    let client = match trust.filter(|_| server.is_tls) {
        Some(trust) => Client::tls(&server.address, trust, config),
        None => Client::tcp(&server.address, config),
    };
    client.map(HostClient::new).map_err(|error| {
        let told = error.user_message().unwrap_or(error.message());
        Problem::new(Section::Host, "server", format!("`{}`: {told}", server.url))
    })
}

/// Looks whether each server can be reached and proves itself. Says nothing that is secret, and changes nothing.
pub(crate) async fn check_servers(settings: &Settings, clock: &Arc<dyn Clock>) -> Vec<Checked> {
    let row = |place: &str, found: Result<String, Problem>, began: Monotonic| {
        let (verdict, found, problem) = match found {
            Ok(found) => (Verdict::Ok, found, None),
            Err(problem) => (Verdict::Wrong, problem.problem.clone(), Some(problem)),
        };
        let took = clock.monotonic().saturating_since(began).as_millis();
        Checked {
            provider: "server",
            backend: "host API".to_owned(),
            place: place.to_owned(),
            verdict,
            found,
            version: None,
            milliseconds: u64::try_from(took).unwrap_or(u64::MAX),
            problem,
        }
    };
    let began = clock.monotonic();
    let wrong = |error: &flames_error::Error, url: &str| {
        let told = error.user_message().unwrap_or(error.message()).trim_end_matches('.');
        Problem::new(
            Section::Host,
            "server",
            format!("{url}: {told}. See that it runs, or correct the setting."),
        )
    };
    let servers = match ServersConfig::of(settings) {
        Ok(servers) => servers,
        Err(problem) => return vec![row("", Err(problem), began)],
    };
    let trust = servers.authorities.as_deref().filter(|_| servers.servers.iter().any(|server| server.is_tls));
    let trust = match trust.map(Trust::of_file).transpose() {
        Ok(trust) => trust,
        Err(error) => {
            let told = error.user_message().unwrap_or(error.message()).to_owned();
            return vec![row("", Err(Problem::new(Section::Host, "server_ca", told)), began)];
        }
    };
    // Nobody's session: a server that is one answers that it does not know it.
    let nobody = HostSession {
        controller: ControllerId::from_uuid(UuidSource::new(clock.clone(), Arc::new(SystemRandom)).next_id()),
        session: SessionToken::from_uuid(UuidSource::new(clock.clone(), Arc::new(SystemRandom)).next_id()),
    };
    let mut rows = Vec::new();
    for server in &servers.servers {
        let began = clock.monotonic();
        let found = match client(server, trust.as_ref(), clock) {
            Ok(client) => match client.renew(&nobody).await {
                Err(error) if error.kind() == ErrorKind::NotFound && error.code().is_some() => {
                    Ok("it answers".to_owned())
                }
                Err(error) => Err(wrong(&error, &server.url)),
                Ok(_) => Ok("it answers".to_owned()),
            },
            Err(problem) => Err(problem),
        };
        rows.push(row(&server.url, found, began));
    }
    rows
}

/// The link to one server.
struct KeptLink {
    client: HostClient,
    /// As it was written, for the log.
    url: String,
    sessions: Sessions,
    clock: Arc<dyn Clock>,
}

impl KeptLink {
    /// Makes the link again whenever it ends. Never returns.
    async fn keep(self, handler: Arc<dyn LinkHandler>) {
        let mut wait = RELINK_FIRST;
        loop {
            let session = self.sessions.current().await;
            let began = self.clock.monotonic();
            let linked = async {
                let io = self.client.link(&session).await?;
                tracing::info!(server = self.url, "a link is made");
                serve_link(io, Arc::clone(&handler), self.clock.clone()).await
            };
            tokio::select! {
                biased;
                () = self.sessions.ended(&session) => {}
                ended = linked => {
                    if let Err(error) = ended {
                        tracing::info!(server = self.url, %error, "no link");
                    }
                }
            }
            if self.clock.monotonic().saturating_since(began) > RELINK_MOST {
                wait = RELINK_FIRST;
            }
            self.clock.sleep(wait).await;
            wait = (wait * 2).min(RELINK_MOST);
        }
    }
}

fn tell(
    output: Output,
    folder: &LockedFolder,
    process: &UpConfig,
    servers: &ServersConfig,
    host: &Host,
) -> Result<(), Failure> {
    let data = folder.folder();
    let urls: Vec<_> = servers.servers.iter().map(|server| server.url.as_str()).collect();
    if output.json {
        return output.json_line(&json!({
            "controller": host.controller.id().to_string(),
            "name": process.name.to_string(),
            "servers": urls,
            "driver": host.driver,
            "data": data.path(),
            "pid": std::process::id(),
        }));
    }
    if output.quiet {
        return output::line(host.controller.id().to_string());
    }
    let mut lines = vec![
        format!("The controller {} runs.", process.name),
        format!("  id       {}", host.controller.id()),
        format!("  servers  {}", urls.join(", ")),
        format!("  driver   {}", host.driver),
    ];
    if let Some(kernel) = &host.kernel {
        lines.push(format!("  kernel   {kernel}"));
    }
    lines.push("Ctrl-C ends it.".to_owned());
    lines.iter().try_for_each(output::line)
}
