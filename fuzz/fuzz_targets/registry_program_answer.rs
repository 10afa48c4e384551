//! Fuzzes `targets::registry_program_answer`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::registry_program_answer(input));
