//! `flames events`.

use std::process::ExitCode;

use flames_wire::{Event, EventQuery, EventType};
use futures::StreamExt;

use super::Context;
use crate::exit::{Failure, Outcome};
use crate::output::{self, printable};

/// How often a connection that broke is made again before the command gives up.
const ATTEMPTS: u32 = 10;
/// Events of one page.
const PAGE: u32 = 1_000;

/// Shows what happened, and what happens.
pub(super) async fn events(
    context: &Context,
    follow: bool,
    controllers: bool,
    vm: Option<&str>,
    mut after: Option<String>,
) -> Outcome {
    let client = &context.api.client;
    // Names are free again after a removal; a VM that is there now is told by its id.
    let id = match vm {
        Some(name) => client.get_vm(name).await.ok().map(|vm| vm.id),
        None => None,
    };
    let wanted = |event: &Event| match (vm, id) {
        (None, _) => true,
        (Some(_), Some(id)) => event.vm == Some(id),
        (Some(name), None) => {
            event.vm_name.as_deref() == Some(name) || event.vm.is_some_and(|vm| vm.to_string() == name)
        }
    };
    let show = |event: &Event| match () {
        () if !wanted(event) => Ok(()),
        () if context.output.json => context.output.json_line(event),
        () => output::line(told(event)),
    };
    loop {
        let query = EventQuery { after: after.clone(), follow: false, limit: Some(PAGE) };
        let page = match controllers {
            true => client.list_controller_events(&query).await?,
            false => client.list_events(&query).await?,
        };
        page.items.iter().try_for_each(show)?;
        let full = page.items.len() >= PAGE as usize;
        let moved = after.as_ref() != Some(&page.next_cursor);
        after = Some(page.next_cursor);
        if !full || !moved {
            break;
        }
    }
    if !follow {
        return Ok(ExitCode::SUCCESS);
    }
    let mut events = match controllers {
        true => client.follow_controller_events(after, ATTEMPTS),
        false => client.follow_events(after, ATTEMPTS),
    };
    while let Some(event) = events.next().await {
        show(&event?)?;
    }
    Err(Failure::failed("The events ended."))
}

/// An event as one line.
fn told(event: &Event) -> String {
    let what = match event.event_type {
        EventType::VmCreated => "created".to_owned(),
        EventType::VmDesired => format!("wanted {}", name_of(event.desired)),
        EventType::VmLabelled => "labelled".to_owned(),
        EventType::VmNetwork => format!("network changed (revision {})", event.network_revision.unwrap_or(0)),
        EventType::VmNetworkApplied => {
            format!("under network revision {}", event.network_revision.unwrap_or(0))
        }
        EventType::VmUnplaced => "has no place".to_owned(),
        EventType::VmPlaced => {
            format!("placed on {}", event.controller.map(|id| id.to_string()).unwrap_or_default())
        }
        EventType::VmState => {
            match event.exit.and_then(|exit| exit.code.or(exit.signal.map(|signal| 128 + signal))) {
                Some(code) => format!("{} ({code})", name_of(event.state)),
                None => name_of(event.state),
            }
        }
        EventType::VmReleased => "released".to_owned(),
        EventType::VmDeleted => "deleted".to_owned(),
        EventType::ImageImported => "image imported".to_owned(),
        EventType::ImageRemoved => "image removed".to_owned(),
        EventType::SnapshotCreated => "snapshot asked for".to_owned(),
        EventType::SnapshotState => format!("snapshot {}", name_of(event.snapshot_state)),
        EventType::SnapshotDeleted => "snapshot removed".to_owned(),
        EventType::ControllerRegistered => "controller registered".to_owned(),
        EventType::ControllerCordoned if event.cordoned == Some(false) => "controller uncordoned".to_owned(),
        EventType::ControllerCordoned => "controller cordoned".to_owned(),
        EventType::ControllerLost => "controller lost".to_owned(),
        EventType::ControllerRemoved => "controller removed".to_owned(),
        EventType::Unknown => "something that this version does not know".to_owned(),
    };
    let vm = event.vm_name.clone().or(event.vm.map(|id| id.to_string()));
    let whom = vm.or(event.image.clone()).or(event.controller.map(|id| id.to_string())).unwrap_or_default();
    let why =
        event.reason.as_ref().map(|reason| format!(" — {}", printable(&reason.message))).unwrap_or_default();
    format!("{}  {:<20}  {what}{why}", event.at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"), printable(&whom))
}

/// The name that a value has in JSON.
fn name_of<T: serde::Serialize>(value: Option<T>) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}
