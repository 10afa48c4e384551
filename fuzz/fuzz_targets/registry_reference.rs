//! Fuzzes `targets::registry_reference`, which lies in `fuzz/registry.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::registry_reference(input));
