//! Measures several subjects in turn, so that a slow moment of the machine hits them alike.

use super::{cpu_ns, median};

/// Rounds of each measurement.
pub const ROUNDS: usize = 7;

/// One subject: does its whole work once and returns a value that depends on it.
pub type Subject<'a> = &'a mut dyn FnMut() -> u64;

/// Median nanoseconds of processor time for each subject, over [`ROUNDS`] rounds in which each has its turn; one more
/// round goes before to warm caches. All subjects must return the same value.
pub fn paired<const N: usize>(mut subjects: [Subject<'_>; N]) -> [f64; N] {
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
