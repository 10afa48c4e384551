//! What the benches share: paired rounds, medians in processor time, and a table.

#![expect(dead_code, reason = "each bench takes what it needs")]

pub mod rounds;

use rustix::time::{ClockId, clock_gettime};

/// Processor time of this thread in nanoseconds: other work on the machine does not count.
pub fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// The median of some measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// "met" or "MISSED", for a figure that has an aim.
pub fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}
