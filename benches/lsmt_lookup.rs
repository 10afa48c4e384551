//! Lookups in the merged index against a plain binary search over 16-byte segments, memory, and time to open a stack.
//!
//! `cargo bench --bench lsmt_lookup [-- <segments>]`

mod support;

use std::hint::black_box;

use stratabd::{
    block::{ByteRange, SECTOR_BYTES},
    format::lsmt::{FileKind, Header, LayerLayout, SLOT_BYTES, Segment, SlotPosition, UserTag},
    image::index::{Cursor, Extent, Index},
};
use support::{paired, verdict};

/// Lookups of one round.
const LOOKUPS: usize = 1 << 18;

/// Sectors from the start of one segment to that of the next at least.
const STRIDE: u64 = 16;

/// Distance of sequential lookups: requests of 4 KiB.
const REQUEST_SECTORS: u64 = 8;

fn main() {
    println!(
        "lookups of the segment at or after a sector, million a second of processor time, median of rounds in turn"
    );
    println!(
        "{:>7} {:>9} {:>6} | {:>8} {:>8} {:>6} | {:>8} {:>8} {:>6} | {:>7} {:>8} | aims",
        "layout",
        "segments",
        "layers",
        "binary",
        "index",
        "ratio",
        "binary",
        "index",
        "ratio",
        "B/seg",
        "open ms"
    );
    println!("{:>7} {:>9} {:>6} | {:^24} | {:^24} |", "", "", "", "random", "sequential");
    let only: Option<usize> = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    for segments in [1_000, 10_000, 100_000, 1_000_000] {
        if only.is_some_and(|only| only != segments) {
            continue;
        }
        for layers in [1, 10, 100] {
            measure(Layout::Even, segments, layers);
        }
        measure(Layout::Gaps, segments, 10);
        measure(Layout::Crowds, segments, 10);
    }
}

/// How the segments lie on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Each in [`STRIDE`] sectors of its own.
    Even,
    /// With gaps between them as chance makes them, nearly as long as a stride on the average.
    Gaps,
    /// In crowds of 64 on the average, with gaps of up to 512 MiB between crowds: a disk on which little is used.
    Crowds,
}

impl Layout {
    /// Where each segment may begin, and the end of the device.
    fn starts(self, count: usize, random: &mut fastrand::Rng) -> (Vec<u64>, u64) {
        let mut at = 0;
        let mut starts = Vec::with_capacity(count);
        for _ in 0..count {
            starts.push(at);
            at += STRIDE
                + match self {
                    Self::Even => 0,
                    Self::Gaps => (0..).take_while(|_| random.u64(0..STRIDE) > 0).count() as u64,
                    Self::Crowds if random.u8(0..64) == 0 => {
                        let limit = 1 << random.u32(4..=20);
                        random.u64(0..limit)
                    }
                    Self::Crowds => random.u64(0..8),
                };
        }
        (starts, at)
    }
}

fn measure(layout: Layout, count: usize, layers: usize) {
    let mut random = fastrand::Rng::with_seed(count as u64 * 1000 + layers as u64);
    let (starts, end) = layout.starts(count, &mut random);
    let size_bytes = end * SECTOR_BYTES;
    let stack = stack(&starts, layers, &mut random);
    let files: Vec<File> = stack.iter().map(|segments| File::of(segments)).collect();
    let index = Index::merge(&stack, size_bytes);
    let flat = flatten(&index, size_bytes);

    let near_some = |_| random.choice(&starts).map_or(0, |start| start + random.u64(0..STRIDE));
    let sectors: Vec<u64> = (0..LOOKUPS).map(near_some).collect();
    let [binary_random, index_random] = compare(&index, &flat, &sectors);
    let requests = starts.iter().flat_map(|start| [*start, start + REQUEST_SECTORS]);
    let sectors: Vec<u64> = requests.cycle().take(LOOKUPS).collect();
    let [binary_sequential, index_sequential] = compare(&index, &flat, &sectors);
    let [open_ns] = paired([&mut || open(&files, size_bytes)]);

    let rate = |ns: f64| LOOKUPS as f64 / ns * 1e3;
    let bytes = index.memory_bytes() as f64 / index.segments() as f64;
    let (random_ratio, sequential_ratio) =
        (binary_random / index_random, binary_sequential / index_sequential);
    let mut aims = Vec::new();
    if count >= 100_000 && layout != Layout::Crowds {
        aims.push(format!("4x {}", verdict(random_ratio >= 4.0 && sequential_ratio >= 4.0)));
    }
    aims.push(format!("24 B {}", verdict(bytes <= 24.0)));
    if count == 100_000 && layers == 100 {
        aims.push(format!("20 ms {}", verdict(open_ns < 20e6)));
    }
    println!(
        "{:>7} {count:>9} {layers:>6} | {:>8.1} {:>8.1} {random_ratio:>6.2} | {:>8.1} {:>8.1} {sequential_ratio:>6.2} | {bytes:>7.2} {:>8.2} | {}",
        format!("{layout:?}").to_lowercase(),
        rate(binary_random),
        rate(index_random),
        rate(binary_sequential),
        rate(index_sequential),
        open_ns / 1e6,
        aims.join(", ")
    );
}

/// A visible segment at each start, in a random layer, and hidden ones below a fifth of them. Lowest layer first.
fn stack(starts: &[u64], layers: usize, random: &mut fastrand::Rng) -> Vec<Vec<Segment>> {
    let mut stack = vec![Vec::new(); layers];
    let mut moffset = 8;
    for start in starts {
        let length = random.u32(6..=15);
        let top = random.usize(0..layers);
        let hidden = (top > 0 && random.u8(0..5) == 0).then(|| random.usize(0..top));
        for layer in [Some(top), hidden].into_iter().flatten() {
            let segment = Segment::new(*start, length, moffset, false, 0);
            stack
                .get_mut(layer)
                .expect("a layer of the stack")
                .push(segment.expect("the fields fit their bits"));
        }
        // A gap, so that nothing is joined.
        moffset += u64::from(length) + 1;
    }
    stack
}

/// The visible segments, as upstream keeps them for its binary search; the layer is the tag.
fn flatten(index: &Index, size_bytes: u64) -> Vec<Segment> {
    let mut at = 0;
    let mut flat = Vec::new();
    for extent in index.resolve(ByteRange::between(0, size_bytes), &mut Cursor::default()) {
        if let Extent::Data { layer, offset, len } = extent {
            let length = u32::try_from(len / SECTOR_BYTES).expect("a segment's length");
            let segment = Segment::new(at / SECTOR_BYTES, length, offset / SECTOR_BYTES, false, layer);
            flat.push(segment.expect("the fields fit their bits"));
        }
        at += extent.len();
    }
    flat
}

/// Nanoseconds of all lookups by binary search and in the index.
fn compare(index: &Index, flat: &[Segment], sectors: &[u64]) -> [f64; 2] {
    let mut cursor = Cursor::default();
    paired([
        &mut || sectors.iter().map(|sector| by_binary_search(flat, black_box(*sector))).fold(0, mix),
        &mut || sectors.iter().map(|sector| by_index(index, &mut cursor, black_box(*sector))).fold(0, mix),
    ])
}

fn mix(sum: u64, value: u64) -> u64 {
    sum.wrapping_add(value)
}

/// What a reader needs of a segment.
fn place(start: u64, moffset: u64, layer: u8) -> u64 {
    start ^ moffset << 8 ^ u64::from(layer)
}

#[inline(never)]
fn by_binary_search(flat: &[Segment], sector: u64) -> u64 {
    let found = flat.get(flat.partition_point(|segment| segment.end() <= sector));
    found.map_or(0, |segment| place(segment.offset(), segment.moffset(), segment.tag()))
}

#[inline(never)]
fn by_index(index: &Index, cursor: &mut Cursor, sector: u64) -> u64 {
    index.lookup(sector, cursor).map_or(0, |found| place(found.start(), found.moffset(), found.layer()))
}

/// What opening reads of one layer: both slots and the index.
struct File {
    header: Vec<u8>,
    index: Vec<u8>,
    trailer: Vec<u8>,
    size_bytes: u64,
}

impl File {
    fn of(segments: &[Segment]) -> Self {
        let index: Vec<u8> = segments.iter().flat_map(|segment| segment.encode()).collect();
        let data_end = segments.iter().map(|segment| segment.mend()).max().unwrap_or(8);
        let header = Header {
            position: SlotPosition::Header,
            kind: FileKind::Data,
            sealed: true,
            sparse: false,
            index_offset: data_end * SECTOR_BYTES,
            index_count: segments.len() as u64,
            virtual_size_bytes: 1 << 40,
            uuid: None,
            parent_uuid: None,
            user_tag: UserTag::default(),
        };
        let trailer = Header { position: SlotPosition::Trailer, ..header };
        let size_bytes = data_end * SECTOR_BYTES + index.len() as u64 + SLOT_BYTES as u64;
        Self { header: header.encode(), index, trailer: trailer.encode(), size_bytes }
    }
}

/// Decodes every layer, merges them and builds the index.
fn open(files: &[File], size_bytes: u64) -> u64 {
    let layers: Vec<Vec<Segment>> = files
        .iter()
        .map(|file| {
            let layout = LayerLayout::decode(&file.header, &file.trailer, file.size_bytes).expect("a layer");
            layout.decode_index(&file.index).expect("its index").into_segments()
        })
        .collect();
    Index::merge(&layers, size_bytes).segments() as u64
}
