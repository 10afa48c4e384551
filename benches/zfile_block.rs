//! Decoding ZFile blocks one by one against bare decompression and checksum of the same blocks.
//!
//! `cargo bench --bench zfile_block`

#[path = "../tests/support/layer_writer.rs"]
#[expect(dead_code, unreachable_pub, reason = "the writer is shared with the tests, which use more of it")]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "as in tests, what fails has nothing to recover"
)]
mod layer_writer;
mod support;

use std::hint::black_box;

use stratabd::format::{
    crc,
    zfile::{Algorithm, BLOCK_CRC_SEED, Decoder, JumpTable, SLOT_BYTES, Start},
};
use support::{paired, verdict};

/// Content of each file in bytes.
const CONTENT_BYTES: usize = 16 << 20;

/// At least this part of the speed of bare decoding is the aim.
const AIM: f64 = 0.95;

fn main() {
    println!("blocks in random order, MB of content a second of processor time, median of rounds in turn");
    println!("{:>6} {:>6} | {:>8} {:>8} {:>6} | aim {AIM}", "codec", "block", "bare", "Decoder", "ratio");
    for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
        for block_size in [4096, 16384, 65536] {
            measure(algorithm, block_size);
        }
    }
}

fn measure(algorithm: Algorithm, block_size: u32) {
    let (file, table) = zfile(algorithm, block_size);
    let mut order: Vec<u32> = (0..table.layout().block_count()).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    let size = usize::try_from(block_size).expect("a block fits in memory");
    let [mut bare_dest, mut dest] = [vec![0; size], vec![0; size]];
    let mut zstd = zstd::bulk::Decompressor::new().expect("there is memory");
    let mut decoder = Decoder::new();
    let encoded = |number: u32| {
        let range = table.block(number).expect("the block exists").encoded;
        let [start, end] =
            [range.start(), range.end()].map(|at| usize::try_from(at).expect("the file is in memory"));
        file.get(start..end).expect("the block is in the file")
    };
    // Where the blocks are is found outside of the measurement for the bare decoder only.
    let blocks: Vec<&[u8]> = order.iter().map(|number| encoded(*number)).collect();
    let mut bare = || {
        for block in &blocks {
            let (compressed, checksum) = block.split_last_chunk().expect("a checksum follows");
            assert_eq!(crc::raw(BLOCK_CRC_SEED, compressed), u32::from_le_bytes(*checksum));
            let decoded = match algorithm {
                Algorithm::Lz4 => lz4::block::decompress_to_buffer(
                    compressed,
                    Some(i32::try_from(block_size).expect("a block is small")),
                    &mut bare_dest,
                ),
                Algorithm::Zstd => zstd.decompress_to_buffer(compressed, bare_dest.as_mut_slice()),
            };
            assert_eq!(decoded.expect("the block is sound"), size);
            black_box(&bare_dest);
        }
        0
    };
    let mut ours = || {
        for number in &order {
            let block = table.block(*number).expect("the block exists");
            decoder.decode(table.layout(), &block, encoded(*number), &mut dest).expect("the block is sound");
            black_box(&dest);
        }
        0
    };
    let [bare_ns, ours_ns] = paired([&mut bare, &mut ours]);
    let speed = |ns: f64| CONTENT_BYTES as f64 * 1e3 / ns;
    let ratio = bare_ns / ours_ns;
    println!(
        "{:>6} {:>6} | {:>8.0} {:>8.0} {:>6.3} | {}",
        format!("{algorithm:?}"),
        block_size,
        speed(bare_ns),
        speed(ours_ns),
        ratio,
        verdict(ratio >= AIM)
    );
}

/// Words from a small dictionary, which shrink to about half with LZ4 at 4 KiB, as the files of images do.
fn content() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let words: Vec<String> =
        (0..2000).map(|_| (0..random.usize(2..12)).map(|_| random.lowercase()).collect()).collect();
    let mut content = Vec::with_capacity(CONTENT_BYTES + 16);
    while content.len() < CONTENT_BYTES {
        content.extend(random.choice(&words).expect("there are words").as_bytes());
        content.push(b' ');
    }
    content.truncate(CONTENT_BYTES);
    content
}

fn zfile(algorithm: Algorithm, block_size: u32) -> (Vec<u8>, JumpTable) {
    let packed_by = match algorithm {
        Algorithm::Lz4 => layer_writer::Algorithm::Lz4,
        Algorithm::Zstd => layer_writer::Algorithm::Zstd,
    };
    let block_bytes = usize::try_from(block_size).expect("a block fits in memory");
    let file = layer_writer::zfile(&content(), packed_by, block_bytes);
    let slot = file.get(..SLOT_BYTES).expect("there is a header");
    let Ok(Start::Complete(layout)) = Start::decode(slot, file.len() as u64) else {
        panic!("the header is final and sound");
    };
    let [start, end] = [layout.index_range().start(), layout.index_range().end()]
        .map(|at| usize::try_from(at).expect("the file is in memory"));
    let index = file.get(start..end).expect("the table is in the file");
    let table = JumpTable::decode(layout, index).expect("the table is sound");
    (file, table)
}
