//! What the superblock of an ext4 says of its size and of its state. ext2 and ext3 have the same.
//!
//! Offsets and values are those of `struct ext4_super_block` in the kernel's `Documentation/filesystems/ext4/super.rst`.

/// Where the superblock lies on the device, in bytes.
const OFFSET: usize = 1024;
const MAGIC: u16 = 0xef53;
/// Of the states: it was unmounted, and no errors were found.
const VALID: u16 = 1;
const HAS_ERRORS: u16 = 2;
/// Of the features without which nobody may use it: a journal that is to be replayed, and block numbers of 64 bits.
const RECOVER: u32 = 4;
const WIDE: u32 = 0x80;
/// Blocks have 1 KiB, shifted by what the superblock says.
const BLOCK_BASE_SHIFT: u32 = 10;
/// Blocks have at most 64 KiB.
const BLOCK_SHIFT_LIMIT: u32 = 16;

/// An ext4, as its superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Blocks of the file system.
    pub blocks: u64,
    /// Bytes of a block: a power of two from 1 KiB to 64 KiB.
    pub block_bytes: u32,
    /// Whether resize2fs wants to have it checked before: it was mounted since it was checked last, or not unmounted.
    pub wants_check: bool,
}

impl Superblock {
    /// Reads it in the first bytes of a device, of which 2048 are enough; `None` where there is none.
    #[must_use]
    pub fn of(device: &[u8]) -> Option<Self> {
        let bytes = device.get(OFFSET..)?;
        let half = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes);
        let word = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
        if half(0x38)? != MAGIC {
            return None;
        }
        let shift = word(0x18)?.checked_add(BLOCK_BASE_SHIFT).filter(|shift| *shift <= BLOCK_SHIFT_LIMIT)?;
        let incompatible = word(0x60)?;
        let high = if incompatible & WIDE == 0 { 0 } else { word(0x150)? };
        let (mounted, checked, state, orphan) = (word(0x2c)?, word(0x40)?, half(0x3a)?, word(0xe8)?);
        let was_left = state & VALID == 0 || incompatible & RECOVER != 0 || orphan != 0;
        Some(Self {
            blocks: u64::from(high) << 32 | u64::from(word(4)?),
            block_bytes: 1_u32.checked_shl(shift)?,
            wants_check: mounted > checked || state & HAS_ERRORS != 0 || was_left,
        })
    }

    /// Bytes of the file system.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_bytes.into())
    }

    /// Whether it has all of a device of so many bytes that it can have.
    #[must_use]
    pub fn fills(&self, device_bytes: u64) -> bool {
        device_bytes.checked_div(self.block_bytes.into()).is_none_or(|whole| self.blocks >= whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut device = vec![0; 4096];
        for (at, bytes) in [(0x38, &MAGIC.to_le_bytes()[..]), (0x3a, &[1]), (0x18, &[2])].iter().chain(fields)
        {
            device[OFFSET..][*at..][..bytes.len()].copy_from_slice(bytes);
        }
        device
    }

    #[test]
    fn the_high_half_of_the_size_counts_only_where_there_is_one() {
        let size = [(4, &[5, 0, 0, 0][..]), (0x150, &[1])];
        let of =
            |features: u8| Superblock::of(&device(&[&size[..], &[(0x60, &[features])]].concat())).unwrap();
        assert_eq!((of(0).blocks, of(0x80).blocks), (5, 0x1_0000_0005));
        assert_eq!((of(0).size_bytes(), of(0).fills(24_575), of(0).fills(24_576)), (20_480, true, false));
    }

    #[test]
    fn one_that_was_mounted_or_left_is_to_be_checked() {
        assert!(!Superblock::of(&device(&[])).unwrap().wants_check);
        let marks = [(0x2c, &[1][..]), (0x3a, &[0]), (0x3a, &[3]), (0x60, &[4]), (0xe8, &[9])];
        assert!(marks.iter().all(|mark| Superblock::of(&device(&[*mark])).unwrap().wants_check));
    }

    #[test]
    fn what_is_none_is_not_taken_for_one() {
        assert_eq!(Superblock::of(&[0; 4096]), None);
        assert_eq!(Superblock::of(&device(&[(0x18, &[7])])), None);
        assert_eq!(Superblock::of(&device(&[])[..1100]), None);
    }
}
