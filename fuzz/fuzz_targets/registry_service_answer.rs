//! Fuzzes `targets::registry_service_answer`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::registry_service_answer(input));
