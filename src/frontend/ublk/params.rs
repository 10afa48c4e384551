//! What the kernel is told of a device's shape, and what it says of others'.

use std::mem::{offset_of, size_of};

use super::abi::{self, bytes_of, value_at};
use crate::block::{Geometry, SECTOR_BYTES};

/// Largest discard or write-zeroes in sectors: 1 GiB, so that a long one is seen to make progress.
const MAX_ZERO_SECTORS: u32 = 1 << 21;

/// The driver takes no larger logical block than a page.
const LARGEST_LOGICAL_BLOCK_BYTES: u32 = 4096;

/// Positions in a file are signed.
const LARGEST_DEVICE_BYTES: u64 = i64::MAX as u64;

/// Bytes of the parameters before the first that we neither set nor read: both sides cut at the shorter length.
const PARAMETER_BYTES: usize = offset_of!(abi::ublk_params, zoned);

/// A geometry that the kernel cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// A device without a byte is of no use, and some tools take its node for a broken one.
    #[error("the device is empty")]
    Empty,
    /// Larger than any file position.
    #[error("a device of {0} bytes is larger than the kernel can address")]
    TooLarge(u64),
    /// A logical block larger than a page.
    #[error("a logical block of {0} bytes is larger than the driver takes (4096)")]
    LogicalBlock(u32),
    /// A physical block smaller than the logical one.
    #[error("the physical block of {physical} bytes is smaller than the logical one of {logical}")]
    PhysicalBlock {
        /// The physical block in bytes.
        physical: u32,
        /// The logical block in bytes.
        logical: u32,
    },
}

/// What a device was told to be, as its driver reports it. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Size of the device.
    pub size_bytes: u64,
    /// Smallest unit of a request.
    pub logical_block_bytes: u64,
    /// Unit that is served without a read-modify-write.
    pub physical_block_bytes: u64,
    /// Largest request.
    pub max_io_bytes: u64,
    /// Takes no writes.
    pub read_only: bool,
    /// Takes discards.
    pub discard: bool,
    /// Major and minor number of the block device; zero before it is started.
    pub(super) device_number: (u32, u32),
}

/// Checks what the driver, too, would refuse, but without saying why.
pub(super) fn check(geometry: &Geometry) -> Result<(), ShapeError> {
    check_size(geometry.size_bytes)?;
    let (logical, physical) = (geometry.logical_block_bytes, geometry.physical_block_bytes);
    if logical > LARGEST_LOGICAL_BLOCK_BYTES {
        return Err(ShapeError::LogicalBlock(logical));
    }
    if physical < logical {
        return Err(ShapeError::PhysicalBlock { physical, logical });
    }
    Ok(())
}

/// The same for a size alone.
pub(super) fn check_size(size_bytes: u64) -> Result<(), ShapeError> {
    match size_bytes {
        0 => Err(ShapeError::Empty),
        1..=LARGEST_DEVICE_BYTES => Ok(()),
        _ => Err(ShapeError::TooLarge(size_bytes)),
    }
}

/// The payload of SET_PARAMS.
pub(super) fn encode(geometry: &Geometry, max_io_bytes: u32) -> Vec<u8> {
    let physical = shift(geometry.physical_block_bytes);
    let optimal = match geometry.optimal_io_bytes {
        bytes if bytes.is_power_of_two() => shift(bytes).max(physical),
        _ => physical,
    };
    let basic = abi::ublk_param_basic {
        attrs: if geometry.read_only {
            abi::UBLK_ATTR_READ_ONLY
        } else {
            // Writes may sit in the engine until a flush; FUA is taken as such, so that it costs one request, not two.
            abi::UBLK_ATTR_VOLATILE_CACHE | abi::UBLK_ATTR_FUA
        },
        logical_bs_shift: shift(geometry.logical_block_bytes),
        physical_bs_shift: physical,
        io_opt_shift: optimal,
        io_min_shift: physical,
        max_sectors: max_io_bytes >> SECTOR_BYTES.trailing_zeros(),
        chunk_sectors: 0,
        dev_sectors: geometry.size_bytes / SECTOR_BYTES,
        virt_boundary_mask: 0,
    };
    let discards = geometry.discard && !geometry.read_only;
    let discard = abi::ublk_param_discard {
        discard_alignment: 0,
        discard_granularity: geometry.physical_block_bytes,
        max_discard_sectors: MAX_ZERO_SECTORS,
        max_write_zeroes_sectors: MAX_ZERO_SECTORS,
        max_discard_segments: 1,
        reserved0: 0,
    };
    let types = abi::UBLK_PARAM_TYPE_BASIC | if discards { abi::UBLK_PARAM_TYPE_DISCARD } else { 0 };
    let discard = if discards { discard } else { abi::ublk_param_discard::default() };
    let mut bytes = room();
    bytes.truncate(size_of::<u32>());
    bytes.extend_from_slice(bytes_of(&types));
    bytes.extend_from_slice(bytes_of(&basic));
    bytes.extend_from_slice(bytes_of(&discard));
    bytes.extend_from_slice(bytes_of(&abi::ublk_param_devt::default()));
    bytes
}

/// The payload of GET_PARAMS: its length, and room for the rest.
pub(super) fn room() -> Vec<u8> {
    let mut bytes = vec![0; PARAMETER_BYTES];
    let len = u32::try_from(PARAMETER_BYTES).expect("the parameters are some dozens of bytes");
    bytes.splice(..size_of::<u32>(), bytes_of(&len).iter().copied());
    bytes
}

/// Reads the answer to GET_PARAMS; None where it lacks the basic part.
pub(super) fn decode(bytes: &[u8]) -> Option<Shape> {
    let types: u32 = value_at(bytes, offset_of!(abi::ublk_params, types))?;
    let basic: abi::ublk_param_basic = value_at(bytes, offset_of!(abi::ublk_params, basic))?;
    let devt: abi::ublk_param_devt = value_at(bytes, offset_of!(abi::ublk_params, devt))?;
    if types & abi::UBLK_PARAM_TYPE_BASIC == 0 {
        return None;
    }
    let devt = if types & abi::UBLK_PARAM_TYPE_DEVT == 0 { abi::ublk_param_devt::default() } else { devt };
    Some(Shape {
        size_bytes: basic.dev_sectors.saturating_mul(SECTOR_BYTES),
        logical_block_bytes: 1_u64.checked_shl(basic.logical_bs_shift.into())?,
        physical_block_bytes: 1_u64.checked_shl(basic.physical_bs_shift.into())?,
        max_io_bytes: u64::from(basic.max_sectors) * SECTOR_BYTES,
        read_only: basic.attrs & abi::UBLK_ATTR_READ_ONLY != 0,
        discard: types & abi::UBLK_PARAM_TYPE_DISCARD != 0,
        device_number: (devt.disk_major, devt.disk_minor),
    })
}

fn shift(block_bytes: u32) -> u8 {
    u8::try_from(block_bytes.trailing_zeros()).expect("a 32-bit number has at most 32 trailing zeros")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_survives_its_encoding() {
        let geometry = Geometry {
            size_bytes: 10 << 40,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            optimal_io_bytes: 1 << 16,
            read_only: false,
            discard: true,
        };
        let bytes = encode(&geometry, 1 << 20);
        assert_eq!(bytes.len(), room().len());
        assert_eq!(bytes[..4], room()[..4]);
        let shape = decode(&bytes).unwrap();
        assert_eq!((shape.size_bytes, shape.max_io_bytes), (10 << 40, 1 << 20));
        assert_eq!((shape.logical_block_bytes, shape.physical_block_bytes), (512, 4096));
        assert!(!shape.read_only && shape.discard);
        let basic: abi::ublk_param_basic = value_at(&bytes, 8).unwrap();
        assert_eq!((basic.io_opt_shift, basic.io_min_shift), (16, 12));

        let read_only = decode(&encode(&Geometry::read_only(4096, 4096), 4096)).unwrap();
        assert!(read_only.read_only && !read_only.discard);
        assert_eq!(decode(&bytes[..20]), None);
        assert_eq!(decode(&[0; 200]), None);
    }

    #[test]
    fn a_shape_that_the_kernel_cannot_have_is_refused_by_name() {
        let good = Geometry::read_only(1 << 20, 4096);
        assert_eq!(check(&good), Ok(()));
        assert_eq!(check(&Geometry { size_bytes: 0, ..good }), Err(ShapeError::Empty));
        assert_eq!(check(&Geometry { size_bytes: 1 << 63, ..good }), Err(ShapeError::TooLarge(1 << 63)));
        assert_eq!(
            check(&Geometry { logical_block_bytes: 8192, physical_block_bytes: 8192, ..good }),
            Err(ShapeError::LogicalBlock(8192))
        );
        assert_eq!(
            check(&Geometry { physical_block_bytes: 512, ..good }),
            Err(ShapeError::PhysicalBlock { physical: 512, logical: 4096 })
        );
    }
}
