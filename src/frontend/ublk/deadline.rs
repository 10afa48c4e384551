//! A moment by which several steps must be done together.

use std::time::{Duration, Instant};

/// The pauses between looks at what the driver does by itself: first the shortest, which is what it mostly takes. Many devices are
/// waited for at once, and who looks all the time keeps the processors from what he waits for.
const SHORTEST_STEP: Duration = Duration::from_millis(2);
const LONGEST_STEP: Duration = Duration::from_millis(50);

/// A step is this part of what was waited already, and so is what is lost by it.
const STEP_SHARE: u32 = 8;

#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    began: Instant,
    limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Self { began: Instant::now(), limit }
    }

    /// What was granted at the start.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// What is left; zero when it has passed.
    pub(super) fn remaining(&self) -> Duration {
        self.limit.saturating_sub(self.began.elapsed())
    }

    pub(super) fn has_passed(&self) -> bool {
        self.remaining().is_zero()
    }

    /// How long to wait before the next look at something that is waited for since this was made.
    pub(super) fn step(&self) -> Duration {
        (self.began.elapsed() / STEP_SHARE).clamp(SHORTEST_STEP, LONGEST_STEP)
    }

    /// Waits for `step`, or less if the deadline comes first.
    pub(super) fn pause(&self, step: Duration) {
        #[expect(
            clippy::disallowed_methods,
            reason = "threads that attach and remove devices serve nothing"
        )]
        std::thread::sleep(step.min(self.remaining()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_become_rarer_the_longer_it_takes() {
        let limit = Duration::from_secs(10);
        let ago = |ms| Deadline { began: Instant::now() - Duration::from_millis(ms), limit };
        assert_eq!(ago(0).step(), SHORTEST_STEP);
        assert!((12..50).contains(&ago(100).step().as_millis()));
        assert_eq!(ago(5000).step(), LONGEST_STEP);
    }
}
