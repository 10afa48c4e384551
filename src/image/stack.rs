//! The parts of an open image that all its devices and queues share.

use std::sync::Arc;

use super::{ImageError, decoded::DecodedBlocks, index::Index, layer::Layer, metrics::ImageMetrics};
use crate::{
    block::{BlockError, ErrorKind},
    source::Refutation,
};

/// Immutable but for its counters and its cache.
#[derive(Debug)]
pub(super) struct Stack {
    /// The highest first, as the index numbers them.
    pub(super) layers: Box<[Layer]>,
    pub(super) index: Index,
    pub(super) decoded: Option<DecodedBlocks>,
    pub(super) metrics: ImageMetrics,
    /// Raised when the digest of a layer refutes the bytes that index and blocks came from.
    pub(super) refutation: Arc<Refutation>,
}

impl Stack {
    /// The layer that the index means.
    pub(super) fn layer(&self, rank: u8) -> Option<&Layer> {
        self.layers.get(usize::from(rank))
    }

    /// Whether what was made of the layers may be used.
    ///
    /// # Errors
    /// When a layer was another blob than its digest says. Index and decoded blocks live as long as the image, and so
    /// that fails whole; who opens it anew gets other bytes.
    #[inline]
    pub(super) fn check_stands(&self) -> Result<(), BlockError> {
        self.refutation.blob().map_or(Ok(()), |blob| Err(refuted(blob)))
    }
}

#[cold]
fn refuted(blob: &str) -> BlockError {
    let cause = ImageError::Refuted { blob: blob.to_owned() };
    BlockError::with_source(ErrorKind::Io, "cannot read the image's data", cause)
}
