//! How fast layers are merged: slowly, as long as nobody waits for it.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Bytes of data that are merged in a second, so that a disk has most of its time for devices.
const BYTES_PER_SECOND: u64 = 64 << 20;

/// The pace of one device's merges.
#[derive(Debug, Default)]
pub(super) struct Pace {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many wait for the end.
    hurried: usize,
    has_ended: bool,
    /// Bytes that were done when it was last asked, and when the next may be.
    done_bytes: u64,
    due: Option<Instant>,
}

/// Somebody who waits for the end of a merge.
#[derive(Debug)]
pub(super) struct Hurry<'a>(&'a Pace);

impl Pace {
    /// Waits until more may be done; `done_bytes` are, of a merge that may have begun since the last call.
    pub(super) fn wait(&self, done_bytes: u64) {
        let mut state = self.state();
        let now = Instant::now();
        let step = done_bytes.checked_sub(state.done_bytes).unwrap_or(done_bytes);
        state.done_bytes = done_bytes;
        let takes = Duration::from_micros(step.saturating_mul(1_000_000) / BYTES_PER_SECOND);
        let due = state.due.map_or(now, |due| due.max(now)) + takes;
        state.due = Some(due);
        while state.hurried == 0 && !state.has_ended {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.due = None;
    }

    /// Has merges go as fast as they can until the answer is dropped.
    pub(super) fn hurry(&self) -> Hurry<'_> {
        self.state().hurried += 1;
        self.changed.notify_all();
        Hurry(self)
    }

    /// Nobody waits here any more.
    pub(super) fn end(&self) {
        self.state().has_ended = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.state().hurried -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_that_somebody_waits_for_or_that_is_to_end_does_not_keep_to_the_pace() {
        let pace = Pace::default();
        let began = Instant::now();
        pace.wait(BYTES_PER_SECOND / 20);
        assert!(began.elapsed() >= Duration::from_millis(50), "it does not wait");
        let hurry = pace.hurry();
        pace.wait(BYTES_PER_SECOND * 3600);
        drop(hurry);
        std::thread::scope(|scope| {
            scope.spawn(|| pace.wait(BYTES_PER_SECOND * 7200));
            pace.end();
        });
    }
}
