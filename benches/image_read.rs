//! Random 4 KiB reads through the whole engine, from files in the page cache, against bare reads of the same bytes.
//!
//! `cargo bench --bench image_read [-- <start of a case's name>]`. The files are made in the directory `TMPDIR`, or /tmp:
//! it should be a file system with a page cache, and have 200 MB free.
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
mod support;
#[path = "support/synthetic.rs"]
mod synthetic;

use std::{io::Write, os::fd::OwnedFd, sync::Arc};

use bare::Bare;
use futures_util::future::join_all;
use layer_writer::{Algorithm, zfile};
use stratabd::{
    block::{BlockDevice, BlockQueue, SECTOR_BYTES},
    format::{
        lsmt::{Header, SLOT_BYTES, Segment},
        zfile::{Block, JumpTable},
    },
    image::{Image, ImageOptions, ImageQueue},
    reactor::{Reactor, ReactorConfig},
    source::{BlobSource, FileSource},
};
use support::{paired, verdict};
use synthetic::PAGE;

/// Pages of the device: 64 MiB.
const PAGES: usize = 16_384;
const READS: usize = 8192;
const DEPTH: usize = 32;

/// A layer to measure.
struct Case {
    name: &'static str,
    codec: Option<Algorithm>,
    /// Sectors by which the data misses the boundaries of the blocks.
    skew: usize,
    /// Largest time of the engine for one of the bare read.
    aim: f64,
}

const CASES: [Case; 5] = [
    Case { name: "raw", codec: None, skew: 0, aim: 1.5 },
    Case { name: "raw, off the page", codec: None, skew: 3, aim: 1.5 },
    Case { name: "lz4 4 KiB", codec: Some(Algorithm::Lz4), skew: 0, aim: 1.25 },
    Case { name: "lz4 4 KiB, in two blocks", codec: Some(Algorithm::Lz4), skew: 3, aim: 1.25 },
    Case { name: "zstd 4 KiB", codec: Some(Algorithm::Zstd), skew: 0, aim: 1.25 },
];

fn main() {
    println!(
        "random 4 KiB reads, page cache warm; microseconds of processor time each, median of rounds in turn"
    );
    println!("bare: pread of the same bytes, and decompression and checksum of the same blocks");
    println!(
        "{:>24} | {:>6} {:>8} {:>8} | {:>6} {:>6} | aim",
        "layer", "bare", "depth 1", "depth 32", "ratio", "ratio"
    );
    let reactor = Reactor::new(&ReactorConfig::default()).expect("io_uring");
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for case in CASES.iter().filter(|case| only.as_ref().is_none_or(|only| case.name.starts_with(only))) {
        measure(&reactor, case);
    }
}

fn measure(reactor: &Reactor, case: &Case) {
    let mut random = fastrand::Rng::with_seed(11);
    let content = synthetic::lsmt(&synthetic::pages(PAGES, &mut random), true, case.skew, &mut random);
    let places = places_of_pages(&content);
    let (blob, table) = match case.codec {
        None => (content, None),
        Some(codec) => {
            let file = zfile(&content, codec, PAGE);
            let table = bare::table(&file);
            (file, Some(table))
        }
    };
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&blob).expect("room for the layer");
    // Opened by its path, as the daemon does: what is set for the engine's reads is not set for the bare ones.
    let source = FileSource::open(file.path()).expect("a regular file");
    let file: OwnedFd = file.into_file().into();
    let layers: Vec<Arc<dyn BlobSource>> = vec![Arc::new(source)];
    let options = ImageOptions { decoded_cache_bytes: 0, ..ImageOptions::default() };
    let image = reactor.block_on(Image::open(reactor, layers, options)).expect("the reactor runs");
    let queue = image.expect("the layer just written").open_queue(reactor).expect("a queue");

    let pages: Vec<usize> = (0..READS).map(|_| random.usize(0..PAGES)).collect();
    let plan: Vec<(u64, Vec<Block>)> = pages
        .iter()
        .map(|page| {
            let place = places.get(*page).copied().expect("a page of the device");
            (place, table.as_ref().map_or_else(Vec::new, |table| of_page(table, place)))
        })
        .collect();
    let mut libraries = Bare::new(case.codec.unwrap_or(Algorithm::Lz4));
    let (mut encoded, mut dest) = (vec![0; 3 * PAGE], vec![0; 2 * PAGE]);
    let [bare, one, many] = paired([
        &mut || read_bare(&file, &plan, &mut libraries, &mut encoded, &mut dest),
        &mut || read_all(reactor, &queue, &pages, 1),
        &mut || read_all(reactor, &queue, &pages, DEPTH),
    ]);
    let each = |ns: f64| ns / READS as f64 / 1e3;
    let met = one / bare <= case.aim && many / bare <= case.aim;
    println!(
        "{:>24} | {:>6.2} {:>8.2} {:>8.2} | {:>6.2} {:>6.2} | {:.2} {}",
        case.name,
        each(bare),
        each(one),
        each(many),
        one / bare,
        many / bare,
        case.aim,
        verdict(met)
    );
}

fn of_page(table: &JumpTable, place: u64) -> Vec<Block> {
    bare::blocks(table, place, PAGE as u64)
}

fn read_bare(
    file: &OwnedFd,
    plan: &[(u64, Vec<Block>)],
    libraries: &mut Bare,
    encoded: &mut [u8],
    dest: &mut [u8],
) -> u64 {
    for (place, blocks) in plan {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            let page = dest.get_mut(..PAGE).expect("room for a page");
            assert_eq!(rustix::io::pread(file, page, *place), Ok(PAGE));
            continue;
        };
        let start = first.encoded.start();
        let room = encoded.get_mut(..(last.encoded.end() - start) as usize).expect("room for two blocks");
        assert_eq!(rustix::io::pread(file, &mut *room, start), Ok(room.len()));
        for block in blocks {
            let from = (block.encoded.start() - start) as usize;
            let bytes = room.get(from..from + block.encoded.len() as usize).expect("a block");
            libraries.decode(bytes, dest);
        }
    }
    plan.len() as u64
}

/// Reads all pages with `depth` tasks at once.
fn read_all(reactor: &Reactor, queue: &ImageQueue, pages: &[usize], depth: usize) -> u64 {
    let tasks = pages.chunks(pages.len().div_ceil(depth)).map(|pages| async move {
        let mut dest = vec![0; PAGE];
        for page in pages {
            queue.read((page * PAGE) as u64, &mut dest).await.expect("a read");
        }
        pages.len() as u64
    });
    reactor.block_on(join_all(tasks)).expect("the reactor runs").iter().sum()
}

/// Where the data of a device's pages lies in the LSMT file, in bytes, as its own index says.
fn places_of_pages(content: &[u8]) -> Vec<u64> {
    let index = content.get(..content.len() - SLOT_BYTES).unwrap_or_default();
    let trailer = content.get(index.len()..).unwrap_or_default();
    let trailer = Header::decode(trailer, index.len() as u64).expect("the trailer just written");
    let entries = index.get(trailer.index_offset as usize..).unwrap_or_default().as_chunks::<16>().0;
    entries.iter().map(|entry| Segment::decode(entry).moffset() * SECTOR_BYTES).collect()
}
