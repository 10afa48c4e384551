//! What every guest test begins with, and waits with.

use std::{
    env, io,
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long something may take that is sure to come: an emulated guest on a busy machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this is the guest; if not, says how to get there, past libtest's capture. Call it first in each test:
/// `if !in_guest() { return; }`.
pub(crate) fn in_guest() -> bool {
    let inside = env::var_os("STRATABD_GUEST").is_some_and(|value| value == "1");
    if !inside {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let _ = writeln!(io::stderr(), "{test} skipped: it needs the guest, run ci/vm/guest-tests");
    }
    inside
}

/// A moment of a loop that waits for something. One without it takes a processor from what it waits for, and under emulation a good
/// part of the machine.
#[expect(clippy::disallowed_methods, reason = "the tests wait for other processes")]
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// Runs a program to its end and returns what it printed on both outputs.
///
/// # Panics
/// With the program's output, when it cannot be started or fails.
pub(crate) fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{program} {arguments:?} ended with {}: {said}", output.status);
    said
}

/// Waits until `is_so`, which `what` says.
///
/// # Panics
/// When it is not so for a minute.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        pause();
    }
}
