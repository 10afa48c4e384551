//! Ranges of bytes whose end is known not to overflow.

/// The sector of the Linux block layer and of the LSMT format, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// A half-open range of bytes, `start <= end`, whose end fits in 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

/// The end of a range does not fit in 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a range of {len} bytes at {start} does not end below 2^64")]
pub struct RangeError {
    start: u64,
    len: u64,
}

impl ByteRange {
    /// The range of `len` bytes from `start`.
    ///
    /// # Errors
    /// When `start + len` overflows.
    pub fn new(start: u64, len: u64) -> Result<Self, RangeError> {
        match start.checked_add(len) {
            Some(end) => Ok(Self { start, end }),
            None => Err(RangeError { start, len }),
        }
    }

    /// The range from `start` up to `end`; empty where `end` is below `start`.
    #[must_use]
    pub fn between(start: u64, end: u64) -> Self {
        Self { start, end: end.max(start) }
    }

    /// First byte.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    #[must_use]
    pub fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether all of `other` lies inside.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The part that lies in both.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self::between(self.start.max(other.start), self.end.min(other.end))
    }

    /// The smallest range that holds this one and whose ends are multiples of `unit`, cut at `limit`.
    #[must_use]
    pub fn align_out(self, unit: u64, limit: u64) -> Self {
        let start = self.start - self.start % unit;
        let end = self.end.checked_next_multiple_of(unit).unwrap_or(limit).min(limit);
        Self::between(start, end)
    }
}
