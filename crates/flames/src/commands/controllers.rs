//! `flames controllers`.

use std::process::ExitCode;

use flames_client::Client;
use flames_wire::{Controller, CreateJoinToken, JoinToken, PageQuery};
use serde_json::json;

use super::{Context, now};
use crate::args::{ControllerAction, Global, TokenAction};
use crate::connect::{once, surely};
use crate::exit::{Failure, NOT_FOUND, Outcome};
use crate::output::{self, Output, age};

/// Lists and looks after controllers.
pub(super) async fn controllers(
    global: &Global,
    output: Output,
    action: Option<ControllerAction>,
) -> Outcome {
    let context = || Context::new(global, output);
    match action.unwrap_or(ControllerAction::Ls) {
        ControllerAction::Ls => list(&context()?).await?,
        ControllerAction::Cordon { controller } => cordon(&context()?, &controller, true).await?,
        ControllerAction::Uncordon { controller } => cordon(&context()?, &controller, false).await?,
        ControllerAction::Doctor => return host_doctor(global, output).await,
        ControllerAction::Token { action } => token(&context()?, action).await?,
        // Carried out before it comes here: it has a runtime of its own.
        ControllerAction::Run(_) => {}
        ControllerAction::Remove { controller, confirmed_dead } => {
            let context = context()?;
            let client = &context.api.client;
            let id = id_of(client, &controller).await?;
            let mutation = once()?;
            surely(async || client.remove_controller(&id, confirmed_dead, &mutation).await).await?;
            match context.output.json {
                true => context.output.json(&json!({ "removed": id }))?,
                false => output::line(controller)?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "firecracker")]
async fn host_doctor(global: &Global, output: Output) -> Outcome {
    Box::pin(super::host_doctor::doctor(global, output)).await
}

#[cfg(not(feature = "firecracker"))]
async fn host_doctor(_: &Global, _: Output) -> Outcome {
    Err(Failure::usage("This build of Flames has no driver `firecracker`: it was made without that feature."))
}

async fn token(context: &Context, action: TokenAction) -> Result<(), Failure> {
    let client = &context.api.client;
    match action {
        TokenAction::Create { ttl } => {
            let wanted = CreateJoinToken { ttl_seconds: Some(ttl.as_secs()) };
            let made = client.create_join_token(&wanted).await?;
            if context.output.json {
                return context.output.json(&made);
            }
            context.output.say(format!("It holds until {}.", made.expires_at));
            output::line(made.token)
        }
        TokenAction::Ls => {
            let tokens = client.list_join_tokens().await?;
            if context.output.json {
                return context.output.json(&tokens.items);
            }
            let row =
                |token: JoinToken| vec![token.id, age(now(), token.created_at), token.expires_at.to_string()];
            context.output.table(&["id", "made", "holds until"], tokens.items.into_iter().map(row).collect())
        }
        TokenAction::Rm { token } => {
            client.remove_join_token(&token).await?;
            match context.output.json {
                true => context.output.json(&json!({ "removed": token })),
                false => output::line(token),
            }
        }
    }
}

async fn all(client: &Client) -> Result<Vec<Controller>, Failure> {
    let mut query = PageQuery { cursor: None, limit: Some(200) };
    let mut controllers = Vec::new();
    loop {
        let page = client.list_controllers(&query).await?;
        controllers.extend(page.items);
        match page.next_cursor {
            Some(cursor) => query.cursor = Some(cursor),
            None => return Ok(controllers),
        }
    }
}

/// The id of a controller that is named by name or id.
pub(super) async fn id_of(client: &Client, name: &str) -> Result<String, Failure> {
    if name.starts_with("ctl_") {
        return Ok(name.to_owned());
    }
    let found = all(client).await?.into_iter().find(|controller| controller.name == name);
    found.map(|controller| controller.id.to_string()).ok_or_else(|| {
        Failure::new(NOT_FOUND, format!("There is no controller `{name}`."))
            .advise("`flames controllers` lists them.")
    })
}

async fn cordon(context: &Context, name: &str, cordoned: bool) -> Result<(), Failure> {
    let client = &context.api.client;
    let id = id_of(client, name).await?;
    let mutation = once()?;
    let controller = surely(async || client.cordon_controller(&id, cordoned, &mutation).await).await?;
    match context.output.json {
        true => context.output.json(&controller),
        false => output::line(controller.name),
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let controllers = all(&context.api.client).await?;
    if context.output.json {
        return context.output.json(&controllers);
    }
    if context.output.quiet {
        return controllers.iter().try_for_each(|controller| output::line(controller.id.to_string()));
    }
    let row = |controller: &Controller| {
        let (used, all) = (controller.reserved, controller.capacity);
        vec![
            controller.name.clone(),
            if controller.cordoned { "cordoned" } else { "open" }.to_owned(),
            format!("{}/{}", used.vms, all.vms),
            format!("{}/{}", used.vcpus, all.vcpus),
            format!("{}/{} MiB", used.memory_mib, all.memory_mib),
            format!("{}/{} MiB", used.disk_mib, all.disk_mib),
            controller
                .address_block
                .as_ref()
                .map(|block| {
                    let ipv6 = block.ipv6.iter().map(|ipv6| format!(" {ipv6}")).collect::<String>();
                    format!("{}/{} of {}{ipv6}", block.taken, block.vms, block.ipv4)
                })
                .unwrap_or_default(),
            format!("{} ({})", controller.driver.name, controller.driver.acceleration),
            age(now(), controller.registered_at),
            controller.id.to_string(),
        ]
    };
    let rows = controllers.iter().map(row).collect();
    let head =
        ["name", "placement", "vms", "vcpus", "memory", "disk", "addresses", "driver", "registered", "id"];
    context.output.table(&head, rows)
}
