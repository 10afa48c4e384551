//! Fuzzes `targets::lsmt_index`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::lsmt_index(input));
