//! Devices beyond 2 TiB, where 32 bits no longer number the sectors and upstream silently drops mappings.

use stratabd::{
    block::{BlockDevice, BlockQueue},
    image::{Image, ImageOptions},
    source::BlobSource,
};

use super::{
    blobs::{Behaviour, MemoryBlob},
    layer_writer::{Algorithm, Mapping, lsmt, zfile},
    reactor,
};

const SECTOR: u64 = 512;
/// 2 TiB in sectors: what a number of 32 bits takes for nothing.
const WRAP: u64 = 1 << 32;
const DEVICE_SECTORS: u64 = 3 * WRAP;
/// An arbitrary place that all multiples of `WRAP` are added to.
const PLACE: u64 = 1000;
const LEN: usize = 8192;

/// Bytes that no other place of the test has.
fn bytes(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..LEN).map(|_| random.u8(..)).collect()
}

#[test]
fn data_beyond_two_tebibytes_is_where_it_was_written_and_nowhere_else() {
    let (low, high, last) = (bytes(1), bytes(2), bytes(3));
    let sectors = LEN as u64 / SECTOR;
    let end = DEVICE_SECTORS - sectors;
    let one: Vec<Mapping> = vec![(PLACE, Ok(&low)), (WRAP + PLACE, Ok(&high)), (end, Ok(&last))];
    // The same device in two layers: what the upper one maps beyond 2 TiB must not hide what lies 2 TiB below.
    let upper: Vec<Mapping> = vec![(WRAP + PLACE, Ok(&high)), (2 * WRAP + PLACE, Err(sectors))];
    let lower: Vec<Mapping> =
        vec![(PLACE, Ok(&low)), (WRAP + PLACE, Ok(&last)), (2 * WRAP + PLACE, Ok(&high)), (end, Ok(&last))];
    let layer = |mappings: &[Mapping]| lsmt(DEVICE_SECTORS * SECTOR, mappings);
    for layers in [
        vec![layer(&one)],
        vec![zfile(&layer(&one), Algorithm::Zstd, 65_536)],
        vec![layer(&lower), zfile(&layer(&upper), Algorithm::Lz4, 4096)],
    ] {
        let reactor = reactor();
        let blobs = layers.into_iter().map(|layer| MemoryBlob::new("layer", layer, Behaviour::Warm));
        let blobs: Vec<_> = blobs.map(|blob| blob as std::sync::Arc<dyn BlobSource>).collect();
        let image = reactor.block_on(Image::open(&reactor, blobs, ImageOptions::default())).unwrap().unwrap();
        assert_eq!(image.geometry().size_bytes, DEVICE_SECTORS * SECTOR);
        let queue = image.open_queue(&reactor).unwrap();
        let zeroes = vec![0; LEN];
        for (sector, expected) in [
            (PLACE, &low),
            (WRAP + PLACE, &high),
            (end, &last),
            (2 * WRAP + PLACE, &zeroes),
            (end - WRAP, &zeroes),
            (end - 2 * WRAP, &zeroes),
            (WRAP - sectors, &zeroes),
            (WRAP, &zeroes),
        ] {
            let mut dest = vec![0xaa; LEN];
            reactor.block_on(queue.read(sector * SECTOR, &mut dest)).unwrap().unwrap();
            assert!(dest == *expected, "sector {sector}");
        }
        // Across the border, half of it mapped.
        let mut dest = vec![0xaa; 2 * LEN];
        reactor.block_on(queue.read((WRAP + PLACE) * SECTOR - LEN as u64, &mut dest)).unwrap().unwrap();
        assert!(dest == [zeroes, high.clone()].concat());
    }
}
