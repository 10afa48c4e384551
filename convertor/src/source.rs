//! Where an image comes from: the documents that are there, and the blobs of layers as streams.

use std::{io::Read, sync::Arc};

use bytes::Bytes;
use serde_json::{Value, json};
use stratabd::{
    format::oci::{Descriptor, Digest, Document, LAYER_COUNT_LIMIT, OciError},
    registry::{Client, FoundDocument, ImageDocuments, ImageReference, Repository},
    server::{
        failure::{Failure, FailureClass},
        network::failure_of_registry,
    },
};
use tokio::runtime::Handle;

use crate::{
    archive::Archive,
    convert::ConvertProgress,
    docker_archive::DockerArchive,
    layout::{INDEX, Layout, MARK, Wanted},
    place::Place,
    remote::RemoteReader,
};

/// What layers of ordinary images are, each also with a suffix for a compression, which is told by the bytes.
const LAYER_MEDIA_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
/// The suffix of layers that only who has a key can read.
const ENCRYPTED: &str = "+encrypted";

/// A place that has what was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// What it was asked for as.
    pub(crate) name: String,
    origin: Origin,
}

#[derive(Debug, Clone)]
enum Origin {
    Registry { client: Client, repository: Repository, reference: ImageReference },
    Layout { layout: Layout, wanted: Wanted },
    DockerArchive(DockerArchive),
}

/// An image.
#[derive(Debug, Clone)]
pub(crate) struct SourceImage {
    /// What it was asked for as.
    pub(crate) name: String,
    /// Digest of its manifest.
    pub(crate) digest: Digest,
    pub(crate) documents: ImageDocuments,
    /// The blobs of its layers, the lowest first.
    pub(crate) layers: Vec<Descriptor>,
    /// What an index says of it: at least what it runs on.
    pub(crate) entry: Value,
    source: Source,
}

impl Source {
    /// Looks for what `place` names, and reads none of it.
    pub(crate) fn open(place: &Place, client: &Client) -> Result<Self, Failure> {
        let origin = match place {
            Place::Registry(reference) => {
                let repository = client
                    .repository(reference)
                    .map_err(|error| failure_of_registry(format!("cannot read {reference}"), error))?;
                Origin::Registry { client: client.clone(), repository, reference: reference.clone() }
            }
            Place::Layout { folder, name } => {
                Origin::Layout { layout: Layout::open(folder)?, wanted: name.as_deref().into() }
            }
            Place::LayoutArchive { file, name } => Origin::Layout {
                layout: Layout::in_archive(Archive::open(file)?)?,
                wanted: name.as_deref().into(),
            },
            // What docker saves nowadays is both, and the layout is the one that has the digests.
            Place::DockerArchive { file, reference } => match Archive::open(file)? {
                archive if archive.has(MARK) && archive.has(INDEX) => Origin::Layout {
                    layout: Layout::in_archive(archive)?,
                    wanted: reference.clone().map_or(Wanted::Only, Wanted::Tagged),
                },
                archive => Origin::DockerArchive(DockerArchive::open(archive, reference.as_ref())?),
            },
        };
        Ok(Self { name: place.to_string(), origin })
    }

    /// What lies under the name: a manifest, or an index.
    pub(crate) async fn root(&self) -> Result<FoundDocument, Failure> {
        match &self.origin {
            Origin::Registry { client, reference, .. } => {
                let found = client.document(reference).await;
                found.map_err(|error| failure_of_registry(format!("cannot read {reference}"), error))
            }
            Origin::Layout { layout, wanted } => layout.root(wanted),
            Origin::DockerArchive(archive) => archive.root(),
        }
    }

    /// A manifest or an index that an index names.
    pub(crate) async fn document(&self, digest: Digest) -> Result<FoundDocument, Failure> {
        match &self.origin {
            Origin::Registry { client, reference, .. } => {
                let pinned = reference.pinned(digest);
                let reference: ImageReference = pinned.parse().map_err(|error| {
                    Failure::with_source(FailureClass::Internal, format!("{pinned} is no reference"), error)
                })?;
                let found = client.document(&reference).await;
                found.map_err(|error| failure_of_registry(format!("cannot read {reference}"), error))
            }
            Origin::Layout { layout, .. } => layout.found(digest),
            // It has no index.
            Origin::DockerArchive(archive) => archive.root(),
        }
    }

    /// The image whose manifest is `found`, of which an index has said `entry`.
    pub(crate) async fn image(
        &self,
        found: FoundDocument,
        entry: Option<Value>,
    ) -> Result<SourceImage, Failure> {
        let manifest = found.bytes;
        let config = match &self.origin {
            Origin::Registry { client, repository, reference } => {
                let config = client.image_config(repository, manifest.clone()).await;
                config.map_err(|error| failure_of_registry(format!("cannot read {reference}"), error))?
            }
            Origin::Layout { layout, .. } => {
                let (config, _) = ImageDocuments::config_of(&manifest).map_err(unusable(&self.name))?;
                Bytes::from(layout.document(config)?)
            }
            Origin::DockerArchive(archive) => archive.config(),
        };
        let platform = entry.as_ref().and_then(|entry| entry.get("platform")).filter(|it| it.is_object());
        let platform = platform.cloned().unwrap_or_else(|| platform_of(&config));
        let mut entry = entry.filter(Value::is_object).unwrap_or_else(|| json!({}));
        if let Some(members) = entry.as_object_mut() {
            members.insert("platform".to_owned(), platform);
        }
        let layers = match found.document {
            Document::Manifest(manifest) => manifest.layers,
            Document::Index(_) => Vec::new(),
        };
        let documents = ImageDocuments { manifest, config };
        let source = self.clone();
        Ok(SourceImage { name: self.name.clone(), digest: found.digest, documents, layers, entry, source })
    }
}

impl SourceImage {
    /// The bytes of a layer's blob, from its start to its end, or until `progress` is to end. To be read on a thread that is none of `runtime`.
    pub(crate) fn open_blob(
        &self,
        layer: &Descriptor,
        (runtime, progress): (&Handle, &Arc<ConvertProgress>),
    ) -> Result<Box<dyn Read + Send>, Failure> {
        match &self.source.origin {
            Origin::Layout { layout, .. } => layout.open_blob(layer.digest),
            Origin::DockerArchive(archive) => Ok(Box::new(archive.open_blob(layer.digest)?)),
            Origin::Registry { client, repository, .. } => {
                let blob = client.blob(repository, layer.digest, layer.size_bytes);
                Ok(Box::new(RemoteReader::new(blob, runtime.clone(), Arc::clone(progress))))
            }
        }
    }

    /// Says what keeps it from being converted: that it needs no conversion, or can have none.
    pub(crate) fn require_ordinary(&self) -> Result<(), Failure> {
        let name = &self.name;
        let wrong = |error: OciError| {
            Failure::with_source(FailureClass::Image, format!("{name} cannot be converted"), error)
        };
        let Document::Manifest(manifest) = Document::decode(&self.documents.manifest).map_err(wrong)? else {
            let text = format!("{name} cannot be converted: it is an index");
            return Err(Failure::new(FailureClass::Image, text));
        };
        match manifest.layers() {
            Err(OciError::Ordinary) => {}
            Ok(_) => {
                let text = format!("{name} is an overlaybd image already: add it as it is");
                return Err(Failure::new(FailureClass::Conflict, text));
            }
            Err(error) => return Err(wrong(error)),
        }
        if self.layers.len() > LAYER_COUNT_LIMIT {
            return Err(wrong(OciError::TooManyLayers(self.layers.len())));
        }
        for (number, layer) in self.layers.iter().enumerate() {
            let media_type = layer.media_type.as_str();
            let is_known = LAYER_MEDIA_TYPES.iter().any(|known| media_type.starts_with(known));
            if !is_known || media_type.ends_with(ENCRYPTED) {
                let shown: String = media_type.chars().take(128).collect();
                let text = format!(
                    "{name} cannot be converted: layer {number} is of type {shown:?}, no plain layer of files"
                );
                return Err(Failure::new(FailureClass::Image, text));
            }
        }
        Ok(())
    }
}

/// What an index would say of an image with this configuration.
fn platform_of(config: &[u8]) -> Value {
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    let keys = ["os", "architecture", "variant", "os.version", "os.features"];
    let found = keys.iter().filter_map(|key| Some(((*key).to_owned(), config.get(key)?.clone())));
    Value::Object(found.filter(|(_, value)| !value.is_null()).collect())
}

/// What makes an image one that cannot be converted.
pub(crate) fn unusable(name: &str) -> impl Fn(stratabd::registry::NextImageError) -> Failure {
    let text = format!("{name} cannot be converted");
    move |error| Failure::with_source(FailureClass::Image, text.clone(), error)
}
