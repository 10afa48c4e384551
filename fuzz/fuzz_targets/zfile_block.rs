//! Fuzzes `targets::zfile_block`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::zfile_block(input));
