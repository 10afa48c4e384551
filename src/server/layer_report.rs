//! What single layer files say of themselves, and whether it is true.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use super::{
    failure::{Failure, FailureClass, class_of_data_error, full_text},
    layers::unreadable,
    service::Service,
};
use crate::{
    format::{uuid::Uuid, zfile::Algorithm},
    image::{Compression, ImageError, Layer, LayerDescription, VerifyReport},
    reactor::Reactor,
    source::FileSource,
};

/// A layer file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its path.
    pub name: String,
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// Whether a tar envelope is around it.
    pub tar_envelope: bool,
    /// How it is compressed, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionReport>,
    /// Size of the LSMT file inside, in bytes.
    pub content_bytes: u64,
    /// Size of the device that it describes, in bytes; 0 where the layers below decide.
    pub virtual_size_bytes: u64,
    /// Segments of its index, padding left out.
    pub segments: usize,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The name of the layer below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_uuid: Option<String>,
    /// Free text of whoever made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user_tag: String,
}

/// How a layer is compressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressionReport {
    /// `lz4` or `zstd`.
    pub algorithm: String,
    /// Content of a block in bytes.
    pub block_bytes: u32,
    /// Number of blocks.
    pub blocks: u32,
    /// Whether each block has a checksum.
    pub checksums: bool,
}

/// A layer file that was read to its end and found right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The layer.
    pub layer: LayerReport,
    /// Blocks that were decoded.
    pub blocks: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Whether it has checksums, without which only its structure could be checked.
    pub checksums: bool,
}

/// How far a check has come. Bytes; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Done so far.
    pub done_bytes: AtomicU64,
    /// To be done in all, 0 until it is known.
    pub total_bytes: AtomicU64,
}

/// Opens the layer file at `path` and says what it is.
///
/// # Errors
/// When it cannot be read or breaks a rule.
pub async fn inspect(service: &Service, path: &Path) -> Result<LayerReport, Failure> {
    let layer = with_layer(service, path, |_, layer| async move { Ok(layer.description().clone()) }).await?;
    Ok(LayerReport::from(&layer))
}

/// Reads all of the layer file at `path` and checks what can be checked.
///
/// # Errors
/// When it cannot be read or breaks a rule; all damaged blocks are named, as far as a message can hold them.
pub async fn verify(
    service: &Service,
    path: &Path,
    progress: Arc<VerifyProgress>,
) -> Result<Verified, Failure> {
    let (description, report) = with_layer(service, path, |reactor, layer| async move {
        let told = |done_bytes, total_bytes| {
            progress.done_bytes.store(done_bytes, Ordering::Relaxed);
            progress.total_bytes.store(total_bytes, Ordering::Relaxed);
        };
        let report = layer.verify(&reactor, told).await?;
        Ok((layer.description().clone(), report))
    })
    .await?;
    if report.damaged_count > 0 {
        return Err(damaged(&description.name, &report));
    }
    Ok(Verified {
        layer: LayerReport::from(&description),
        blocks: report.blocks,
        read_bytes: report.read_bytes,
        checksums: report.checksums,
    })
}

/// Opens the layer file on a reactor and lets `act` work with it there.
async fn with_layer<T, A, F>(service: &Service, path: &Path, act: A) -> Result<T, Failure>
where
    T: Send + 'static,
    A: FnOnce(Reactor, Layer) -> F + Send + 'static,
    F: Future<Output = Result<T, ImageError>>,
{
    let source = Arc::new(FileSource::open(path).map_err(|source| unreadable(path, source))?);
    let done = service.reactors().one().call(move |reactor| async move {
        let (layer, _) = Layer::open(&reactor, source).await?;
        act(reactor, layer).await
    });
    done.await
        .map_err(|_| Failure::new(FailureClass::Internal, "the reactor has stopped"))?
        .map_err(|error| Failure::with_source(class_of_data_error(&error), "cannot use the layer", error))
}

fn damaged(name: &str, report: &VerifyReport) -> Failure {
    let mut text = format!("{name}: {} of {} blocks are damaged", report.damaged_count, report.blocks);
    for block in &report.damaged {
        text.push_str(&format!("\n  at offset {}: {}", block.offset, full_text(&block.error)));
    }
    Failure::new(FailureClass::Image, text)
}

impl From<&LayerDescription> for LayerReport {
    fn from(layer: &LayerDescription) -> Self {
        Self {
            name: layer.name.clone(),
            size_bytes: layer.blob_bytes,
            tar_envelope: layer.tar_envelope,
            compression: layer.compression.as_ref().map(CompressionReport::from),
            content_bytes: layer.content_bytes,
            virtual_size_bytes: layer.virtual_size_bytes,
            segments: layer.segments,
            uuid: named(layer.uuid),
            parent_uuid: named(layer.parent_uuid),
            user_tag: layer.user_tag.clone(),
        }
    }
}

impl From<&Compression> for CompressionReport {
    fn from(compression: &Compression) -> Self {
        Self {
            algorithm: algorithm(compression.algorithm).to_owned(),
            block_bytes: compression.block_bytes,
            blocks: compression.blocks,
            checksums: compression.checksums,
        }
    }
}

/// The compressor's name as people write it.
pub(super) fn algorithm(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Lz4 => "lz4",
        Algorithm::Zstd => "zstd",
    }
}

fn named(uuid: Option<Uuid>) -> Option<String> {
    uuid.filter(|uuid| !uuid.is_null()).map(|uuid| uuid.to_string())
}
