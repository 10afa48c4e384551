//! Fuzzes `targets::zfile_jump_table`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::zfile_jump_table(input));
