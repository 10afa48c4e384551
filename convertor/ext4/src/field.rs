//! Little-endian fields of records whose length is known: all numbers of ext4 lie so.
//!
//! A field beyond the end reads as zero. Records have a fixed size and fields fixed places, so that this does not happen; it
//! only means that no damaged number can make a reader panic.

/// A number of 64 bits as an index. Where it does not fit, what it is used with finds nothing there.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The low half of a number that is stored in two.
pub(crate) fn low_u32(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(u32::MAX)
}

/// The low half of a number that is stored in two.
pub(crate) fn low_u16(value: u32) -> u16 {
    u16::try_from(value & 0xffff).unwrap_or(u16::MAX)
}

pub(crate) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    chunk_at(bytes, at).map_or(0, u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    chunk_at(bytes, at).map_or(0, u32::from_le_bytes)
}

pub(crate) fn put_u8(bytes: &mut [u8], at: usize, value: u8) {
    put(bytes, at, &[value]);
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    put(bytes, at, &value.to_le_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_le_bytes());
}

/// Copies `value` to its place. The place is inside: callers have checked, or it is fixed.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    let place = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..value.len()));
    debug_assert!(place.is_some(), "a field of {} bytes at {at}", value.len());
    if let Some(place) = place {
        place.copy_from_slice(value);
    }
}

fn chunk_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_read_and_beyond_the_end_is_zero() {
        let mut bytes = [0; 8];
        put_u16(&mut bytes, 1, 0x1234);
        put_u32(&mut bytes, 4, 0xdead_beef);
        assert_eq!(bytes, [0, 0x34, 0x12, 0, 0xef, 0xbe, 0xad, 0xde]);
        assert_eq!((u16_at(&bytes, 1), u32_at(&bytes, 4), u32_at(&bytes, 5)), (0x1234, 0xdead_beef, 0));
        assert_eq!((low_u32(0x1_0000_0002), low_u16(0x1_0003)), (2, 3));
    }
}
