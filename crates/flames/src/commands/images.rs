//! `flames image`.

use std::path::Path;
use std::process::ExitCode;

use flames_client::ByteStream;
use flames_client::wire::{DeviceNodes, Image, ImageImport, ImageKind, PageQuery};
use futures::StreamExt;
use serde_json::json;
use tempfile::NamedTempFile;

use super::{Context, now};
use crate::args::{ImageAction, ImportKind, ImportNodes};
use crate::attached::pieces;
use crate::connect::{once, surely};
use crate::exit::{Failure, Outcome};
use crate::output::{self, age, bytes};
use crate::progress::Phases;

/// Imports, lists and removes images.
pub(super) async fn images(context: &Context, action: ImageAction) -> Outcome {
    let client = &context.api.client;
    match action {
        ImageAction::Import { name, path, kind, device_nodes, digest } => {
            let kind = match kind {
                ImportKind::Rootfs => ImageKind::Rootfs,
                ImportKind::Kernel => ImageKind::Kernel,
            };
            let device_nodes = match device_nodes {
                ImportNodes::Refuse => DeviceNodes::Refuse,
                ImportNodes::Skip => DeviceNodes::Skip,
                ImportNodes::Keep => DeviceNodes::Keep,
            };
            import(context, &path, ImageImport { name, kind, digest, device_nodes }).await?
        }
        ImageAction::Ls => list(context).await?,
        ImageAction::Rm { names } => {
            for name in &names {
                let mutation = once()?;
                surely(async || client.remove_image(name, &mutation).await).await?;
                if !context.output.json {
                    output::line(name)?;
                }
            }
            if context.output.json {
                context.output.json(&json!({ "removed": names }))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn import(context: &Context, path: &Path, request: ImageImport) -> Result<(), Failure> {
    let mut phases = Phases::start(context.output, &request.name);
    let cannot = |error: std::io::Error| Failure::io(format!("{} cannot be read", path.display()), &error);
    // Kept until the upload is over.
    let mut _packed = None;
    let archive: ByteStream = if path == Path::new("-") {
        pieces(tokio::io::stdin()).boxed()
    } else {
        let mut file = path.to_owned();
        let is_folder = tokio::fs::metadata(path).await.map_err(cannot)?.is_dir();
        if is_folder && request.kind == ImageKind::Kernel {
            return Err(Failure::usage(format!("{} is a folder; a kernel is a file.", path.display())));
        }
        if is_folder {
            phases.phase("packing the folder");
            let packed = crate::pack::folder(path).await?;
            file = packed.path().to_owned();
            _packed = Some::<NamedTempFile>(packed);
        }
        pieces(tokio::fs::File::open(&file).await.map_err(cannot)?).boxed()
    };
    phases.phase("uploading");
    let mutation = once()?;
    let mut updates = context.api.client.import_image(&request, archive, &mutation).await?;
    while let Some(update) = updates.next().await {
        let update = update?;
        if let Some(progress) = update.progress {
            phases.phase(&output::printable(&progress));
        }
        if let Some(image) = update.image {
            phases.finish();
            return match context.output.json {
                true => context.output.json(&image),
                false => {
                    output::line(format!("{}  {}  {}", image.name, image.digest, bytes(image.size_bytes)))
                }
            };
        }
    }
    Err(Failure::failed("The import ended without an image.")
        .advise("See whether it is there: `flames image ls`."))
}

async fn list(context: &Context) -> Result<(), Failure> {
    let mut query = PageQuery { cursor: None, limit: Some(200) };
    let mut images: Vec<Image> = Vec::new();
    loop {
        let page = context.api.client.list_images(&query).await?;
        images.extend(page.items);
        match page.next_cursor {
            Some(cursor) => query.cursor = Some(cursor),
            None => break,
        }
    }
    if context.output.json {
        return context.output.json(&images);
    }
    if context.output.quiet {
        return images.iter().try_for_each(|image| output::line(&image.name));
    }
    let row = |image: &Image| {
        let defaults = &image.defaults;
        let words = defaults.entrypoint.iter().chain(&defaults.cmd);
        vec![
            image.name.clone(),
            image.kind.as_str().to_owned(),
            bytes(image.size_bytes),
            words.map(String::as_str).collect::<Vec<_>>().join(" "),
            age(now(), image.created_at),
            image.digest.chars().take("sha256:".len() + 12).collect(),
        ]
    };
    let rows = images.iter().map(row).collect();
    context.output.table(&["name", "kind", "size", "command", "age", "digest"], rows)
}
