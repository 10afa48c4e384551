//! Fuzzes `targets::zfile_header`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::zfile_header(input));
