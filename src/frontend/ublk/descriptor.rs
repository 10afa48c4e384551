//! A request as the driver describes it in shared memory, and what it asks for, checked.

use super::abi;
use crate::block::{ErrorKind, Geometry, GeometryError, SECTOR_BYTES};

/// Flags in a descriptor that change where the data lies; they come only to who asked for them, which we did not.
const FOREIGN_FLAGS: u32 = abi::UBLK_IO_F_NEED_REG_BUF | abi::UBLK_IO_F_INTEGRITY | abi::UBLK_IO_F_SHMEM_ZC;

/// A descriptor as it lies in the memory shared with the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// The operation in the low 8 bits, flags above.
    pub op_flags: u32,
    /// Length in sectors of 512 bytes.
    pub sectors: u32,
    /// First sector.
    pub start_sector: u64,
}

/// What a request asks for. Offsets and lengths are in bytes, inside the device and whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Read `len` bytes, at least one block.
    Read {
        /// Where from.
        offset: u64,
        /// How many; at most the device's largest request.
        len: u32,
    },
    /// Write `len` bytes, at least one block.
    Write {
        /// Where to.
        offset: u64,
        /// How many; at most the device's largest request.
        len: u32,
        /// Answered only when durable.
        durable: bool,
    },
    /// Make what was written durable.
    Flush,
    /// Make a range read as zeroes: a discard, or write-zeroes.
    Zero {
        /// Where from.
        offset: u64,
        /// How many.
        len: u64,
    },
}

/// Why a descriptor is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// An operation that was not announced.
    #[error("operation {0} is not known")]
    Operation(u32),
    /// The data lies where it was not asked to be.
    #[error("flags {0:#x} were not asked for")]
    Flags(u32),
    /// A request for data is empty or larger than announced.
    #[error("a request of {len} bytes, and the device takes 1 to {most}")]
    Length {
        /// Its length in bytes.
        len: u64,
        /// The largest request of the device in bytes.
        most: u32,
    },
    /// Not whole blocks, or outside the device.
    #[error(transparent)]
    Range(#[from] GeometryError),
    /// A change to a device that takes none.
    #[error("a write to a read-only device")]
    ReadOnly,
}

impl DescriptorError {
    /// What the request is answered with.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Operation(_) | Self::Flags(_) => ErrorKind::Unsupported,
            Self::Length { .. } | Self::Range(_) => ErrorKind::Invalid,
            Self::ReadOnly => ErrorKind::ReadOnly,
        }
    }
}

impl Descriptor {
    /// It without the driver's word on the registration of its pages, and whether they are registered: of a device that asks
    /// for it.
    #[must_use]
    pub fn registered(self) -> (Self, bool) {
        let unregistered = self.op_flags & abi::UBLK_IO_F_NEED_REG_BUF;
        (Self { op_flags: self.op_flags & !unregistered, ..self }, unregistered == 0)
    }

    /// Checks it against the device; `max_io_bytes` is the largest request for data that was announced.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(self, geometry: &Geometry, max_io_bytes: u32) -> Result<Work, DescriptorError> {
        if self.op_flags & FOREIGN_FLAGS != 0 {
            return Err(DescriptorError::Flags(self.op_flags & FOREIGN_FLAGS));
        }
        let operation = self.op_flags & 0xff;
        match operation {
            abi::UBLK_IO_OP_READ => {
                let (offset, len) = self.data(geometry, max_io_bytes)?;
                Ok(Work::Read { offset, len })
            }
            abi::UBLK_IO_OP_FLUSH => Ok(Work::Flush),
            abi::UBLK_IO_OP_WRITE | abi::UBLK_IO_OP_DISCARD | abi::UBLK_IO_OP_WRITE_ZEROES
                if geometry.read_only =>
            {
                Err(DescriptorError::ReadOnly)
            }
            abi::UBLK_IO_OP_WRITE => {
                let (offset, len) = self.data(geometry, max_io_bytes)?;
                Ok(Work::Write { offset, len, durable: self.op_flags & abi::UBLK_IO_F_FUA != 0 })
            }
            abi::UBLK_IO_OP_DISCARD | abi::UBLK_IO_OP_WRITE_ZEROES => {
                let (offset, len) = self.range(geometry)?;
                Ok(Work::Zero { offset, len })
            }
            other => Err(DescriptorError::Operation(other)),
        }
    }

    fn range(self, geometry: &Geometry) -> Result<(u64, u64), GeometryError> {
        let len = u64::from(self.sectors) * SECTOR_BYTES;
        let Some(offset) = self.start_sector.checked_mul(SECTOR_BYTES) else {
            return Err(GeometryError::Outside { offset: u64::MAX, len, size_bytes: geometry.size_bytes });
        };
        geometry.check(offset, len).map(|range| (range.start(), range.len()))
    }

    fn data(self, geometry: &Geometry, most: u32) -> Result<(u64, u32), DescriptorError> {
        let (offset, len) = self.range(geometry)?;
        match u32::try_from(len) {
            Ok(short) if (1..=most).contains(&short) => Ok((offset, short)),
            _ => Err(DescriptorError::Length { len, most }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u32 = 1 << 20;

    fn geometry(read_only: bool) -> Geometry {
        Geometry { read_only, discard: !read_only, ..Geometry::read_only(64 << 20, 4096) }
    }

    fn descriptor(op_flags: u32, start_sector: u64, sectors: u32) -> Descriptor {
        Descriptor { op_flags, sectors, start_sector }
    }

    #[test]
    fn well_formed_requests_become_work_in_bytes() {
        let device = geometry(false);
        let check = |descriptor: Descriptor| descriptor.check(&device, MIB);
        assert_eq!(check(descriptor(0, 8, 16)), Ok(Work::Read { offset: 4096, len: 8192 }));
        assert_eq!(
            check(descriptor(1 | 1 << 13, 8, 8)),
            Ok(Work::Write { offset: 4096, len: 4096, durable: true })
        );
        assert_eq!(check(descriptor(2, u64::MAX, u32::MAX)), Ok(Work::Flush));
        assert_eq!(check(descriptor(5, 0, 64 << 11)), Ok(Work::Zero { offset: 0, len: 64 << 20 }));
        assert_eq!(check(descriptor(3 | 1 << 15, 8, 8)), Ok(Work::Zero { offset: 4096, len: 4096 }));
    }

    #[test]
    fn what_breaks_a_rule_is_refused_by_it() {
        let writable = geometry(false);
        let refused = |descriptor: Descriptor| descriptor.check(&writable, MIB).unwrap_err();
        assert_eq!(refused(descriptor(4, 0, 8)), DescriptorError::Operation(4));
        assert_eq!(refused(descriptor(1 << 17, 0, 8)), DescriptorError::Flags(1 << 17));
        assert_eq!(refused(descriptor(0, 0, 2056)), DescriptorError::Length { len: 2056 * 512, most: MIB });
        assert_eq!(refused(descriptor(0, 0, 0)), DescriptorError::Length { len: 0, most: MIB });
        assert!(matches!(refused(descriptor(0, 1, 8)), DescriptorError::Range(_)));
        assert!(matches!(refused(descriptor(1, 64 << 11, 8)), DescriptorError::Range(_)));
        assert!(matches!(refused(descriptor(0, u64::MAX, 8)), DescriptorError::Range(_)));
        for op in [1, 3, 5] {
            let refused = descriptor(op, 0, 8).check(&geometry(true), MIB);
            assert_eq!(refused, Err(DescriptorError::ReadOnly));
        }
    }

    proptest! {
        #[test]
        fn work_lies_inside_the_device_whatever_the_memory_says(
            op_flags: u32, sectors: u32, start_sector: u64, near in 0..131_072_u64, read_only: bool,
        ) {
            let device = geometry(read_only);
            for start in [start_sector, near, near / 8 * 8] {
                for op_flags in [op_flags, op_flags % 6] {
                    match descriptor(op_flags, start, sectors).check(&device, MIB) {
                        Ok(Work::Read { offset, len } | Work::Write { offset, len, .. }) => {
                            prop_assert!(len > 0 && len <= MIB && offset + u64::from(len) <= device.size_bytes);
                        }
                        Ok(Work::Zero { offset, len }) => prop_assert!(offset + len <= device.size_bytes),
                        Ok(Work::Flush) | Err(_) => {}
                    }
                }
            }
        }
    }
}
