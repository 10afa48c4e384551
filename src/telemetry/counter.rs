//! A number of events that only grows.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts events.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one more.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Counts `events` more.
    pub fn inc_by(&self, events: u64) {
        self.0.fetch_add(events, Ordering::Relaxed);
    }

    /// How many there were so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
