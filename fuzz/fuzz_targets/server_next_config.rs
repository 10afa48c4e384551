//! Fuzzes `targets::server_next_config`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::server_next_config(input));
