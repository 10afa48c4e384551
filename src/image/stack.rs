//! The parts of an open image that all its devices and queues share.

use super::{decoded::DecodedBlocks, index::Index, layer::Layer, metrics::ImageMetrics};

/// Immutable but for its counters and its cache.
#[derive(Debug)]
pub(super) struct Stack {
    /// The highest first, as the index numbers them.
    pub(super) layers: Box<[Layer]>,
    pub(super) index: Index,
    pub(super) decoded: Option<DecodedBlocks>,
    pub(super) metrics: ImageMetrics,
}

impl Stack {
    /// The layer that the index means.
    pub(super) fn layer(&self, rank: u8) -> Option<&Layer> {
        self.layers.get(usize::from(rank))
    }
}
