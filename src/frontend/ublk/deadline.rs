//! A moment by which several steps must be done together.

use std::time::{Duration, Instant};

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

    /// Waits for `step`, or less if the deadline comes first.
    pub(super) fn pause(&self, step: Duration) {
        #[expect(
            clippy::disallowed_methods,
            reason = "threads that attach and remove devices serve nothing"
        )]
        std::thread::sleep(step.min(self.remaining()));
    }
}
