//! The parts of an open image that all its devices and queues share.

use std::sync::Arc;

use super::{decoded::DecodedBlocks, index::Index, layer::Layer, metrics::ImageMetrics, standing::Standing};

/// Immutable but for its counters, its cache, and whether it stands.
#[derive(Debug)]
pub(super) struct OpenImage {
    /// The highest first, as the index numbers them.
    pub(super) layers: Box<[Layer]>,
    pub(super) index: Index,
    pub(super) decoded: Option<DecodedBlocks>,
    pub(super) metrics: ImageMetrics,
    pub(super) standing: Arc<Standing>,
}

impl OpenImage {
    /// The layer that the index means.
    pub(super) fn layer(&self, rank: u8) -> Option<&Layer> {
        self.layers.get(usize::from(rank))
    }

    /// Whether what was made of the layers may be used as far as is known. Where not, [`OpenImage::make_sure`] finds out.
    #[inline]
    pub(super) fn stands(&self) -> bool {
        self.standing.is_certain()
    }
}
