//! Fuzzes `targets::oci_manifest`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::oci_manifest(input));
