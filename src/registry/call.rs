//! One operation of a caller, and the time that it may take: that in which it only waits for its turn is not its own.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use url::Url;

use super::{Limits, Priority, Reason, RegistryError, Repository, budget::Turn};

/// A body that comes as fast as this, 256 kbit/s, is waited for to its end: asking again for what is on its way would only make it
/// slower.
const SLOWEST_BYTES_PER_SECOND: u64 = 32 << 10;

/// One operation of a caller, whatever number of requests it takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) priority: Priority,
    pub(super) clock: &'a Clock,
    /// Whether it is to the registry of the repository itself, which may see the certificate meant for registries.
    pub(super) is_home: bool,
    /// Whether somebody waits who has only just named the registry: one that cannot be reached at all is told soon.
    pub(super) is_first: bool,
    /// Whether another request, whose body it makes, holds a place for both: the two must not wait for each other.
    pub(super) has_place: bool,
}

/// The time of one call.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    /// For its tries and the pauses between them.
    limit: Duration,
    /// For these and for waiting.
    total: Duration,
    extra: Mutex<Extra>,
}

/// What comes on top of the limit.
#[derive(Debug, Default)]
struct Extra {
    granted: Duration,
    waits: u32,
    waits_since: Option<Instant>,
}

impl<'a> Call<'a> {
    pub(super) fn new(clock: &'a Clock, priority: Priority) -> Self {
        Self { priority, clock, is_home: false, is_first: false, has_place: false }
    }

    /// The first call of what somebody waits for.
    pub(super) fn first(clock: &'a Clock) -> Self {
        Self { is_first: true, ..Self::new(clock, Priority::Demand) }
    }

    /// The same, for a step that others wait for too: some of them may be urgent.
    pub(super) fn shared(self) -> Self {
        Self { priority: Priority::Demand, ..self }
    }

    /// The same, to `url` on behalf of `repository`.
    pub(super) fn to(self, url: &Url, repository: &Repository) -> Self {
        Self { is_home: url.origin() == repository.origin(), ..self }
    }

    /// Where it stands in line: a call that has to try again is not the youngest.
    pub(super) fn turn(self) -> Turn {
        Turn { priority: self.priority, since: self.clock.began }
    }
}

impl Clock {
    pub(super) fn start(limits: &Limits) -> Self {
        Self::start_for(limits, 0)
    }

    /// For an operation that sends so many bytes.
    pub(super) fn start_for(limits: &Limits, sent_bytes: u64) -> Self {
        let sending = transfer_time(sent_bytes);
        Self {
            began: Instant::now(),
            limit: limits.deadline() + sending,
            total: limits.total_deadline() + sending,
            extra: Mutex::default(),
        }
    }

    /// How long ago it was started.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// When time is up, as far as it is known now.
    pub(super) fn deadline(&self) -> Instant {
        let extra = self.extra();
        let waiting = extra.waits_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.began + (self.limit + extra.granted + waiting).min(self.total)
    }

    /// Waits for `turn` while the clock stands.
    pub(super) async fn stopped<T>(&self, turn: impl Future<Output = T>) -> T {
        let _standing = Standing::begin(self);
        turn.await
    }

    /// So many bytes have come.
    pub(super) fn received(&self, bytes: u64) {
        self.extra().granted += transfer_time(bytes);
    }

    /// Ends when time is up.
    pub(super) async fn run_out(&self) {
        while let deadline = self.deadline()
            && Instant::now() < deadline
        {
            sleep_until(deadline).await;
        }
    }

    /// Which time is up, once it is, and what had failed before.
    pub(super) fn reason(&self, last: Option<RegistryError>) -> Reason {
        if self.began.elapsed() >= self.total {
            Reason::TotalDeadline { limit: self.total, last }
        } else {
            Reason::Deadline { limit: self.limit, last }
        }
    }

    fn extra(&self) -> MutexGuard<'_, Extra> {
        self.extra.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What so many bytes take on the slowest way.
fn transfer_time(bytes: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / SLOWEST_BYTES_PER_SECOND)
}

/// Holds a clock, also where the wait is given up.
struct Standing<'a>(&'a Clock);

impl<'a> Standing<'a> {
    fn begin(clock: &'a Clock) -> Self {
        let mut extra = clock.extra();
        extra.waits += 1;
        extra.waits_since.get_or_insert_with(Instant::now);
        drop(extra);
        Self(clock)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        let mut extra = self.0.extra();
        extra.waits -= 1;
        if extra.waits == 0
            && let Some(since) = extra.waits_since.take()
        {
            extra.granted += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(limit_ms: u64, total_ms: u64) -> Clock {
        Clock::start(&Limits {
            request_deadline_ms: limit_ms,
            total_deadline_ms: total_ms,
            ..Limits::default()
        })
    }

    #[tokio::test]
    async fn what_it_waits_for_its_turn_is_not_its_own_time() {
        let clock = clock(50, 3_600_000);
        let wait = Duration::from_millis(200);
        clock.stopped(tokio::time::sleep(wait)).await;
        let deadline = clock.deadline();
        assert!(deadline >= clock.began + wait + clock.limit);
        clock.run_out().await;
        assert!(Instant::now() >= deadline);
        assert!(matches!(clock.reason(None), Reason::Deadline { limit, .. } if limit == clock.limit));
    }

    #[tokio::test]
    async fn all_together_is_bounded_also_while_it_waits() {
        let clock = clock(50, 200);
        tokio::select! {
            () = clock.stopped(std::future::pending()) => {}
            () = clock.run_out() => {}
        }
        assert!(clock.began.elapsed() >= clock.total);
        assert!(matches!(clock.reason(None), Reason::TotalDeadline { limit, .. } if limit == clock.total));
    }

    #[test]
    fn bytes_that_come_give_the_time_that_they_take_on_a_slow_way() {
        let clock = clock(30_000, 600_000);
        clock.received(1 << 20);
        assert_eq!(clock.deadline() - clock.began, Duration::from_secs(30 + 32));
    }
}
