//! The bounded cache of decoded blocks, shared by all queues and devices of an image.

use std::{fmt, sync::Arc};

use quick_cache::{Weighter, sync::Cache};

/// A block of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BlockKey {
    /// Position from the top of the stack.
    pub(super) layer: u8,
    /// Number in the layer.
    pub(super) block: u32,
}

/// Bytes that an entry costs beside its content, about.
const ENTRY_BYTES: u64 = 64;

/// Content of an average block, from which the number of entries is estimated.
const AVERAGE_BYTES: u64 = 8 << 10;

#[derive(Clone)]
struct ByBytes;

impl Weighter<BlockKey, Arc<[u8]>> for ByBytes {
    fn weight(&self, _: &BlockKey, block: &Arc<[u8]>) -> u64 {
        block.len() as u64 + ENTRY_BYTES
    }
}

pub(super) struct DecodedBlocks {
    cache: Cache<BlockKey, Arc<[u8]>, ByBytes>,
}

impl DecodedBlocks {
    /// A cache of at most `limit_bytes`, or none where that is zero.
    pub(super) fn new(limit_bytes: u64) -> Option<Self> {
        let entries = usize::try_from(limit_bytes / AVERAGE_BYTES).unwrap_or(usize::MAX);
        (limit_bytes > 0).then(|| Self { cache: Cache::with_weighter(entries, limit_bytes, ByBytes) })
    }

    pub(super) fn get(&self, key: BlockKey) -> Option<Arc<[u8]>> {
        self.cache.get(&key)
    }

    pub(super) fn insert(&self, key: BlockKey, block: &[u8]) {
        self.cache.insert(key, block.into());
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cache.weight()
    }
}

impl fmt::Debug for DecodedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecodedBlocks").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}
