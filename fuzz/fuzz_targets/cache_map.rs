//! Fuzzes `targets::cache_map`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::cache_map(input));
