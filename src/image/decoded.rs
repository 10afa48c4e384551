//! The bounded cache of decoded blocks, shared by all queues and devices of an image.

use std::{
    fmt,
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

use quick_cache::{
    Weighter,
    sync::{Cache, DefaultLifecycle},
};

use super::layer::Layer;

/// A block of a layer, made of the blob's bytes of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlockKey {
    /// Position from the top of the stack.
    pub(super) layer: u8,
    /// The last digits of the layer's generation before the bytes were read. So many refutations of a whole blob take years.
    pub(super) generation: u16,
    /// Number in the layer.
    pub(super) block: u32,
}

impl BlockKey {
    /// The block `number` of the `layer` that is so far from the top of the stack, of what can be read of it from now on.
    #[inline]
    pub(super) fn new(rank: u8, layer: &Layer, number: u32) -> Self {
        let [.., high, low] = layer.generation().to_be_bytes();
        Self { layer: rank, generation: u16::from_be_bytes([high, low]), block: number }
    }
}

impl Hash for BlockKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (generation, layer) = (u64::from(self.generation), u64::from(self.layer));
        state.write_u64(generation << 40 | layer << 32 | u64::from(self.block));
    }
}

/// Spreads the number of a block over all bits. Whoever could choose numbers that collide has written the image, and slows
/// down only its own reads.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        // The odd number nearest to 2^64 divided by the golden ratio; the high half of the product mixes upwards and is
        // folded down again.
        let product = u128::from(self.0 ^ number ^ 0x51_7c_c1_b7) * 0x9e37_79b9_7f4a_7c15;
        let [low, high] = [product, product >> 64].map(|half| half & u128::from(u64::MAX));
        self.0 = u64::try_from(low ^ high).unwrap_or_default();
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
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
    cache: Cache<BlockKey, Arc<[u8]>, ByBytes, BuildHasherDefault<Spread>>,
}

impl DecodedBlocks {
    /// A cache of at most `limit_bytes`, or none where that is zero.
    pub(super) fn new(limit_bytes: u64) -> Option<Self> {
        let entries = usize::try_from(limit_bytes / AVERAGE_BYTES).unwrap_or(usize::MAX);
        let (spread, lifecycle) = (BuildHasherDefault::default(), DefaultLifecycle::default());
        (limit_bytes > 0)
            .then(|| Self { cache: Cache::with(entries, limit_bytes, ByBytes, spread, lifecycle) })
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
