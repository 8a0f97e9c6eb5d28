//! `flames server`: the control plane without a host. Controllers call it over a listener of their own, and several servers work side by
//! side over the same stores.

use std::process::ExitCode;
use std::sync::Arc;

use flames_clock::{Clock, SystemClock};
use flames_error::Result;
use flames_model::ControllerId;
use flames_transport_host::{Admission, HostConfig, LinkAcceptor, LinkIo};
use flames_transport_http::{ServeConfig, serve_tcp};
use flames_transport_link::NetworkLinks;
use futures::future::BoxFuture;
use serde_json::json;

use crate::args::{Global, ServerArgs};
use crate::config::{self, HostListenConfig, Settings, UpConfig};
use crate::connect;
use crate::data::{ApiFile, DataFolder, LockedFolder, Works};
use crate::exit::{Failure, Outcome};
use crate::output::{self, Output};
use crate::providers::{self, Plans};
use crate::up::plane::ControlPlane;
use crate::up::serve::{Served, Serving, bind};
use crate::up::{Ends, log_to_stderr};

/// Serves until told to end.
pub(crate) async fn run(global: &Global, output: Output, arguments: ServerArgs) -> Outcome {
    // All that is wrong with the configuration is told before anything is touched.
    let settings = Settings::resolve(global, &arguments.settings, false);
    let settings = settings.map_err(|problems| config::failure(&problems))?;
    let process = UpConfig::of(&settings)?;
    let listen = HostListenConfig::of(&settings)?;
    let plans = Plans::of_server(&settings).map_err(|problems| config::failure(&problems))?;
    let tls = listen.tls.as_ref().map(|(certificate, key)| tls::Tls::read(certificate, key)).transpose()?;
    log_to_stderr(&process)?;
    let folder = match settings.path("data") {
        Some(path) => DataFolder::at(path),
        None => connect::data_folder(global)?,
    };
    let is_new = !folder.path().exists();
    let folder = folder.lock(Works::Server)?;
    let token = folder.ensure_token()?;
    let _alone = providers::lock_alone(&settings)?;
    // From here on a signal is heard, also while the parts are still being put together.
    let mut ends = Ends::listen()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let links = NetworkLinks::new(clock.clone());
    let base = folder.folder().path().to_owned();
    let plane = tokio::select! {
        plane = ControlPlane::start(&base, &folder, plans, Arc::new(links.clone()), &clock) => match plane {
            Ok(plane) => plane,
            Err(failure) => {
                if is_new {
                    folder.remove_unused();
                }
                return Err(failure);
            }
        },
        () = ends.next() => return Ok(ExitCode::SUCCESS),
    };
    let served = serve(&plane, &folder, &token, &process, listen, tls, links.clone()).await;
    let (mut served, host_address) = match served {
        Ok(served) => served,
        Err(failure) => {
            plane.shutdown().await;
            return Err(failure);
        }
    };
    let api = ApiFile::of_this_process(served.address);
    folder.announce(&api)?;
    tell(output, &folder, &api, &host_address, &plane)?;
    let outcome = tokio::select! {
        () = ends.next() => Ok(ExitCode::SUCCESS),
        why = served.broke() => Err(Failure::failed(why)),
    };
    output.say("Ending: hosts and their VMs go on. Ctrl-C once more ends at once.");
    let drained = async {
        folder.withdraw();
        plane.api.stop_token().cancel();
        links.shutdown().await;
        served.shutdown(&plane.api).await;
        plane.api.shutdown().await;
        plane.shutdown().await;
    };
    tokio::select! {
        () = drained => {}
        () = ends.next() => {
            folder.withdraw();
            return Ok(ExitCode::from(130));
        }
    }
    outcome
}

/// Listens for callers of the API and for controllers; answers where the latter call.
async fn serve(
    plane: &ControlPlane,
    folder: &LockedFolder,
    token: &str,
    process: &UpConfig,
    listen: HostListenConfig,
    tls: Option<tls::Tls>,
    links: NetworkLinks,
) -> std::result::Result<(Served, String), Failure> {
    let config = HostConfig {
        admission: Admission::Network { join_token: listen.join_token },
        links: Some(Arc::new(Links(links))),
        stop: plane.api.stop_token(),
        ..HostConfig::default()
    };
    let router = flames_transport_host::router(plane.service.clone(), config);
    let (listener, address) = bind(listen.address, "--host-listen").await?;
    let stop = plane.api.stop_token();
    let (scheme, serving): (_, Serving) = match tls {
        Some(tls) => ("https", Box::pin(tls.serve(listener, router, stop))),
        None => ("http", Box::pin(serve_tcp(listener, router, ServeConfig::default(), stop))),
    };
    let listener = bind(process.listen, "--listen").await?;
    let served = Served::start(&plane.api, folder, token, listener, Some(serving)).await?;
    Ok((served, format!("{scheme}://{address}")))
}

/// Hands the links of the host API on.
#[derive(Debug)]
struct Links(NetworkLinks);

impl LinkAcceptor for Links {
    fn accept(&self, controller: ControllerId, connection: BoxFuture<'static, Result<LinkIo>>) {
        self.0.accept(controller, connection);
    }
}

fn tell(
    output: Output,
    folder: &LockedFolder,
    api: &ApiFile,
    host_address: &str,
    plane: &ControlPlane,
) -> std::result::Result<(), Failure> {
    let data = folder.folder();
    let url = format!("http://{}", api.address);
    if output.json {
        return output.json_line(&json!({
            "url": url,
            "host_url": host_address,
            "socket": data.socket_path(),
            "token_file": data.token_path(),
            "data": data.path(),
            "pid": api.pid,
            "providers": plane.names(),
            "ingress": plane.ingress_address(),
        }));
    }
    if output.quiet {
        return output::line(url);
    }
    let mut lines = vec![
        format!("Flames {} serves.", api.version),
        format!("  API      {url}   token in {}", data.token_path().display()),
        format!("  socket   {}", data.socket_path().display()),
        format!("  hosts    {host_address}"),
        format!("  stores   {}", plane.stores()),
        "In another terminal:".to_owned(),
    ];
    lines.extend(data.named_for_a_shell());
    lines.push("  flames controllers token create".to_owned());
    lines.push(format!("On a host: flames controller run --server {host_address} --join-token-file FILE"));
    lines.push("Ctrl-C ends it; hosts and their VMs go on.".to_owned());
    lines.iter().try_for_each(output::line)
}

#[cfg(feature = "proxy")]
mod tls {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use axum::Router;
    use flames_ingress_proxy::{CertificateFiles, Certificates};
    use flames_transport_http::{ServeConfig, serve_tls};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_util::sync::CancellationToken;

    use crate::config::{Problem, Section};
    use crate::exit::Failure;

    /// How often it is looked whether the files changed.
    const LOOK: Duration = Duration::from_secs(30);

    /// The certificate that is shown to controllers.
    pub(super) struct Tls {
        certificates: Arc<Certificates>,
        acceptor: TlsAcceptor,
    }

    impl Tls {
        pub(super) fn read(certificate: &Path, key: &Path) -> Result<Self, Failure> {
            let files =
                CertificateFiles { hosts: Vec::new(), certificate: certificate.into(), key: key.into() };
            let read = Certificates::read(vec![files]).and_then(|certificates| {
                let mut config = certificates.server_config()?;
                // The host API is HTTP/1.1 alone: links are upgrades of it.
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Ok((certificates, config))
            });
            let (certificates, config) = read.map_err(|error| {
                let told = error.user_message().unwrap_or(error.message()).to_owned();
                Problem::new(Section::Host, "host_certificate", format!("{told}."))
            })?;
            Ok(Self { certificates: Arc::new(certificates), acceptor: Arc::new(config).into() })
        }

        /// Serves until `stop`.
        pub(super) async fn serve(self, listener: TcpListener, router: Router, stop: CancellationToken) {
            let Self { certificates, acceptor } = self;
            let looking = async {
                loop {
                    tokio::time::sleep(LOOK).await;
                    let certificates = Arc::clone(&certificates);
                    // It reads files: not on a thread that serves. A panic in it is logged by the runtime.
                    let _ = tokio::task::spawn_blocking(move || certificates.reload_if_changed()).await;
                }
            };
            tokio::select! {
                () = serve_tls(listener, acceptor, router, ServeConfig::default(), stop) => {}
                () = looking => {}
            }
        }
    }
}

#[cfg(not(feature = "proxy"))]
mod tls {
    use std::path::Path;

    use axum::Router;
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    use crate::config::{Problem, Section};
    use crate::exit::Failure;

    /// There is none in this build.
    pub(super) enum Tls {}

    impl Tls {
        pub(super) fn read(_certificate: &Path, _key: &Path) -> Result<Self, Failure> {
            let sentence = "this build of Flames cannot serve TLS: build one that can with `cargo build -p flames --features proxy`.";
            Err(Problem::new(Section::Host, "host_certificate", sentence).into())
        }

        pub(super) async fn serve(self, _: TcpListener, _: Router, _: CancellationToken) {
            match self {}
        }
    }
}
