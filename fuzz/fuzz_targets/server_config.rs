//! Fuzzes `targets::server_config`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::server_config(input));
