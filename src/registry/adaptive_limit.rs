//! How many requests one host gets at once: as many as it answers in good time.
//!
//! The algorithm is TCP's, additive increase and multiplicative decrease with a slow start (D. Chiu and R. Jain, 1989; V. Jacobson,
//! 1988), with a request for a segment, as in `AIMDLimit` of Netflix' concurrency-limits. An answer in good time lets the limit
//! grow, by one at first, and after the first loss by one for each limit of answers. An answer that took too long, a refusal (429,
//! 503, 504) or a time-out shrinks it, once for all requests that were under way together. Refusals that are rare are taken for faults
//! of the host, which are not mended by asking for less: TCP, too, loses its speed where each loss counts for congestion.
//!
//! "Too long" is an eighth of the time after which a silent server is given up, so that no host is held back whose answers only
//! vary, as those of object storage do. A host that gives its answers one after another is so asked for what it does in that time.
//! One that takes longer for any answer is compared with itself, as in TCP Vegas: too long is twice the shortest time seen, and at
//! most half of the time-out, so that no request of ours waits in its line until it is dropped and asked for again. Every ten minutes
//! the shortest time is measured anew, with as few requests as there may be: else what our own requests wait for one another
//! would come to be taken for it.
//!
//! What a process has in flight is its own: twenty of them that begin together at a host of four answers a second must not fill its
//! line beyond the time-out, which is why the limit begins low and doubles with each round trip.

use std::time::Duration;

use tokio::time::Instant;

/// The limit that no loss goes below: with two, one request that hangs does not hold up all others.
const FLOOR: usize = 2;

/// The limit at the beginning.
const START: usize = 3;

/// How often the shortest time that the host takes for an answer is measured anew.
const MEASURED_EVERY: Duration = Duration::from_secs(600);

/// More than one refusal in so many answers is a matter of load.
const REFUSED_ONE_IN: u32 = 10;

/// The shares of refusals are those of so many answers and, counting half, of as many before them.
const WINDOW_ANSWERS: u32 = 32;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered to the end.
    Served,
    /// The host has said that it is too much.
    Refused,
    /// Nothing came in time.
    TimedOut,
}

/// Why the limit became smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shrink {
    /// An answer took too long.
    Slow,
    /// As [`Outcome::Refused`].
    Refused,
    /// As [`Outcome::TimedOut`].
    TimedOut,
}

/// The limit of one host.
#[derive(Debug)]
pub(super) struct AdaptiveLimit {
    now: usize,
    ceiling: usize,
    /// When a silent server is given up.
    time_out: Duration,
    /// The shortest time of an answer of late.
    shortest: Option<Duration>,
    /// When it began to be measured.
    measured_from: Option<Instant>,
    /// Below it each answer lets the limit grow by one.
    slow_start_below: usize,
    /// Answers in good time since the limit last grew.
    served: usize,
    /// Answers of late, and the refusals among them.
    answers: u32,
    refusals: u32,
    /// Requests that began before it tell of a larger limit.
    shrunk_at: Option<Instant>,
}

impl AdaptiveLimit {
    /// At most `ceiling`; a silent server is given up after `time_out`.
    pub(super) fn new(ceiling: usize, time_out: Duration) -> Self {
        let ceiling = ceiling.max(1);
        Self {
            now: START.min(ceiling),
            ceiling,
            time_out,
            shortest: None,
            measured_from: None,
            slow_start_below: ceiling,
            served: 0,
            answers: 0,
            refusals: 0,
            shrunk_at: None,
        }
    }

    pub(super) fn now(&self) -> usize {
        self.now
    }

    /// Learns what became, by `now`, of the request that began at `began`. A limit that is not used, as `is_used` says, does not grow.
    pub(super) fn learn(
        &mut self,
        outcome: Outcome,
        (began, now): (Instant, Instant),
        is_used: bool,
    ) -> Option<Shrink> {
        self.count(outcome);
        let took = now.duration_since(began);
        if outcome == Outcome::Served {
            self.measure(began, now);
        }
        let (shrink, left) = match outcome {
            Outcome::Served if took <= self.good_time() => {
                if is_used {
                    self.grow();
                }
                return None;
            }
            Outcome::Served => (Shrink::Slow, self.now - self.now / 4),
            Outcome::Refused if self.refusals.saturating_mul(REFUSED_ONE_IN) <= self.answers => return None,
            Outcome::Refused => (Shrink::Refused, self.now - self.now / 4),
            // Rare, and each costs a request that is made again.
            Outcome::TimedOut => (Shrink::TimedOut, self.now / 2),
        };
        if self.shrunk_at.is_some_and(|shrunk_at| began <= shrunk_at) {
            return None;
        }
        // Also where the limit is the lowest: this much was told by all that was under way.
        self.shrunk_at = Some(now);
        let smaller = left.min(self.now - 1).max(FLOOR.min(self.ceiling));
        self.slow_start_below = smaller;
        self.served = 0;
        (std::mem::replace(&mut self.now, smaller) > smaller).then_some(shrink)
    }

    /// An answer that takes longer is too slow.
    fn good_time(&self) -> Duration {
        let of_its_own =
            self.shortest.map_or(Duration::ZERO, |shortest| (shortest * 2).min(self.time_out / 2));
        of_its_own.max(self.time_out / 8)
    }

    /// Learns how long an answer takes at least.
    fn measure(&mut self, began: Instant, now: Instant) {
        let from = *self.measured_from.get_or_insert(began);
        if now.duration_since(from) >= MEASURED_EVERY {
            // What is under way has waited for one another.
            (self.measured_from, self.shortest, self.shrunk_at) = (Some(now), None, Some(now));
            self.slow_start_below = self.now;
            self.now = self.now.min(FLOOR);
        } else if began >= from {
            let took = now.duration_since(began);
            self.shortest = Some(self.shortest.map_or(took, |shortest| shortest.min(took)));
        }
    }

    fn count(&mut self, outcome: Outcome) {
        if self.answers >= 2 * WINDOW_ANSWERS {
            self.answers /= 2;
            self.refusals /= 2;
        }
        self.answers += 1;
        self.refusals += u32::from(outcome == Outcome::Refused);
    }

    fn grow(&mut self) {
        self.served += 1;
        if self.now < self.slow_start_below || self.served >= self.now {
            self.served = 0;
            self.now = (self.now + 1).min(self.ceiling);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME_OUT: Duration = Duration::from_secs(16);

    fn served(limit: &mut AdaptiveLimit, now: Instant, count: usize) {
        for _ in 0..count {
            assert_eq!(limit.learn(Outcome::Served, (now, now), true), None);
        }
    }

    #[test]
    fn it_doubles_with_each_round_and_after_a_loss_grows_by_one_a_round() {
        let (mut limit, now) = (AdaptiveLimit::new(48, TIME_OUT), Instant::now());
        for expected in [6, 12, 24, 48, 48] {
            let round = limit.now();
            served(&mut limit, now, round);
            assert_eq!(limit.now(), expected);
        }
        let late = now + TIME_OUT / 4;
        assert_eq!(limit.learn(Outcome::Served, (now, late), true), Some(Shrink::Slow));
        assert_eq!(limit.now(), 36);
        served(&mut limit, now, 36);
        assert_eq!(limit.now(), 37);
        served(&mut limit, now, 36);
        assert_eq!(limit.now(), 37);
    }

    /// Rounds of as many requests as there may be, at a host that answers the request `number` of a round in `takes(number)`.
    fn rounds(
        limit: &mut AdaptiveLimit,
        start: Instant,
        count: usize,
        takes: impl Fn(u32) -> Duration,
    ) -> Instant {
        let mut now = start;
        for _ in 0..count {
            let (began, asked) = (now, u32::try_from(limit.now()).unwrap());
            for number in 1..=asked {
                now = began + takes(number);
                let _ = limit.learn(Outcome::Served, (began, now), true);
            }
            now += Duration::from_millis(1);
        }
        now
    }

    #[test]
    fn a_host_that_is_slow_and_steady_is_asked_for_more_and_one_that_does_one_at_a_time_is_not() {
        let (mut steady, mut line) = (AdaptiveLimit::new(48, TIME_OUT), AdaptiveLimit::new(48, TIME_OUT));
        let (start, each) = (Instant::now(), TIME_OUT / 6);
        rounds(&mut steady, start, 6, |number| each + each * (number % 8) / 10);
        assert_eq!(steady.now(), 48);
        // Longer than it is measured once.
        let mut now = start;
        while now < start + MEASURED_EVERY * 5 / 2 {
            now = rounds(&mut line, now, 1, |number| each * number);
            assert!(line.now() <= 4, "{line:?}");
        }
    }

    #[test]
    fn a_host_that_others_keep_busy_is_not_asked_for_what_would_time_out() {
        let mut limit = AdaptiveLimit::new(48, TIME_OUT);
        rounds(&mut limit, Instant::now(), 20, |_| TIME_OUT * 5 / 8);
        assert_eq!(limit.now(), FLOOR);
    }

    #[test]
    fn the_shortest_time_is_measured_anew_and_the_limit_is_soon_what_it_was() {
        let (mut limit, start) = (AdaptiveLimit::new(48, TIME_OUT), Instant::now());
        let now = rounds(&mut limit, start, 6, |_| TIME_OUT / 6);
        let later = rounds(&mut limit, now + MEASURED_EVERY, 1, |_| TIME_OUT / 3);
        assert!(limit.now() < 8, "{limit:?}");
        rounds(&mut limit, later, 6, |_| TIME_OUT / 3);
        assert_eq!(limit.now(), 48, "that is how long it takes now");
    }

    #[test]
    fn what_was_under_way_together_shrinks_it_once() {
        let (mut limit, began) = (AdaptiveLimit::new(48, TIME_OUT), Instant::now());
        served(&mut limit, began, 45);
        let late = began + TIME_OUT;
        assert_eq!(limit.learn(Outcome::TimedOut, (began, late), true), Some(Shrink::TimedOut));
        for _ in 0..47 {
            assert_eq!(limit.learn(Outcome::TimedOut, (began, late), true), None);
        }
        assert_eq!(limit.now(), 24);
        let began = late + Duration::from_millis(1);
        assert_eq!(limit.learn(Outcome::Served, (began, began + TIME_OUT / 4), true), Some(Shrink::Slow));
        assert_eq!(limit.now(), 18);
    }

    #[test]
    fn refusals_shrink_it_where_they_are_many() {
        let (mut limit, start) = (AdaptiveLimit::new(48, TIME_OUT), Instant::now());
        served(&mut limit, start, 45);
        for second in 0..20 {
            served(&mut limit, start, 19);
            let now = start + Duration::from_secs(second);
            assert_eq!(limit.learn(Outcome::Refused, (now, now), true), None, "one in twenty");
        }
        assert_eq!(limit.now(), 48);
        for second in 20..30 {
            let now = start + Duration::from_secs(second);
            let _ = limit.learn(Outcome::Refused, (now, now), true);
        }
        assert!(limit.now() < 12, "{limit:?}");
    }

    #[test]
    fn nothing_takes_it_below_two_or_above_the_ceiling_and_idle_hosts_do_not_grow() {
        let (mut limit, start) = (AdaptiveLimit::new(48, TIME_OUT), Instant::now());
        for second in 1..10 {
            let now = start + Duration::from_secs(second);
            let _ = limit.learn(Outcome::TimedOut, (now, now), true);
        }
        assert_eq!(limit.now(), FLOOR);
        for _ in 0..100 {
            assert_eq!(limit.learn(Outcome::Served, (start, start), false), None);
        }
        assert_eq!(limit.now(), FLOOR);
        served(&mut limit, start, 10_000);
        assert_eq!(limit.now(), 48);
        let mut single = AdaptiveLimit::new(1, TIME_OUT);
        assert_eq!(single.learn(Outcome::TimedOut, (start, start), true), None);
        served(&mut single, start, 10);
        assert_eq!(single.now(), 1);
    }
}
