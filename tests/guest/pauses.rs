//! How long programs were kept waiting, as a table can show it.

use std::{fmt, time::Duration};

/// Times of the same kind.
#[derive(Debug, Default)]
pub(crate) struct Pauses(Vec<Duration>);

impl Pauses {
    pub(crate) fn add(&mut self, pause: Duration) {
        self.0.push(pause);
    }
}

/// How many there are, and of them in milliseconds the least, the median, two high ones and the most.
impl fmt::Display for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
            sorted.get(index).map_or(0, Duration::as_millis)
        };
        let (least, median, high, higher, most) = (at(0), at(50), at(90), at(99), at(100));
        write!(
            f,
            "{} pauses in ms: min {least} median {median} p90 {high} p99 {higher} max {most}",
            sorted.len()
        )
    }
}
