//! Fuzzes `targets::server_api_answer`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::server_api_answer(input));
