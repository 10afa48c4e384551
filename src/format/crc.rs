//! The raw CRC-32C of overlaybd: the Castagnoli polynomial without the customary inversions.

/// `R(seed, bytes)`: the register after feeding `bytes`, starting from `seed`, never inverted.
///
/// Chains: `raw(raw(seed, a), b)` equals `raw(seed, a ++ b)`.
#[must_use]
pub fn raw(seed: u32, bytes: &[u8]) -> u32 {
    // The library inverts on entry and on exit; inverting again around it cancels both.
    !crc32c::crc32c_append(!seed, bytes)
}

#[cfg(test)]
mod tests {
    use super::raw;

    #[test]
    fn the_vectors_of_the_specification_hold() {
        assert_eq!(raw(0, b"123456789"), 0x58E3_FA20);
        assert_eq!(raw(100_007, b"123456789"), 0x3C9B_D4E0);
        assert_eq!(raw(0, &[0; 77]), 0);
        assert_eq!(raw(100_007, &[0; 32]), 0x2825_0FD2);
    }

    #[test]
    fn a_checksum_taken_in_pieces_equals_one_taken_at_once() {
        assert_eq!(raw(raw(7, b"1234"), b"56789"), raw(7, b"123456789"));
    }
}
