//! How much of something may begin in a second: a token bucket, as a line in which each has its place when it comes.

use std::time::Duration;

/// Part of a second that may begin at once after a pause.
const BURST_PART: u128 = 10;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The line. Places are counted in billionths of a unit, so that nothing is lost between two looks at the clock.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Units a second; 0 for as many as come.
    rate: u64,
    /// Where the next one has its place.
    next: u128,
    /// All places up to here have had their turn, as of `at`.
    reached: u128,
    at: Duration,
}

impl Bucket {
    /// Units a second, 0 where there is no limit.
    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    /// Has another rate from `now` on, also for those who wait.
    pub(super) fn set_rate(&mut self, rate: u64, now: Duration) {
        self.advance(now);
        self.rate = rate;
        if rate == 0 {
            self.reached = self.reached.max(self.next);
        }
    }

    /// A place for `count` units.
    pub(super) fn take(&mut self, count: u64, now: Duration) -> u128 {
        self.advance(now);
        let burst = u128::from(self.rate).saturating_mul(NANOS_PER_SECOND) / BURST_PART;
        let place = self.next.max(self.reached.saturating_sub(burst));
        self.next = place.saturating_add(u128::from(count).saturating_mul(NANOS_PER_SECOND));
        if self.rate == 0 {
            self.reached = self.reached.max(self.next);
        }
        place
    }

    /// How long it is until `place` has its turn, if nothing changes.
    pub(super) fn wait(&mut self, place: u128, now: Duration) -> Duration {
        self.advance(now);
        let left = place.saturating_sub(self.reached);
        let nanos = left.div_ceil(u128::from(self.rate).max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.reached = self.reached.saturating_add(u128::from(self.rate).saturating_mul(passed.as_nanos()));
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn bucket(rate: u64) -> Bucket {
        let mut bucket = Bucket::default();
        bucket.set_rate(rate, Duration::ZERO);
        bucket
    }

    /// Takes `count` units and says how long they wait.
    fn wait_of(bucket: &mut Bucket, count: u64, now: Duration) -> Duration {
        let place = bucket.take(count, now);
        bucket.wait(place, now)
    }

    #[test]
    fn a_second_of_requests_takes_a_second_and_each_waits_for_those_before_it() {
        let mut bucket = bucket(1000);
        let waits: Vec<Duration> = (0..=1000).map(|_| wait_of(&mut bucket, 1, Duration::ZERO)).collect();
        assert!(waits.is_sorted());
        assert_eq!((waits[0], waits[1], waits[1000]), (ms(0), ms(1), ms(1000)));
    }

    #[test]
    fn a_pause_allows_for_a_tenth_of_a_second_however_long_it_was() {
        for pause in [ms(100), ms(5_000), ms(86_400_000)] {
            let mut bucket = bucket(1000);
            let waits = (0..1000).map(|_| wait_of(&mut bucket, 1, pause));
            assert_eq!(waits.filter(Duration::is_zero).count(), 101, "{pause:?}");
        }
    }

    #[test]
    fn what_is_larger_than_a_burst_begins_at_once_and_is_paid_for_by_the_next() {
        let mut bucket = bucket(1 << 20);
        assert_eq!(wait_of(&mut bucket, 4 << 20, ms(0)), ms(0));
        assert_eq!(wait_of(&mut bucket, 1, ms(0)), ms(4000));
        assert_eq!(wait_of(&mut bucket, 1, ms(4001)), ms(0));
    }

    #[test]
    fn who_waits_is_bound_by_the_rate_of_now() {
        let mut bucket = bucket(1);
        let places: Vec<u128> = (0..=100).map(|_| bucket.take(1, ms(0))).collect();
        assert_eq!(bucket.wait(places[100], ms(0)), ms(100_000));
        bucket.set_rate(1000, ms(10_000));
        assert_eq!(bucket.wait(places[100], ms(10_000)), ms(90));
        bucket.set_rate(10, ms(10_050));
        assert_eq!(bucket.wait(places[100], ms(10_050)), ms(4000));
        bucket.set_rate(0, ms(10_050));
        assert_eq!(bucket.wait(places[100], ms(10_050)), ms(0));
        // Whoever came while there was no limit owes nothing.
        assert_eq!(wait_of(&mut bucket, 1_000_000, ms(10_060)), ms(0));
        bucket.set_rate(10, ms(10_070));
        assert_eq!(wait_of(&mut bucket, 1, ms(10_070)), ms(0));
        assert_eq!(wait_of(&mut bucket, 1, ms(10_070)), ms(100));
    }

    #[test]
    fn no_number_is_too_large_nor_does_a_clock_that_goes_back_matter() {
        let mut bucket = bucket(u64::MAX);
        for _ in 0..3 {
            wait_of(&mut bucket, u64::MAX, Duration::MAX);
        }
        bucket.set_rate(1, ms(5));
        assert!(wait_of(&mut bucket, u64::MAX, ms(3)) >= ms(0));
    }
}
