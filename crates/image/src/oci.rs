//! Images of the OCI layout (folder or archive) and of `docker save`: the documents, and their layers applied in order.
//!
//! Formats: OCI image specification 1.1 (image layout, index, manifest, configuration) and the Docker image specification 1.2
//! (`manifest.json`). Every blob's SHA-256 is checked against the document that names it, and every layer's unpacked bytes against
//! the configuration's `diff_ids`.

use std::collections::BTreeMap;
use std::str::FromStr;

use flames_blob::Digest;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::archive::layer::Filling;
use crate::bundle::Bundle;
use crate::config::ImageConfig;
use crate::error::{ImageError, ImageErrorKind, Result};

/// The longest JSON document of an image, in bytes (registries allow 4 MiB for a manifest).
const LONGEST_DOCUMENT: u64 = 4 << 20;
/// How many indexes may lie in one another.
const INDEX_DEPTH: usize = 4;

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<Execution>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// One layer to apply: where it lies, and what its document says of it.
struct Layer {
    name: String,
    digest: Option<Digest>,
    size: Option<u64>,
    diff_id: Digest,
}

/// Which image of several, and for which processor.
pub(crate) struct Choice<'a> {
    pub(crate) reference: Option<&'a str>,
    pub(crate) architecture: &'a str,
}

/// Applies the image's layers to the tree and answers its configuration. `progress` is told the layer's number from 1, the number
/// of layers and the bytes unpacked.
pub(crate) fn fill_from_bundle(
    filling: &mut Filling,
    bundle: &Bundle,
    choice: &Choice<'_>,
    progress: &mut dyn FnMut(usize, usize, u64),
) -> Result<ImageConfig> {
    let (configuration, layers) =
        if bundle.has("index.json") { open_layout(bundle, choice)? } else { open_saved(bundle, choice)? };
    if layers.len() > filling.limits.layers {
        return Err(ImageError::too_large(format!(
            "the image has {} layers; at most {} are allowed",
            layers.len(),
            filling.limits.layers
        )));
    }
    if configuration.os != "linux" && !configuration.os.is_empty() {
        return Err(ImageError::unsupported(format!("the image is for {:?}, not Linux", configuration.os)));
    }
    if configuration.architecture != choice.architecture && !configuration.architecture.is_empty() {
        return Err(ImageError::unsupported(format!(
            "the image is for {:?}, and {:?} is wanted",
            configuration.architecture, choice.architecture
        )));
    }
    for (index, layer) in layers.iter().enumerate() {
        filling.tree.begin_layer();
        let file = bundle.open(&layer.name)?;
        let mut tell = |bytes| progress(index + 1, layers.len(), bytes);
        let read = filling.apply(file, true, &mut tell)?;
        let sound = layer.digest.is_none_or(|digest| digest == read.digest)
            && layer.size.is_none_or(|size| size == read.size)
            && layer.diff_id == read.unpacked_digest;
        if !sound {
            return Err(mismatch(&layer.name));
        }
    }
    config_of(configuration)
}

fn mismatch(name: &str) -> ImageError {
    ImageError::new(
        ImageErrorKind::DigestMismatch,
        "the bytes do not have the digest and size that the image states",
    )
    .at(name.as_bytes())
}

fn digest(text: &str) -> Result<Digest> {
    Digest::from_str(text).map_err(|_| {
        ImageError::unsupported("a digest is not `sha256:` with 64 hex digits").at(text.as_bytes())
    })
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        ImageError::malformed(format!("not the document expected: {error}")).at(name.as_bytes())
    })
}

/// Reads a document that a descriptor names, checking size and digest.
fn document<T: DeserializeOwned>(bundle: &Bundle, descriptor: &Descriptor) -> Result<T> {
    let wanted = digest(&descriptor.digest)?;
    let name = blob_name(&wanted);
    let bytes = bundle.read(&name, LONGEST_DOCUMENT)?;
    if bytes.len() as u64 != descriptor.size || Digest::from_bytes(Sha256::digest(&bytes).into()) != wanted {
        return Err(mismatch(&name));
    }
    parse(&name, &bytes)
}

fn open_layout(bundle: &Bundle, choice: &Choice<'_>) -> Result<(Configuration, Vec<Layer>)> {
    let mut index: Index = parse("index.json", &bundle.read("index.json", LONGEST_DOCUMENT)?)?;
    let mut reference = choice.reference;
    for _ in 0..INDEX_DEPTH {
        let chosen = choose(index.manifests, reference, choice.architecture)?;
        if chosen.media_type.contains("image.index") || chosen.media_type.contains("manifest.list") {
            // The name stands in the outermost index only.
            reference = None;
            index = document(bundle, &chosen)?;
            continue;
        }
        let manifest: Manifest = document(bundle, &chosen)?;
        return open_manifest(bundle, manifest);
    }
    Err(ImageError::malformed(format!("the image's indexes lie more than {INDEX_DEPTH} deep")))
}

fn open_manifest(bundle: &Bundle, manifest: Manifest) -> Result<(Configuration, Vec<Layer>)> {
    let configuration: Configuration = document(bundle, &manifest.config)?;
    if configuration.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(ImageError::malformed("manifest and configuration differ in their number of layers"));
    }
    let mut layers = Vec::new();
    for (descriptor, diff_id) in manifest.layers.iter().zip(&configuration.rootfs.diff_ids) {
        if !descriptor.media_type.contains("tar") {
            return Err(ImageError::unsupported(format!(
                "a layer of type {:?} is no file system",
                descriptor.media_type
            )));
        }
        let own = digest(&descriptor.digest)?;
        layers.push(Layer {
            name: blob_name(&own),
            digest: Some(own),
            size: Some(descriptor.size),
            diff_id: digest(diff_id)?,
        });
    }
    Ok((configuration, layers))
}

/// The one manifest that fits the name and the processor.
fn choose(manifests: Vec<Descriptor>, reference: Option<&str>, architecture: &str) -> Result<Descriptor> {
    const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
    let names = |one: &Descriptor| -> Vec<String> {
        let annotations = one.annotations.iter().flatten();
        annotations.filter(|(key, _)| NAMES.contains(&key.as_str())).map(|(_, name)| name.clone()).collect()
    };
    let known: Vec<String> = manifests.iter().flat_map(names).collect();
    let fits = |one: &Descriptor| {
        one.platform.as_ref().is_none_or(|it| it.os == "linux" && it.architecture == architecture)
            && reference.is_none_or(|wanted| names(one).iter().any(|name| name == wanted))
    };
    let mut fitting: Vec<Descriptor> = manifests.into_iter().filter(fits).collect();
    fitting.dedup_by(|a, b| a.digest == b.digest);
    match (fitting.pop(), fitting.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => Err(ImageError::unsupported(format!(
            "there are several images; name one of them: {}",
            crate::error::printable(known.join(", ").as_bytes())
        ))),
        (None, _) => Err(ImageError::new(
            ImageErrorKind::NotFound,
            match reference {
                Some(name) => format!(
                    "there is no image {name:?} for linux/{architecture}; names here: {}",
                    crate::error::printable(known.join(", ").as_bytes())
                ),
                None => format!("there is no image for linux/{architecture}"),
            },
        )),
    }
}

fn open_saved(bundle: &Bundle, choice: &Choice<'_>) -> Result<(Configuration, Vec<Layer>)> {
    if !bundle.has("manifest.json") {
        return Err(ImageError::malformed(
            "neither `index.json` nor `manifest.json`: this is no image of a known form",
        ));
    }
    let mut images: Vec<SavedImage> =
        parse("manifest.json", &bundle.read("manifest.json", LONGEST_DOCUMENT)?)?;
    if let Some(wanted) = choice.reference {
        images.retain(|image| image.repo_tags.iter().flatten().any(|tag| tag == wanted));
    }
    let image = match (images.pop(), images.is_empty()) {
        (Some(image), true) => image,
        (Some(_), false) => {
            return Err(ImageError::unsupported("there are several images; name one by its tag"));
        }
        (None, _) => return Err(ImageError::new(ImageErrorKind::NotFound, "there is no image of that name")),
    };
    let bytes = bundle.read(&image.config, LONGEST_DOCUMENT)?;
    // The file is named after its digest, with `.json` behind it up to Docker 24.
    let stem = image.config.strip_suffix(".json").unwrap_or(&image.config);
    let stem = stem.rsplit('/').next().unwrap_or(stem);
    if Digest::from_bytes(Sha256::digest(&bytes).into()).hex() != stem {
        return Err(mismatch(&image.config));
    }
    let configuration: Configuration = parse(&image.config, &bytes)?;
    if configuration.rootfs.diff_ids.len() != image.layers.len() {
        return Err(ImageError::malformed("manifest and configuration differ in their number of layers"));
    }
    let mut layers = Vec::new();
    for (name, diff_id) in image.layers.into_iter().zip(&configuration.rootfs.diff_ids) {
        layers.push(Layer { name, digest: None, size: None, diff_id: digest(diff_id)? });
    }
    Ok((configuration, layers))
}

fn config_of(configuration: Configuration) -> Result<ImageConfig> {
    let run = configuration.config.unwrap_or_default();
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    let config = ImageConfig {
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        working_dir: set(run.working_dir),
        user: set(run.user),
        exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
        stop_signal: set(run.stop_signal),
        labels: run.labels.unwrap_or_default(),
    };
    if let Some(wrong) = config.env.iter().find(|pair| pair.find('=').is_none_or(|at| at == 0)) {
        return Err(ImageError::malformed(
            "the configuration has an environment entry that is not NAME=value",
        )
        .at(wrong.as_bytes()));
    }
    let texts = config
        .entrypoint
        .iter()
        .chain(&config.cmd)
        .chain(&config.env)
        .chain(&config.working_dir)
        .chain(&config.user);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(ImageError::malformed("the configuration holds a NUL character"));
    }
    Ok(config)
}
