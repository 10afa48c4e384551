//! Fuzzes `targets::tar_envelope`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::tar_envelope(input));
