//! One segment of the merged image in 16 bytes, which fit a pair of registers.

use std::num::NonZeroU64;

use super::joiner::Run;

/// Bits of a position inside a layer's file, in sectors.
const MOFFSET_BITS: u32 = 40;

/// The layer is above the position, the length above the layer.
const LAYER_SHIFT: u32 = MOFFSET_BITS;
const LENGTH_SHIFT: u32 = 48;

/// Size that the LSMT file of a layer must not exceed, in bytes: 512 TiB.
pub const LAYER_BYTES_LIMIT: u64 = crate::block::SECTOR_BYTES << MOFFSET_BITS;

/// Longest segment in sectors.
pub(super) const LENGTH_LIMIT: u64 = (1 << (u64::BITS - LENGTH_SHIFT)) - 1;

/// A segment of the merged image. All positions and lengths are in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    end: u64,
    /// Position, layer and length in one word; never zero, since a length never is.
    place: NonZeroU64,
}

impl Mapping {
    /// `None` for an empty run. The caller has checked the position and the length.
    pub(super) fn new(run: &Run) -> Option<Self> {
        debug_assert!(run.moffset < 1 << MOFFSET_BITS && run.len <= LENGTH_LIMIT);
        let place = run.moffset | u64::from(run.layer) << LAYER_SHIFT | run.len << LENGTH_SHIFT;
        (run.len > 0)
            .then(|| NonZeroU64::new(place))
            .flatten()
            .map(|place| Self { end: run.start + run.len, place })
    }

    /// First sector on the device.
    #[must_use]
    #[inline]
    pub fn start(self) -> u64 {
        self.end - (self.place.get() >> LENGTH_SHIFT)
    }

    /// One past the last sector on the device.
    #[must_use]
    #[inline]
    pub fn end(self) -> u64 {
        self.end
    }

    /// Position of the layer from the top of the stack, 0 being the highest.
    #[must_use]
    #[inline]
    pub fn layer(self) -> u8 {
        let [_, _, _, _, _, layer, _, _] = self.place.get().to_le_bytes();
        layer
    }

    /// First sector in the layer's LSMT file.
    #[must_use]
    #[inline]
    pub fn moffset(self) -> u64 {
        self.place.get() & ((1 << MOFFSET_BITS) - 1)
    }
}
