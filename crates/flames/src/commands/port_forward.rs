//! `flames port-forward`.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use flames_client::Client;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Context;
use crate::args::PortForwardArgs;
use crate::attached::Interrupts;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Output};

/// Connections that are open at the same time; more wait to be accepted.
const CONNECTIONS: usize = 256;

/// Makes ports of a VM reachable on 127.0.0.1 until interrupted.
pub(super) async fn port_forward(context: &Context, arguments: &PortForwardArgs) -> Outcome {
    let mut interrupts = Interrupts::listen()?;
    let client = &context.api.client;
    // A VM that is not there, or does not run, is told now and not at the first connection.
    let vm = client.get_vm(&arguments.vm).await?;
    if vm.state.is_over() {
        return Err(Failure::new(
            crate::exit::CONFLICT,
            format!("The VM `{}` is {}; this needs a running one.", vm.name, vm.state),
        )
        .advise(format!("Start it with `flames start {}`.", vm.name)));
    }
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut listeners = JoinSet::new();
    for port in &arguments.ports {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.host.unwrap_or(0)));
        let cannot = |error: std::io::Error| Failure::io(format!("{address} cannot be listened on"), &error);
        let listener = TcpListener::bind(address).await.map_err(cannot)?;
        let bound = listener.local_addr().map_err(cannot)?;
        if context.output.json {
            context.output.json_line(&json!({ "guest_port": port.guest, "address": bound.to_string() }))?;
        } else {
            output::line(format!("{bound} -> {}:{}", vm.name, port.guest))?;
        }
        listeners.spawn(accept(
            listener,
            client.clone(),
            vm.id.to_string(),
            port.guest,
            places.clone(),
            context.output,
        ));
    }
    context.output.say("Ctrl-C ends it.");
    tokio::select! {
        _ = interrupts.next() => Ok(ExitCode::SUCCESS),
        Some(ended) = listeners.join_next() => match ended {
            Ok(failure) => Err(failure),
            Err(_) => Err(Failure::failed("Forwarding broke down.")),
        },
    }
}

/// Accepts connections until it cannot. Each runs in a task of this one.
async fn accept(
    listener: TcpListener,
    client: Client,
    vm: String,
    port: u16,
    places: Arc<Semaphore>,
    output: Output,
) -> Failure {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else {
            return Failure::failed("Forwarding broke down.");
        };
        let (socket, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // One connection that broke before it was accepted is not the listener's end (accept(2)).
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Failure::io("No more connections can be accepted", &error),
        };
        let (client, vm) = (client.clone(), vm.clone());
        connections.spawn(async move {
            let _place = place;
            if let Err(error) = forward(&client, &vm, port, socket).await {
                output
                    .say(format!("flames: port {port}: {}", error.user_message().unwrap_or(error.message())));
            }
        });
    }
}

async fn forward(client: &Client, vm: &str, port: u16, socket: TcpStream) -> flames_error::Result<()> {
    // A connection without the delay is not worth refusing it.
    let _ = socket.set_nodelay(true);
    client.connect_port(vm, port).await?.pipe(socket).await
}
