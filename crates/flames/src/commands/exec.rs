//! `flames exec` and `flames attach`.

use flames_client::Client;
use flames_error::ErrorKind;
use flames_wire::{AttachQuery, ExecRequest, SignalProcess};

use super::Context;
use crate::args::{AttachArgs, ExecArgs};
use crate::attached::{Ended, Interrupt, Interrupts, Joined, SIGINT, SIGTERM, join};
use crate::exit::{Failure, Outcome};
use crate::terminal;

/// Runs a command in a VM and ends as it ends.
pub(super) async fn exec(context: &Context, arguments: ExecArgs) -> Outcome {
    let mut interrupts = Interrupts::listen()?;
    let size = match arguments.tty {
        true => Some(terminal::size().unwrap_or(flames_wire::TerminalSize { rows: 24, columns: 80 })),
        false => None,
    };
    let request = ExecRequest {
        command: arguments.command,
        env: arguments.env.into_iter().collect(),
        working_directory: arguments.workdir,
        user: arguments.user,
        terminal: size,
        stdin: arguments.interactive,
    };
    let client = &context.api.client;
    let mut stream = client.exec(&arguments.vm, &request).await?;
    let process = started(&mut stream).await?;
    let joined = Joined { stdin: arguments.interactive, terminal: arguments.tty, from: 0 };
    let ended = join(stream, joined, &mut interrupts, async |interrupt| {
        pass_on(client, &arguments.vm, &process, interrupt).await
    })
    .await?;
    if ended == Ended::Unread {
        pass_on(client, &arguments.vm, &process, Interrupt::Ended).await?;
    }
    ended.exit_code()
}

/// Attaches to a process of a VM and ends as it ends.
pub(super) async fn attach(context: &Context, arguments: AttachArgs) -> Outcome {
    let client = &context.api.client;
    let mut interrupts = Interrupts::listen()?;
    let (mut from, mut tty) = (0, false);
    // A VM that is over has no processes to list, and its output can still be shown.
    if let Ok(processes) = client.list_processes(&arguments.vm).await {
        let process = processes.items.into_iter().find(|process| process.id == arguments.process);
        if let Some(process) = process {
            tty = process.terminal;
            from = if arguments.from_now { process.output_bytes } else { 0 };
        }
    }
    let query = AttachQuery { process: Some(arguments.process.clone()), from };
    let stream = client.attach(&arguments.vm, &query).await?;
    let joined = Joined { stdin: !arguments.no_stdin, terminal: tty, from };
    let ended = join(stream, joined, &mut interrupts, async |interrupt| match interrupt {
        // Who only watched leaves, as does who goes away: the process was there before, and runs on.
        _ if arguments.no_stdin => Ok(true),
        Interrupt::Ended => Ok(true),
        interrupt => pass_on(client, &arguments.vm, &arguments.process, interrupt).await,
    })
    .await?;
    ended.exit_code()
}

/// The id of the process that an exec stream started.
async fn started(stream: &mut flames_client::FrameStream) -> Result<String, Failure> {
    match stream.receiver.next().await {
        Ok(Some(flames_wire::stream::StreamFrame::Started { process })) => Ok(process),
        Ok(_) => Err(Failure::failed("The guest did not say which process it started.")),
        Err(error) => {
            // As a shell tells of a program that it cannot start (POSIX, "Exit Status for Commands").
            let exit = match error.kind() {
                ErrorKind::NotFound => 127,
                ErrorKind::PermissionDenied => 126,
                _ => return Err(error.into()),
            };
            Err(Failure { exit, ..error.into() })
        }
    }
}

/// Sends the process what the user's interrupt means: SIGINT, the second time SIGTERM, the third time nothing more; then this command leaves.
async fn pass_on(client: &Client, vm: &str, process: &str, interrupt: Interrupt) -> Result<bool, Failure> {
    let signal = match interrupt {
        Interrupt::Asked(1) => SIGINT,
        Interrupt::Asked(2) | Interrupt::Ended => SIGTERM,
        Interrupt::Asked(_) => return Ok(true),
    };
    let signal = SignalProcess { signal: i32::from(signal), group: true };
    // It may have ended in this moment; then its output tells.
    let _ = client.signal_process(vm, process, &signal).await;
    Ok(interrupt == Interrupt::Ended)
}
