//! The block of 512 bytes that every tar is made of, and the checksum of those that are headers.

use std::ops::Range;

pub(super) const BLOCK_BYTES: usize = 512;
pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;
pub(super) const CHECKSUM_PLACE: Range<usize> = 148..156;

pub(super) type Block = [u8; BLOCK_BYTES];

/// Old writers summed the bytes as signed numbers; readers take either sum. The field itself counts as spaces.
pub(super) fn checksum_matches(block: &Block, stored: u64) -> bool {
    let counted = |(at, byte): (usize, &u8)| if CHECKSUM_PLACE.contains(&at) { b' ' } else { *byte };
    let bytes = || block.iter().enumerate().map(counted);
    let unsigned: u64 = bytes().map(u64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    stored == unsigned || i64::try_from(stored) == Ok(signed)
}
