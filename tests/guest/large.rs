//! A device of more than 2 TiB by the real driver: sectors whose numbers need more than 32 bits.

use std::fs;

use crate::{
    devices::{Direct, pattern},
    frame::{in_guest, output_of},
    support::{
        device::Attached,
        layer_writer::{Algorithm, lsmt, zfile},
    },
};

const SECTOR: u64 = 512;
/// 2 TiB in sectors.
const WRAP: u64 = 1 << 32;
const PLACE: u64 = 1000;
const LEN: usize = 8192;

#[test]
fn sectors_beyond_two_tebibytes_are_read_and_those_2_to_the_32_below_are_others() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (low, high, last) = (pattern(LEN, 1), pattern(LEN, 2), pattern(LEN, 3));
    let size = 3 * WRAP * SECTOR;
    let end = 3 * WRAP - LEN as u64 / SECTOR;
    let layer = lsmt(size, &[(PLACE, Ok(&low)), (WRAP + PLACE, Ok(&high)), (end, Ok(&last))]);
    let file = dir.path().join("layer");
    fs::write(&file, zfile(&layer, Algorithm::Lz4, 4096)).unwrap();
    let device = Attached::add(&["--no-cache", "--layer", file.to_str().unwrap()]);
    let path = device.path().to_str().unwrap();
    assert_eq!(output_of("blockdev", &["--getsize64", path]).trim(), size.to_string());
    let node = Direct::open(device.path(), false);
    let zeroes = vec![0; LEN];
    for (sector, expected) in [
        (PLACE, &low),
        (WRAP + PLACE, &high),
        (2 * WRAP + PLACE, &zeroes),
        (end, &last),
        (end - WRAP, &zeroes),
        (end - 2 * WRAP, &zeroes),
    ] {
        assert!(node.read(sector * SECTOR, LEN).unwrap() == *expected, "sector {sector}");
    }
}
