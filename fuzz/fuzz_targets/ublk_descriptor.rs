//! Fuzzes `targets::ublk_descriptor`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::ublk_descriptor(input));
