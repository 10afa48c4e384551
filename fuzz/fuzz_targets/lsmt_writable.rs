//! Fuzzes `targets::lsmt_writable`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::lsmt_writable(input));
