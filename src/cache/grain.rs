//! Grains, the unit of presence, with their checksums, and sets of runs of them.

use std::{collections::BTreeMap, ops::Range};

use crate::block::ByteRange;

/// Unit of presence in bytes: the page of every file system that a cache lies on, so that a hole can be punched for
/// each, and the smallest read of most images.
pub(super) const GRAIN_BYTES: u64 = GRAIN_LEN as u64;
const GRAIN_LEN: usize = 4096;

/// A span of grains.
pub(super) type Grains = Range<u64>;

/// The checksum of a grain's bytes; never [`ABSENT`].
pub(super) type Sum = u32;

/// In the place of a checksum: there is no grain.
pub(super) const ABSENT: Sum = 0;

/// The checksum of each grain in `bytes`, which begin with one.
pub(super) fn sums_of(bytes: &[u8]) -> impl Iterator<Item = Sum> {
    bytes.chunks(GRAIN_LEN).map(|grain| crc32c::crc32c(grain).max(1))
}

/// Number of grains of a blob of `size_bytes`; the last one may be partial.
pub(super) fn grain_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(GRAIN_BYTES)
}

/// The grains that `range` touches.
pub(super) fn grains_of(range: ByteRange) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    range.start() / GRAIN_BYTES..range.end().div_ceil(GRAIN_BYTES)
}

/// The bytes of `grains`, cut at the blob's end.
pub(super) fn bytes_of(grains: &Range<u64>, size_bytes: u64) -> ByteRange {
    let start = grains.start.saturating_mul(GRAIN_BYTES).min(size_bytes);
    ByteRange::between(start, grains.end.saturating_mul(GRAIN_BYTES).min(size_bytes))
}

/// A set of numbers kept as runs that neither touch nor overlap.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct RunSet(BTreeMap<u64, u64>);

impl RunSet {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The runs in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(start, end)| *start..*end)
    }

    /// Adds all of `run`.
    pub(super) fn insert(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        let (mut start, mut end) = (run.start, run.end);
        let touching: Vec<u64> = self
            .0
            .range(..=end)
            .rev()
            .take_while(|(_, other)| **other >= start)
            .map(|(key, _)| *key)
            .collect();
        for key in touching {
            if let Some(other) = self.0.remove(&key) {
                start = start.min(key);
                end = end.max(other);
            }
        }
        self.0.insert(start, end);
    }

    /// Takes all of `run` out.
    pub(super) fn remove(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        let cut: Vec<(u64, u64)> = self
            .0
            .range(..run.end)
            .rev()
            .take_while(|(_, end)| **end > run.start)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in cut {
            self.0.remove(&start);
            if start < run.start {
                self.0.insert(start, run.start);
            }
            if end > run.end {
                self.0.insert(run.end, end);
            }
        }
    }

    /// Whether any of `window` is in the set.
    pub(super) fn touches(&self, window: &Range<u64>) -> bool {
        let before = self.0.range(..window.end).next_back();
        !window.is_empty() && before.is_some_and(|(_, end)| *end > window.start)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_run_set_equals_a_set_of_numbers() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut runs, mut model) = (RunSet::default(), BTreeSet::new());
        for _ in 0..5000 {
            let start = random.u64(0..60);
            let run = start..start + random.u64(0..12);
            if random.bool() {
                runs.insert(run.clone());
                model.extend(run.clone());
            } else {
                runs.remove(run.clone());
                model.retain(|number| !run.contains(number));
            }
            assert!(runs.runs().flatten().eq(model.iter().copied()));
            assert!(runs.runs().zip(runs.runs().skip(1)).all(|(left, right)| left.end < right.start));
            let window = random.u64(0..30)..random.u64(30..70);
            assert_eq!(runs.touches(&window), model.iter().any(|number| window.contains(number)));
        }
    }

    #[test]
    fn the_last_grain_ends_with_the_blob() {
        assert_eq!(grain_count(4097), 2);
        assert_eq!(grains_of(ByteRange::between(4095, 4097)), 0..2);
        assert_eq!(bytes_of(&(1..2), 4097), ByteRange::between(4096, 4097));
        assert!(grains_of(ByteRange::between(9, 9)).is_empty());
    }
}
