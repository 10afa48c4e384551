//! The fuzzer: libFuzzer over the one of `targets::TARGETS` that `STRATABD_FUZZ_TARGET` names. `ci/fuzz` builds and runs it.
//!
//! One program for all of them, since the build and the link of a sanitized one take far longer than a short run.
#![no_main]

use std::{env, sync::LazyLock};

pub mod targets;

/// Chosen once: it is called millions of times.
static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = env::var("STRATABD_FUZZ_TARGET").expect("STRATABD_FUZZ_TARGET names a target");
    let found = targets::TARGETS.iter().find(|(name, _)| *name == wanted);
    found.unwrap_or_else(|| panic!("there is no fuzz target {wanted}")).1
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| TARGET(input));
