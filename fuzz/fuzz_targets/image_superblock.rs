//! Fuzzes `targets::image_superblock`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| targets::image_superblock(input));
