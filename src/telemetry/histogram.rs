//! A latency histogram without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of the buckets in nanoseconds: powers of two from 1 microsecond to 34 seconds, which place a warm read, a
/// disk read and a fetch from a far registry all in different buckets.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, within the bound of the loop")]
pub const LATENCY_BOUNDS_NS: [u64; 26] = {
    let mut bounds = [0; 26];
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = 1024 << index;
        index += 1;
    }
    bounds
};

/// Counts durations in buckets of [`LATENCY_BOUNDS_NS`], and those above in one more.
#[derive(Debug, Default)]
pub struct LatencyHistogram {
    buckets: [AtomicU64; LATENCY_BOUNDS_NS.len() + 1],
    sum_ns: AtomicU64,
}

/// The content of a [`LatencyHistogram`] at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Observations in each bucket, not cumulative; the last one is above every bound.
    pub buckets: Vec<u64>,
    /// Sum of all observations in nanoseconds.
    pub sum_ns: u64,
}

impl LatencyHistogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // The bounds are 1024 times the powers of two, so the bucket is a count of bits; a search would guess at each step.
        let index = u64::BITS - (ns.saturating_sub(1) >> 10).leading_zeros();
        let index = (index as usize).min(LATENCY_BOUNDS_NS.len());
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Adds what another one has counted.
    pub fn absorb(&self, other: &Snapshot) {
        for (mine, theirs) in self.buckets.iter().zip(&other.buckets) {
            mine.fetch_add(*theirs, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(other.sum_ns, Ordering::Relaxed);
    }

    /// What has been counted so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            buckets: self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lands_in_the_first_bucket_that_holds_it() {
        let histogram = LatencyHistogram::default();
        for ns in [0, 1024, 1025, u64::MAX] {
            histogram.observe(Duration::from_nanos(ns));
        }
        let snapshot = histogram.snapshot();
        assert_eq!((snapshot.buckets[0], snapshot.buckets[1]), (2, 1));
        assert_eq!(snapshot.buckets.last(), Some(&1));
    }

    #[test]
    fn the_bucket_is_the_one_that_a_search_finds() {
        let around = |bound: &u64| [*bound - 1, *bound, *bound + 1];
        for ns in LATENCY_BOUNDS_NS.iter().flat_map(around).chain([0, 1]) {
            let histogram = LatencyHistogram::default();
            histogram.observe(Duration::from_nanos(ns));
            let wanted = LATENCY_BOUNDS_NS.partition_point(|bound| *bound < ns);
            assert_eq!(histogram.snapshot().buckets[wanted], 1, "{ns} ns");
        }
    }
}
