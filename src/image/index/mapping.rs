//! One segment of the merged image in 16 bytes, which fit a pair of registers.

use std::num::NonZeroU64;

/// Bits of a position inside a layer's file, in sectors.
const MOFFSET_BITS: u32 = 40;

/// The layer is above the position, the length above the layer.
const LAYER_SHIFT: u32 = MOFFSET_BITS;
const LENGTH_SHIFT: u32 = 48;

/// Size that the LSMT file of a layer must not exceed, in bytes: 512 TiB.
pub const LAYER_BYTES_LIMIT: u64 = crate::block::SECTOR_BYTES << MOFFSET_BITS;

/// Position, layer and length in one word; never zero, since a length never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(NonZeroU64);

impl Place {
    /// Longest segment in sectors.
    pub(super) const LENGTH_LIMIT: u64 = (1 << (u64::BITS - LENGTH_SHIFT)) - 1;

    /// `None` for an empty segment. The caller has checked the position and the length.
    pub(super) fn new(moffset: u64, layer: u8, len: u64) -> Option<Self> {
        debug_assert!(moffset < 1 << MOFFSET_BITS && len <= Self::LENGTH_LIMIT);
        NonZeroU64::new(moffset | u64::from(layer) << LAYER_SHIFT | len << LENGTH_SHIFT).map(Self)
    }
}

/// A segment of the merged image. All positions and lengths are in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    start: u64,
    place: Place,
}

impl Mapping {
    #[inline]
    pub(super) fn ending_at(last: u64, place: Place) -> Self {
        Self { start: last + 1 - (place.0.get() >> LENGTH_SHIFT), place }
    }

    /// First sector on the device.
    #[must_use]
    #[inline]
    pub fn start(self) -> u64 {
        self.start
    }

    /// One past the last sector on the device.
    #[must_use]
    #[inline]
    pub fn end(self) -> u64 {
        self.start + (self.place.0.get() >> LENGTH_SHIFT)
    }

    /// Position of the layer from the top of the stack, 0 being the highest.
    #[must_use]
    #[inline]
    pub fn layer(self) -> u8 {
        let [_, _, _, _, _, layer, _, _] = self.place.0.get().to_le_bytes();
        layer
    }

    /// First sector in the layer's LSMT file.
    #[must_use]
    #[inline]
    pub fn moffset(self) -> u64 {
        self.place.0.get() & ((1 << MOFFSET_BITS) - 1)
    }
}
