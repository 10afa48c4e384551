//! Points of time as ext4 keeps them: 34 bits of seconds and 30 of nanoseconds, in a word and an extra word.

/// The first second that can be kept, in 1901.
const FIRST: i64 = -(1 << 31);
/// The last one, in 2446.
const LAST: i64 = (3 << 32) + (1 << 31) - 1;
const NANOSECONDS: u32 = 1_000_000_000;

/// A point of time. What ext4 cannot hold becomes the nearest that it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970, rounded down.
    pub seconds: i64,
    /// Nanoseconds after that, below a thousand million.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The word and the extra word.
    pub(crate) fn encode(self) -> (u32, u32) {
        let seconds = self.seconds.clamp(FIRST, LAST);
        let nanoseconds = if seconds == self.seconds { self.nanoseconds.min(NANOSECONDS - 1) } else { 0 };
        let low = u32::try_from(seconds & 0xffff_ffff).unwrap_or(0);
        // The low word is signed: an epoch begins where it is the smallest.
        let epoch = u32::try_from((seconds - FIRST) >> 32).unwrap_or(0);
        (low, nanoseconds << 2 | epoch)
    }

    /// For fields of whole seconds.
    pub(crate) fn low_seconds(self) -> u32 {
        u32::try_from(self.seconds.clamp(0, u32::MAX.into())).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_and_ends_are_those_of_the_kernel() {
        let of = |seconds, nanoseconds| Timestamp { seconds, nanoseconds }.encode();
        assert_eq!(of(0, 5), (0, 20));
        assert_eq!(of(-1, 999_999_999), (u32::MAX, 999_999_999 << 2));
        assert_eq!(of(0x7fff_ffff, 0), (0x7fff_ffff, 0));
        assert_eq!(of(0x8000_0000, 0), (0x8000_0000, 1));
        assert_eq!(of(0x1_8000_0000, 0), (0x8000_0000, 2));
        assert_eq!(of(0x3_7fff_ffff, 7), (0x7fff_ffff, 7 << 2 | 3));
        assert_eq!(of(i64::MAX, 7), (0x7fff_ffff, 3));
        assert_eq!(of(i64::MIN, 7), (0x8000_0000, 0));
    }
}
