//! Fuzzes `targets::server_overlaybd_config`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::server_overlaybd_config(input));
