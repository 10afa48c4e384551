//! What `docker save` writes, and before it had layouts: a list of images, each a configuration and the archives of its layers.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use stratabd::{
    format::oci::{DOCUMENT_LIMIT_BYTES, Digest, Document, LAYER_COUNT_LIMIT, OciError},
    registry::{FoundDocument, ImageReference},
    server::failure::{Failure, FailureClass},
};

use crate::{
    archive::{Archive, MemberReader},
    files::Files,
    layer::Compression,
    layout::DOCKER_MANIFEST,
};

const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// As many as show what a layer is compressed with.
const HEAD_BYTES: u64 = 4;

/// One image of an archive.
#[derive(Debug, Clone)]
pub(crate) struct DockerArchive {
    archive: Archive,
    /// The manifest that it would have in a registry.
    manifest: Bytes,
    config: Bytes,
    /// The members that have the blobs of its layers.
    layers: BTreeMap<Digest, String>,
}

/// What the list says of an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl DockerArchive {
    /// The image that `archive` knows by `reference`, or its only one.
    pub(crate) fn open(archive: Archive, reference: Option<&ImageReference>) -> Result<Self, Failure> {
        let files = Files::Archive(archive.clone());
        let limit_bytes = DOCUMENT_LIMIT_BYTES as u64;
        let malformed = |name: &str| {
            let text = format!("{}: malformed", files.shown(name));
            move |error| Failure::with_source(FailureClass::Image, text.clone(), error)
        };
        let list: Vec<Listed> = serde_json::from_slice(&files.read(DOCKER_MANIFEST, limit_bytes)?)
            .map_err(malformed(DOCKER_MANIFEST))?;
        let listed = choose(&archive, list, reference)?;
        let config = Bytes::from(files.read(&listed.config, limit_bytes)?);
        let parsed: Value = serde_json::from_slice(&config).map_err(malformed(&listed.config))?;
        let diff_ids = parsed.pointer("/rootfs/diff_ids").and_then(Value::as_array).cloned();
        let diff_ids = diff_ids.unwrap_or_default();
        let names = listed.layers.unwrap_or_default();
        if names.len() > LAYER_COUNT_LIMIT {
            let error = OciError::TooManyLayers(names.len());
            return Err(Failure::with_source(FailureClass::Image, files.shown(DOCKER_MANIFEST), error));
        }
        if names.len() != diff_ids.len() {
            let text = format!(
                "{}: {} layers for an image whose configuration lists {}",
                files.shown(DOCKER_MANIFEST),
                names.len(),
                diff_ids.len()
            );
            return Err(Failure::new(FailureClass::Image, text));
        }
        let mut layers = BTreeMap::new();
        let mut entries = Vec::new();
        for (name, diff_id) in names.into_iter().zip(diff_ids) {
            let size_bytes = archive.member(&name)?.left_bytes();
            let diff_id = diff_id.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
                let text = format!("{}: a diff id is no digest", files.shown(&listed.config));
                Failure::new(FailureClass::Image, text)
            })?;
            let digest = blob_digest(&archive, &name, diff_id)?;
            entries.push(json!({"mediaType": LAYER_TYPE, "digest": digest.to_string(), "size": size_bytes}));
            layers.insert(digest, name);
        }
        let digest = Digest::from_hash(Sha256::digest(&config).into());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": entries,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest.to_string(), "size": config.len()},
        });
        Ok(Self { archive, manifest: Bytes::from(manifest.to_string()), config, layers })
    }

    /// Its manifest.
    pub(crate) fn root(&self) -> Result<FoundDocument, Failure> {
        let bytes = self.manifest.clone();
        let document = Document::decode(&bytes).map_err(|error| {
            let text = format!("{}: cannot be used", self.archive.path().display());
            Failure::with_source(FailureClass::Image, text, error)
        })?;
        Ok(FoundDocument { digest: Digest::from_hash(Sha256::digest(&bytes).into()), bytes, document })
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> Bytes {
        self.config.clone()
    }

    /// The blob of one of its layers.
    pub(crate) fn open_blob(&self, digest: Digest) -> Result<MemberReader, Failure> {
        let name = self.layers.get(&digest).ok_or_else(|| {
            let text = format!("{}: it has no layer {digest}", self.archive.path().display());
            Failure::new(FailureClass::NotFound, text)
        })?;
        self.archive.member(name)
    }
}

fn choose(
    archive: &Archive,
    list: Vec<Listed>,
    reference: Option<&ImageReference>,
) -> Result<Listed, Failure> {
    let place = archive.path().display();
    let tags = |listed: &Listed| listed.repo_tags.clone().unwrap_or_default();
    let names: Vec<String> = list.iter().flat_map(tags).take(16).collect();
    let means = |listed: &Listed| {
        let is_it = |tag: &String| tag.parse().ok().as_ref() == reference;
        reference.is_none() || tags(listed).iter().any(is_it)
    };
    let mut chosen = list.into_iter().filter(means);
    match (chosen.next(), chosen.next(), reference) {
        (Some(only), None, _) | (Some(only), _, Some(_)) => Ok(only),
        (Some(_), Some(_), None) => {
            let text = format!("{place}: it has several images: give the name of one of {names:?}");
            Err(Failure::new(FailureClass::Usage, text))
        }
        (None, _, None) => Err(Failure::new(FailureClass::NotFound, format!("{place}: it has no image"))),
        (None, _, Some(reference)) => {
            let text = format!("{place}: it has no image {reference}, but {names:?}");
            Err(Failure::new(FailureClass::NotFound, text))
        }
    }
}

/// The digest of a layer's member. As docker writes them it is that of the archive in the layer; other tools compress them, and nothing
/// says what becomes of that.
fn blob_digest(archive: &Archive, name: &str, diff_id: Digest) -> Result<Digest, Failure> {
    let failed = |error: io::Error| {
        let text = format!("{}: {name}: cannot read it", archive.path().display());
        Failure::with_source(FailureClass::Internal, text, error)
    };
    let mut head = Vec::new();
    archive.member(name)?.take(HEAD_BYTES).read_to_end(&mut head).map_err(failed)?;
    if Compression::of(&head) == Compression::None {
        return Ok(diff_id);
    }
    let (mut hash, mut member) = (Sha256::new(), archive.member(name)?);
    io::copy(&mut member, &mut hash).map_err(failed)?;
    Ok(Digest::from_hash(hash.finalize().into()))
}
