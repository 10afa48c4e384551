//! Fuzzes `targets::lsmt_log`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::lsmt_log(input));
