//! Fuzzes `targets::registry_next_image`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::registry_next_image(input));
