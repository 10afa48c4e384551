//! Fuzzes `targets::server_record`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::server_record(input));
