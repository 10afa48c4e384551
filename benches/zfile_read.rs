//! Reads of compressed layers through the engine against bare decompression and checksums of the same blocks.
//!
//! The blob lies in memory, so that only the engine's own work is added. `cargo bench --bench zfile_read`
#![expect(
    clippy::cast_possible_truncation,
    reason = "a bench runs where usize has 64 bits and lengths are small"
)]

#[path = "support/bare.rs"]
mod bare;
#[path = "../tests/support/layer_writer.rs"]
#[expect(dead_code, unreachable_pub, reason = "the writer is shared with the tests, which use more of it")]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "as in tests, what fails has nothing to recover"
)]
mod layer_writer;
#[path = "support/memory.rs"]
mod memory;
mod support;
#[path = "support/synthetic.rs"]
mod synthetic;

use std::sync::Arc;

use bare::Bare;
use layer_writer::{Algorithm, zfile};
use memory::MemoryBlob;
use stratabd::{
    block::{BlockDevice, BlockQueue},
    format::zfile::{Block, JumpTable},
    image::{Image, ImageOptions, ImageQueue},
    reactor::{Reactor, ReactorConfig},
};
use support::{paired, verdict};
use synthetic::PAGE;

/// Pages of the device: 32 MiB.
const PAGES: usize = 8192;

/// Pages that the reads of the warm set are of: 4 MiB, and a cache that holds their blocks at any size.
const WARM_PAGES: usize = 1024;
const CACHE_BYTES: u64 = 64 << 20;

const READS: usize = 4000;

const LARGE_BYTES: usize = 1 << 20;

fn main() {
    println!(
        "reads of a compressed layer in memory; microseconds of processor time, median of rounds in turn"
    );
    println!(
        "{:>5} {:>6} | {:>7} {:>7} {:>6} | {:>7} {:>7} {:>6} | {:>7} {:>7} {:>6} | aims",
        "codec", "block", "bare", "engine", "ratio", "bare", "engine", "ratio", "decode", "cached", "ratio"
    );
    println!(
        "{:12} | {:^22} | {:^22} | {:^22} |",
        "", "random 4 KiB", "sequential 1 MiB", "warm random 4 KiB"
    );
    let reactor = Reactor::new(&ReactorConfig::default()).expect("io_uring");
    for (codec, name) in [(Algorithm::Lz4, "lz4"), (Algorithm::Zstd, "zstd")] {
        for kib in [4, 8, 16, 32, 64] {
            measure(&reactor, codec, name, kib << 10);
        }
    }
}

fn measure(reactor: &Reactor, codec: Algorithm, name: &str, block_bytes: usize) {
    let mut random = fastrand::Rng::with_seed(7);
    let content = synthetic::lsmt(&synthetic::pages(PAGES, &mut random), false, 0, &mut random);
    let file = zfile(&content, codec, block_bytes);
    let table = bare::table(&file);
    let plain = open(reactor, &file, 0);
    let cached = open(reactor, &file, CACHE_BYTES);

    let offsets = |pages: usize, random: &mut fastrand::Rng| -> Vec<u64> {
        (0..READS).map(|_| random.usize(0..pages) as u64 * PAGE as u64).collect()
    };
    let small = offsets(PAGES, &mut random);
    let [bare_small, engine_small] = compare(reactor, codec, &table, &file, &plain, &small, PAGE);
    let large: Vec<u64> =
        (0..(PAGES * PAGE / LARGE_BYTES) as u64).map(|at| at * LARGE_BYTES as u64).collect();
    let [bare_large, engine_large] = compare(reactor, codec, &table, &file, &plain, &large, LARGE_BYTES);
    let warm = offsets(WARM_PAGES, &mut random);
    let [decode, from_cache] = paired([&mut || through(reactor, &plain, &warm, PAGE), &mut || {
        through(reactor, &cached, &warm, PAGE)
    }]);

    let each = |ns: f64, count: usize| ns / count as f64 / 1e3;
    let ratios = [bare_small / engine_small, bare_large / engine_large, decode / from_cache];
    let met = ratios.iter().zip([0.8, 0.8, 5.0]).all(|(ratio, aim)| *ratio >= aim);
    println!(
        "{name:>5} {:>3}KiB | {:>7.2} {:>7.2} {:>6.2} | {:>7.0} {:>7.0} {:>6.2} | {:>7.2} {:>7.2} {:>6.1} | {}",
        block_bytes >> 10,
        each(bare_small, READS),
        each(engine_small, READS),
        ratios[0],
        each(bare_large, large.len()),
        each(engine_large, large.len()),
        ratios[1],
        each(decode, READS),
        each(from_cache, READS),
        ratios[2],
        verdict(met)
    );
}

fn open(reactor: &Reactor, file: &[u8], decoded_cache_bytes: u64) -> ImageQueue {
    let layers: Vec<Arc<dyn stratabd::source::BlobSource>> = vec![Arc::new(MemoryBlob(file.to_vec()))];
    let image = reactor.block_on(Image::open(
        reactor,
        layers,
        ImageOptions { decoded_cache_bytes, ..ImageOptions::default() },
    ));
    image.expect("the reactor runs").expect("the layer just written").open_queue(reactor).expect("a queue")
}

/// Nanoseconds of all reads, bare and through the engine.
fn compare(
    reactor: &Reactor,
    codec: Algorithm,
    table: &JumpTable,
    file: &[u8],
    queue: &ImageQueue,
    offsets: &[u64],
    len: usize,
) -> [f64; 2] {
    // The data of the device follows the header of the LSMT file.
    let blocks: Vec<Vec<Block>> =
        offsets.iter().map(|offset| bare::blocks(table, offset + PAGE as u64, len as u64)).collect();
    let mut libraries = Bare::new(codec);
    let mut dest = vec![0; len + (128 << 10)];
    paired([
        &mut || {
            for blocks in &blocks {
                let mut at = 0;
                for block in blocks {
                    let room = dest.get_mut(at..at + block.content.len() as usize).expect("room");
                    at += libraries.decode(bare::slice(file, block.encoded), room);
                }
            }
            offsets.len() as u64
        },
        &mut || through(reactor, queue, offsets, len),
    ])
}

fn through(reactor: &Reactor, queue: &ImageQueue, offsets: &[u64], len: usize) -> u64 {
    let mut dest = vec![0; len];
    let done = reactor.block_on(async {
        for offset in offsets {
            queue.read(*offset, &mut dest).await.expect("a read");
        }
    });
    done.expect("the reactor runs");
    offsets.len() as u64
}
