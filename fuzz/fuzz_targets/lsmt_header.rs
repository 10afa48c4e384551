//! Fuzzes `targets::lsmt_header`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::lsmt_header(input));
