//! An image that is converted: its documents, and the blobs of its layers as streams.

use std::{
    collections::VecDeque,
    io::{self, Read},
};

use bytes::Bytes;
use stratabd::{
    block::ByteRange,
    format::oci::{Descriptor, Document, Manifest, OciError, Platform},
    registry::{Client, Digest, ImageDocuments, Priority, RemoteBlob, Reply, Repository},
    server::{
        failure::{Failure, FailureClass},
        network::failure_of_registry,
    },
};
use tokio::runtime::Handle;

use crate::{layout::Layout, place::Place};

/// Bytes that are asked for at once.
const RANGE_BYTES: u64 = 4 << 20;
/// Ranges that are asked for ahead, of which a reader waits for the first.
const RANGES_AHEAD: usize = 3;
/// What layers of ordinary images are, each also with a suffix for a compression, which is told by the bytes.
const LAYER_MEDIA_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
/// The suffix of layers that only who has a key can read.
const ENCRYPTED: &str = "+encrypted";

/// An ordinary image.
#[derive(Debug, Clone)]
pub(crate) struct SourceImage {
    /// What it was asked for as.
    pub(crate) name: String,
    /// Digest of its manifest.
    pub(crate) digest: Digest,
    pub(crate) documents: ImageDocuments,
    /// The blobs of its layers, the lowest first.
    pub(crate) layers: Vec<Descriptor>,
    origin: Origin,
}

#[derive(Debug, Clone)]
enum Origin {
    Registry { client: Client, repository: Repository },
    Layout(Layout),
}

impl SourceImage {
    /// Reads the documents of the image at `place`; of several, that for `platform`.
    pub(crate) async fn open(place: &Place, client: &Client, platform: &Platform) -> Result<Self, Failure> {
        let name = place.to_string();
        let (digest, documents, origin) = match place {
            Place::Registry(reference) => {
                let failed = |error| failure_of_registry(format!("cannot read {reference}"), error);
                let repository = client.repository(reference).map_err(failed)?;
                let found = client.manifest(reference, platform).await.map_err(failed)?;
                let config = client.image_config(&repository, found.bytes.clone()).await.map_err(failed)?;
                let documents = ImageDocuments { manifest: found.bytes, config };
                (found.digest, documents, Origin::Registry { client: client.clone(), repository })
            }
            Place::Layout { folder, name } => {
                let layout = Layout::open(folder)?;
                let found = layout.manifest(name.as_deref(), platform)?;
                let manifest = Bytes::from(found.bytes);
                let (config, _) =
                    ImageDocuments::config_of(&manifest).map_err(unusable(&place.to_string()))?;
                let config = Bytes::from(layout.document(config)?);
                (found.digest, ImageDocuments { manifest, config }, Origin::Layout(layout))
            }
        };
        let layers = ordinary_layers(&name, &documents.manifest)?;
        Ok(Self { name, digest, documents, layers, origin })
    }

    /// The bytes of a layer's blob, from its start to its end. To be read on a thread that is none of `runtime`.
    pub(crate) fn open_blob(
        &self,
        layer: &Descriptor,
        runtime: &Handle,
    ) -> Result<Box<dyn Read + Send>, Failure> {
        match &self.origin {
            Origin::Layout(layout) => Ok(Box::new(layout.open_blob(layer.digest)?)),
            Origin::Registry { client, repository } => {
                let blob = client.blob(repository, layer.digest, layer.size_bytes);
                Ok(Box::new(RemoteReader::new(blob, runtime.clone())))
            }
        }
    }
}

/// The layers of an image that is to be converted; one that needs no conversion, or can have none, is an error.
fn ordinary_layers(name: &str, manifest: &[u8]) -> Result<Vec<Descriptor>, Failure> {
    let wrong = |error: OciError| {
        Failure::with_source(FailureClass::Image, format!("{name} cannot be converted"), error)
    };
    let Document::Manifest(manifest) = Document::decode(manifest).map_err(wrong)? else {
        return Err(Failure::new(FailureClass::Image, format!("{name} cannot be converted: it is an index")));
    };
    match manifest.layers() {
        Err(OciError::Ordinary) => {}
        Ok(_) => {
            let text = format!("{name} is an overlaybd image already: add it as it is");
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        Err(error) => return Err(wrong(error)),
    }
    let Manifest { layers, .. } = manifest;
    for (number, layer) in layers.iter().enumerate() {
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
    Ok(layers)
}

/// What makes an image one that cannot be converted.
pub(crate) fn unusable(name: &str) -> impl Fn(stratabd::registry::NextImageError) -> Failure {
    let text = format!("{name} cannot be converted");
    move |error| Failure::with_source(FailureClass::Image, text.clone(), error)
}

/// A blob of a registry, read from its start to its end, some ranges ahead.
struct RemoteReader {
    blob: RemoteBlob,
    runtime: Handle,
    /// Where the next range begins.
    next: u64,
    asked: VecDeque<Reply<Bytes>>,
    arrived: Bytes,
}

impl RemoteReader {
    fn new(blob: RemoteBlob, runtime: Handle) -> Self {
        Self { blob, runtime, next: 0, asked: VecDeque::new(), arrived: Bytes::new() }
    }

    fn ask(&mut self) {
        while self.asked.len() < RANGES_AHEAD && self.next < self.blob.size_bytes() {
            let end = self.next.saturating_add(RANGE_BYTES).min(self.blob.size_bytes());
            self.asked.push_back(self.blob.read_range(ByteRange::between(self.next, end), Priority::Demand));
            self.next = end;
        }
    }
}

impl Read for RemoteReader {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        self.ask();
        if self.arrived.is_empty()
            && let Some(first) = self.asked.pop_front()
        {
            self.arrived = self.runtime.block_on(first).map_err(io::Error::other)?;
        }
        let count = dest.len().min(self.arrived.len());
        let bytes = self.arrived.split_to(count);
        if let Some(dest) = dest.get_mut(..count) {
            dest.copy_from_slice(&bytes);
        }
        Ok(count)
    }
}
