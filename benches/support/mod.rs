//! What the benches share: measurements taken in turn, medians of processor time, and verdicts.

use rustix::time::{ClockId, clock_gettime};

/// Rounds of each measurement.
pub(crate) const ROUNDS: usize = 7;

/// One subject: does its whole work once and returns a value that depends on it.
pub(crate) type Subject<'a> = &'a mut dyn FnMut() -> u64;

/// Median nanoseconds of processor time for each subject, over [`ROUNDS`] rounds in which each has its turn, so that a
/// slow moment of the machine hits them alike; one more round goes before to warm caches. All must return the same value.
pub(crate) fn paired<const N: usize>(mut subjects: [Subject<'_>; N]) -> [f64; N] {
    let mut times: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    for round in 0..=ROUNDS {
        let mut results = Vec::new();
        for (subject, times) in subjects.iter_mut().zip(&mut times) {
            let began = cpu_ns();
            results.push(std::hint::black_box(subject()));
            if round > 0 {
                times.push(cpu_ns() - began);
            }
        }
        assert!(results.iter().all(|result| Some(result) == results.first()), "they disagree: {results:?}");
    }
    times.map(median)
}

/// "met" or "MISSED", for a figure that has an aim.
pub(crate) fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// Processor time of this thread in nanoseconds: other work on the machine does not count.
fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
