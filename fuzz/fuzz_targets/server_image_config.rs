//! Fuzzes `targets::server_image_config`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::server_image_config(input));
