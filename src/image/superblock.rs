//! Finds the file system on a device, whose block size decides the device's.

use crate::{block::SECTOR_BYTES, format::ext4::Superblock};

/// First bytes of the device that [`block_bytes`] wants: all but btrfs keep their superblock in here.
pub const HEAD_BYTES: usize = 4096;

/// Where the superblock of btrfs is, in bytes from the start of the device.
pub const BTRFS_OFFSET: u64 = 64 << 10;
/// How much of it [`btrfs_block_bytes`] wants, in bytes.
pub const BTRFS_BYTES: usize = 512;

/// Largest block of a file system that is believed.
const LARGEST_BYTES: u32 = 64 << 10;

/// The smallest unit in which the file system at the start of the device reads and writes: an ext, erofs or xfs one.
#[must_use]
pub fn block_bytes(head: &[u8]) -> Option<u32> {
    Superblock::of(head)
        .map(|ext| ext.block_bytes)
        .or_else(|| erofs(head))
        .or_else(|| xfs(head))
        .filter(|bytes| is_sound(*bytes))
}

/// The same of a btrfs, given [`BTRFS_BYTES`] at [`BTRFS_OFFSET`].
#[must_use]
pub fn btrfs_block_bytes(superblock: &[u8]) -> Option<u32> {
    let magic = superblock.get(64..)?.starts_with(b"_BHRfS_M");
    let size = u32::from_le_bytes(*superblock.get(144..)?.first_chunk()?);
    Some(size).filter(|bytes| magic && is_sound(*bytes))
}

fn is_sound(bytes: u32) -> bool {
    bytes.is_power_of_two() && u64::from(bytes) >= SECTOR_BYTES && bytes <= LARGEST_BYTES
}

fn erofs(head: &[u8]) -> Option<u32> {
    let superblock = head.get(1024..)?;
    let magic = superblock.starts_with(&[0xe2, 0xe1, 0xf5, 0xe0]);
    1_u32.checked_shl(u32::from(*superblock.get(12)?)).filter(|_| magic)
}

/// The sector size counts, since an xfs cannot be mounted on a device whose blocks are larger.
fn xfs(head: &[u8]) -> Option<u32> {
    let sector = u16::from_be_bytes(*head.get(102..)?.first_chunk()?);
    Some(u32::from(sector)).filter(|_| head.starts_with(b"XFSB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(head: &mut [u8], at: usize, bytes: &[u8]) {
        head[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[test]
    fn each_file_system_tells_its_block_size() {
        let mut ext4 = [0; HEAD_BYTES];
        with(&mut ext4, 1024 + 56, &[0x53, 0xef]);
        with(&mut ext4, 1024 + 24, &[2]);
        assert_eq!(block_bytes(&ext4), Some(4096));
        with(&mut ext4, 1024 + 24, &[0]);
        assert_eq!(block_bytes(&ext4), Some(1024));

        let mut erofs = [0; HEAD_BYTES];
        with(&mut erofs, 1024, &[0xe2, 0xe1, 0xf5, 0xe0]);
        with(&mut erofs, 1036, &[9]);
        assert_eq!(block_bytes(&erofs), Some(512));

        let mut xfs = [0; HEAD_BYTES];
        with(&mut xfs, 0, b"XFSB\x00\x00\x10\x00");
        with(&mut xfs, 102, &[2, 0]);
        assert_eq!(block_bytes(&xfs), Some(512));

        let mut btrfs = [0; BTRFS_BYTES];
        with(&mut btrfs, 64, b"_BHRfS_M");
        with(&mut btrfs, 144, &[0, 0x10]);
        assert_eq!(btrfs_block_bytes(&btrfs), Some(4096));
    }

    #[test]
    fn what_is_no_superblock_or_a_mad_one_tells_nothing() {
        assert_eq!(block_bytes(&[0; HEAD_BYTES]), None);
        assert_eq!(block_bytes(&[0xff; 100]), None);
        let mut erofs = [0; HEAD_BYTES];
        with(&mut erofs, 1024, &[0xe2, 0xe1, 0xf5, 0xe0]);
        with(&mut erofs, 1036, &[200]);
        assert_eq!(block_bytes(&erofs), None);
        assert_eq!(btrfs_block_bytes(&[0; BTRFS_BYTES]), None);
    }
}
