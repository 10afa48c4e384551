//! The hash of names in the index of a directory: half of MD4, as in `fs/ext4/hash.c` of the kernel.

/// Hashes do not reach this: it marks the end of a directory to readers.
const END: u32 = 0xffff_fffe;
const INITIAL: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
/// Bytes of a name that go into a round.
const CHUNK_BYTES: usize = 32;
const SECOND: u32 = 0x5a82_7999;
const THIRD: u32 = 0x6ed9_eba1;

/// How a file system hashes names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NameHash {
    pub(crate) seed: [u32; 4],
    /// Whether bytes from 128 on are positive.
    pub(crate) is_unsigned: bool,
}

impl NameHash {
    /// The hash, whose lowest bit is clear, and the second one, which only orders names of the same hash.
    pub(crate) fn of(&self, name: &[u8]) -> (u32, u32) {
        let mut state = if self.seed == [0; 4] { INITIAL } else { self.seed };
        let mut rest = name;
        while !rest.is_empty() {
            transform(&mut state, self.words(rest));
            rest = rest.get(CHUNK_BYTES..).unwrap_or(&[]);
        }
        let [_, major, minor, _] = state;
        let major = major & !1;
        (if major == END { END - 2 } else { major }, minor)
    }

    /// The next 32 bytes as numbers, padded with the length of all that is left.
    fn words(&self, rest: &[u8]) -> [u32; 8] {
        let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let padding = length | length << 8;
        let padding = padding | padding << 16;
        let mut words = [padding; 8];
        let chunk = rest.get(..CHUNK_BYTES).unwrap_or(rest);
        for (word, bytes) in words.iter_mut().zip(chunk.chunks(4)) {
            for byte in bytes {
                let value = if self.is_unsigned { i32::from(*byte) } else { i32::from(byte.cast_signed()) };
                *word = value.cast_unsigned().wrapping_add(*word << 8);
            }
        }
        words
    }
}

fn transform(state: &mut [u32; 4], words: [u32; 8]) {
    let [w0, w1, w2, w3, w4, w5, w6, w7] = words;
    let first = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let second = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let third = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let mut now = *state;
    round(&mut now, first, [w0, w1, w2, w3, w4, w5, w6, w7], 0, [3, 7, 11, 19]);
    round(&mut now, second, [w1, w3, w5, w7, w0, w2, w4, w6], SECOND, [3, 5, 9, 13]);
    round(&mut now, third, [w3, w7, w2, w6, w1, w5, w0, w4], THIRD, [3, 9, 11, 15]);
    for (word, mixed) in state.iter_mut().zip(now) {
        *word = word.wrapping_add(mixed);
    }
}

fn round(
    state: &mut [u32; 4],
    mix: impl Fn(u32, u32, u32) -> u32,
    words: [u32; 8],
    constant: u32,
    shifts: [u32; 4],
) {
    let [mut a, mut b, mut c, mut d] = *state;
    for (word, shift) in words.iter().zip(shifts.iter().cycle()) {
        let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(word.wrapping_add(constant));
        (a, b, c, d) = (d, sum.rotate_left(*shift), b, c);
    }
    *state = [a, b, c, d];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `dx_hash` of debugfs has them.
    #[test]
    fn hashes_are_those_of_debugfs() {
        let plain = NameHash { seed: [0; 4], is_unsigned: false };
        assert_eq!(plain.of(b"abc"), (0xd196_a868, 0xc420_eb28));
        let seeded =
            NameHash { seed: [0x6172_7473, 0x6462_6174, 0x2074_6820, 0x6465_6573], is_unsigned: false };
        let long = b"some_longer_name_than_thirty_two_bytes_for_sure_yes";
        assert_eq!(seeded.of(long), (0x5850_3d84, 0xcb38_aa46));
        let signed = "grün-ü-name".as_bytes();
        assert_eq!(seeded.of(signed), (0xc7a5_6c08, 0xce87_5356));
        assert_ne!(NameHash { is_unsigned: true, ..seeded }.of(signed).0, 0xc7a5_6c08);
    }
}
