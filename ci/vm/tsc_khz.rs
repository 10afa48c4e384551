//! Prints the frequency of this machine's time stamp counter in kHz. `ci/vm/run` compiles it with rustc alone.

use std::{
    arch::x86_64::_rdtsc,
    thread,
    time::{Duration, Instant},
};

fn main() {
    let (first, began) = pair();
    thread::sleep(Duration::from_millis(300));
    let (last, ended) = pair();
    let khz = u128::from(last - first) * 1_000_000 / (ended - began).as_nanos();
    println!("{khz}");
}

/// A value of the counter and the time at which it was read: the tightest of many tries, since this thread may lose its
/// processor between the two.
fn pair() -> (u64, Instant) {
    let tries = (0..1000).map(|_| {
        // SAFETY: every x86-64 processor has the instruction, and no system that we run on forbids it.
        let before = unsafe { _rdtsc() };
        let time = Instant::now();
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        (after - before, before, time)
    });
    let (_, before, time) = tries.min_by_key(|(gap, _, _)| *gap).expect("there are tries");
    (before, time)
}
