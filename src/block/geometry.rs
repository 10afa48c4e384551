//! What a device says of itself: its size, block sizes and abilities.

use super::{ByteRange, SECTOR_BYTES};

/// The shape of a device. All sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the device; a multiple of the logical block size.
    pub size_bytes: u64,
    /// Smallest unit of a request: 512 or 4096.
    pub logical_block_bytes: u32,
    /// Unit that is served without a read-modify-write or a second decode; at least the logical one.
    pub physical_block_bytes: u32,
    /// Preferred size of a request, a hint.
    pub optimal_io_bytes: u32,
    /// Takes no writes.
    pub read_only: bool,
    /// Can make ranges read as zeroes cheaply.
    pub discard: bool,
}

/// Why a geometry or a request against it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// A block size is not a power of two of at least 512 bytes.
    #[error("block size {0} is not a power of two of at least 512 bytes")]
    BlockSize(u32),
    /// The size is not a multiple of the logical block.
    #[error("device size {size_bytes} is not a multiple of the {block_bytes}-byte logical block")]
    Size {
        /// The device's size in bytes.
        size_bytes: u64,
        /// The logical block in bytes.
        block_bytes: u32,
    },
    /// A request is not made of whole logical blocks.
    #[error("request at {offset}, {len} bytes, is not aligned to {block_bytes} bytes")]
    Unaligned {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The logical block in bytes.
        block_bytes: u32,
    },
    /// A request reaches past the end.
    #[error("request at {offset}, {len} bytes, is outside the device of {size_bytes} bytes")]
    Outside {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The device's size in bytes.
        size_bytes: u64,
    },
}

impl Geometry {
    /// A read-only device of `size_bytes` with blocks of `block_bytes`.
    #[must_use]
    pub fn read_only(size_bytes: u64, block_bytes: u32) -> Self {
        Self {
            size_bytes,
            logical_block_bytes: block_bytes,
            physical_block_bytes: block_bytes.max(4096),
            optimal_io_bytes: 0,
            read_only: true,
            discard: false,
        }
    }

    /// Checks that the fields agree with one another.
    ///
    /// # Errors
    /// The first rule that they break.
    pub fn validate(&self) -> Result<(), GeometryError> {
        for block_bytes in [self.logical_block_bytes, self.physical_block_bytes] {
            if !block_bytes.is_power_of_two() || u64::from(block_bytes) < SECTOR_BYTES {
                return Err(GeometryError::BlockSize(block_bytes));
            }
        }
        if !self.size_bytes.is_multiple_of(u64::from(self.logical_block_bytes)) {
            return Err(GeometryError::Size {
                size_bytes: self.size_bytes,
                block_bytes: self.logical_block_bytes,
            });
        }
        Ok(())
    }

    /// Checks a request of `len` bytes at `offset` and returns its range.
    ///
    /// # Errors
    /// [`GeometryError::Unaligned`] or [`GeometryError::Outside`].
    pub fn check(&self, offset: u64, len: u64) -> Result<ByteRange, GeometryError> {
        let block = u64::from(self.logical_block_bytes);
        if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(GeometryError::Unaligned { offset, len, block_bytes: self.logical_block_bytes });
        }
        match ByteRange::new(offset, len) {
            Ok(range) if range.end() <= self.size_bytes => Ok(range),
            _ => Err(GeometryError::Outside { offset, len, size_bytes: self.size_bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_outside_or_askew_is_refused() {
        let geometry = Geometry::read_only(1 << 20, 4096);
        assert!(geometry.validate().is_ok());
        assert_eq!(geometry.check(0, 1 << 20).unwrap().len(), 1 << 20);
        assert!(matches!(geometry.check(512, 4096), Err(GeometryError::Unaligned { .. })));
        assert!(matches!(geometry.check(1 << 20, 4096), Err(GeometryError::Outside { .. })));
        assert!(matches!(geometry.check(u64::MAX - 4095, 4096), Err(GeometryError::Outside { .. })));
    }

    #[test]
    fn a_size_that_is_no_multiple_of_the_block_is_refused() {
        assert!(matches!(Geometry::read_only(4097, 512).validate(), Err(GeometryError::Size { .. })));
        assert!(matches!(Geometry::read_only(4096, 100).validate(), Err(GeometryError::BlockSize(100))));
    }
}
