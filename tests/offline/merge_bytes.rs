//! What `merge --as-upstream` writes, held against a second writing down of upstream's algorithm, which shares no code with the
//! first: it merges by recursion into the gaps, and copies 32 KiB at a time.

use std::{fs, num::NonZeroUsize, path::Path};

use stratabd::{
    format::lsmt::{Header, LogReplay, Packing, Segment},
    offline::{CreateOptions, Naming, PackOptions, Stack, Upper, create, merge},
};

use crate::{bytes, fixtures::Fixture, layer_writer, opened, quiet};

const SECTOR: usize = 512;
const SLOT: usize = 4096;

/// A source file: its bytes out of all compression, and its index, without tags.
struct Source {
    bytes: Vec<u8>,
    segments: Vec<Segment>,
}

/// An entry of a merged index: where on the device, how long, where in which file, and whether it is zeroed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    offset: u64,
    length: u64,
    place: u64,
    zeroed: bool,
    tag: u64,
}

fn entry(segment: &Segment, tag: usize) -> Entry {
    Entry {
        offset: segment.offset(),
        length: u64::from(segment.length()),
        place: segment.moffset(),
        zeroed: segment.zeroed(),
        tag: tag as u64,
    }
}

/// The entries of `sources[number..]`, the topmost first, that are seen between two sectors.
fn seen(order: &[(usize, &Source)], from: u64, to: u64, out: &mut Vec<Entry>) {
    let Some(((tag, top), below)) = order.split_first() else { return };
    let mut at = from;
    for segment in &top.segments {
        let whole = entry(segment, *tag);
        let (start, end) = (whole.offset.max(from), (whole.offset + whole.length).min(to));
        if start >= end {
            continue;
        }
        seen(below, at, start, out);
        // Its data begins later where it is cut; a zeroed one has none.
        let skipped = if whole.zeroed { 0 } else { start - whole.offset };
        out.push(Entry { offset: start, length: end - start, place: whole.place + skipped, ..whole });
        at = end;
    }
    seen(below, at, to, out);
}

/// Upstream's layer of these files: `files` in the order of their tags, `order` from the top.
fn expected(files: &[&Source], order: &[(usize, &Source)]) -> Vec<u8> {
    let mut merged = Vec::new();
    seen(order, 0, u64::MAX, &mut merged);
    let header = |source: &Source| Header::decode(&source.bytes[..SLOT], 0).unwrap();
    let (first, last) = (header(files[0]), header(files[files.len() - 1]));
    let slot = |at: u64, count: u64, flags: u32| {
        let header = Header {
            uuid: None,
            parent_uuid: last.parent_uuid,
            user_tag: Default::default(),
            sparse: false,
            ..first
        };
        let mut slot = header.encode().to_vec();
        slot[28..32].copy_from_slice(&flags.to_le_bytes());
        slot[32..40].copy_from_slice(&at.to_le_bytes());
        slot[40..48].copy_from_slice(&count.to_le_bytes());
        slot
    };
    let mut out = slot(0, 0, 7);
    let mut index: Vec<Entry> = Vec::new();
    for whole in merged {
        let place = (out.len() / SECTOR) as u64;
        if whole.zeroed {
            index.push(Entry { place, ..whole });
            continue;
        }
        for skip in (0..whole.length).step_by(64) {
            let length = (whole.length - skip).min(64);
            let from = usize::try_from(whole.place + skip).unwrap() * SECTOR;
            let place = (out.len() / SECTOR) as u64;
            index.push(Entry { offset: whole.offset + skip, length, place, ..whole });
            let to = from + usize::try_from(length).unwrap() * SECTOR;
            out.extend_from_slice(&files[usize::try_from(whole.tag).unwrap()].bytes[from..to]);
        }
    }
    let at = out.len() as u64;
    let mut joined: Vec<Entry> = Vec::new();
    for entry in index {
        let end_of = |last: &Entry| last.place + if last.zeroed { 0 } else { last.length };
        match joined.last_mut() {
            Some(last)
                if last.offset + last.length == entry.offset
                    && end_of(last) == entry.place
                    && (last.zeroed, last.tag) == (entry.zeroed, entry.tag)
                    && last.length + entry.length < 16_383 =>
            {
                last.length += entry.length;
            }
            _ => joined.push(entry),
        }
    }
    for entry in &joined {
        out.extend((entry.offset | entry.length << 50).to_le_bytes());
        out.extend((entry.place | u64::from(entry.zeroed) << 55 | entry.tag << 56).to_le_bytes());
    }
    let padding = joined.len().next_multiple_of(256) - joined.len();
    // Entries that are none.
    for _ in 0..padding {
        out.extend(((1_u64 << 50) - 1).to_le_bytes());
        out.extend(0_u64.to_le_bytes());
    }
    let count = joined.len() + padding;
    out.extend(slot(at, count as u64, 6));
    out
}

fn sealed(path: &Path) -> Source {
    let (bytes, layer) = opened(path);
    Source { bytes, segments: layer.segments().to_vec() }
}

fn log(upper: &Upper) -> Source {
    let [data, index] = [&upper.data, upper.index.as_ref().unwrap()].map(|path| bytes(path));
    let mut replay = LogReplay::new(index.len() as u64, data.len() as u64).unwrap();
    replay.feed(&index[SLOT..]).unwrap();
    Source { bytes: data, segments: replay.finish().segments.into_segments() }
}

/// Merges `stack` as upstream does, uncompressed, and holds it against what is expected.
fn check(stack: &Stack, what: &str) -> Vec<u8> {
    let lowers: Vec<Source> = stack.lowers.iter().rev().map(|path| sealed(path)).collect();
    let upper = stack.upper.as_ref().map(log);
    let files: Vec<&Source> = lowers.iter().chain(&upper).collect();
    let mut order: Vec<(usize, &Source)> = lowers.iter().enumerate().collect();
    if let Some(upper) = &upper {
        order.insert(0, (lowers.len(), upper));
    }
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out");
    let options = PackOptions {
        allow_torn: false,
        packing: Packing::AsUpstream,
        compression: None,
        tar: false,
        final_header: false,
        threads: NonZeroUsize::new(3).unwrap(),
        overwrite: false,
    };
    merge(stack, &out, &Naming::default(), &options, &quiet()).unwrap();
    let (made, wanted) = (bytes(&out), expected(&files, &order));
    let differs = made.iter().zip(&wanted).position(|(left, right)| left != right);
    assert_eq!((differs, made.len()), (None, wanted.len()), "{what}");
    made
}

fn put(dir: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn stacks_are_merged_byte_for_byte_as_upstream_merges_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| put(dir.path(), &name.replace('/', "-"), &Fixture::named(name).read());
    for lowers in [
        &["ext4/L0.zstd4k", "ext4/L1.zt4k", "ext4/L2.sealed.xz"][..],
        &["lsmt/g0.lsmt.xz", "lsmt/g1.lsmt", "lsmt/g2.lsmt"],
        &["lsmt/g1.lsmt"],
    ] {
        check(&Stack { lowers: lowers.iter().map(|name| file(name)).collect(), upper: None }, lowers[0]);
    }
    for (lower, data, index) in [
        ("lsmt/g0.lsmt.xz", "lsmt/g1.rw.d.xz", "lsmt/g1.rw.i.xz"),
        ("ext4/L0.z64k", "ext4/rw1.d.xz", "ext4/rw1.i"),
    ] {
        let upper = Some(Upper { data: file(data), index: Some(file(index)) });
        let over = check(&Stack { lowers: vec![file(lower)], upper: upper.clone() }, lower);
        let alone = check(&Stack { lowers: Vec::new(), upper }, data);
        // Over layers or not, upstream takes the parent from the file that is written.
        assert_eq!(
            Header::decode(&over, 0).unwrap().parent_uuid,
            Header::decode(&alone, 0).unwrap().parent_uuid
        );
    }
}

#[test]
fn random_stacks_are_merged_byte_for_byte_as_upstream_merges_them() {
    for seed in 0..24 {
        let mut random = fastrand::Rng::with_seed(seed);
        let dir = tempfile::tempdir().unwrap();
        let noise: Vec<u8> = (0..200 * SECTOR).map(|_| random.u8(..)).collect();
        let lowers: Vec<_> = (0..random.usize(1..5))
            .map(|number| {
                let (mut at, mut mappings) = (0, Vec::new());
                while at < 1500 {
                    at += random.u64(0..60);
                    let length = random.usize(1..200);
                    mappings.push(match random.u8(0..4) {
                        0 => (at, Err(length as u64)),
                        _ => (at, Ok(&noise[..length * SECTOR])),
                    });
                    at += length as u64;
                }
                put(dir.path(), &format!("{number}"), &layer_writer::lsmt(1 << 20, &mappings))
            })
            .collect();
        let pair = Upper { data: dir.path().join("data"), index: Some(dir.path().join("index")) };
        let options = CreateOptions {
            sparse: false,
            virtual_size_bytes: 1 << 20,
            uuid: None,
            parent_uuid: random.bool().then(|| "abc00001-1111-2222-3333-000000000001".parse().unwrap()),
            ext4: false,
            overwrite: false,
        };
        create(&pair, &options).unwrap();
        let (mut data, mut index) = (bytes(&pair.data), bytes(pair.index.as_ref().unwrap()));
        for _ in 0..random.usize(0..30) {
            let length = random.u32(1..150);
            let place = (data.len() / SECTOR) as u64;
            let zeroed = random.u8(0..4) == 0;
            let segment = Segment::new(random.u64(0..1700), length, place, zeroed, 0).unwrap();
            index.extend(segment.encode());
            if !zeroed {
                data.extend_from_slice(&noise[..length as usize * SECTOR]);
            }
        }
        fs::write(&pair.data, data).unwrap();
        fs::write(pair.index.as_ref().unwrap(), index).unwrap();
        let what = format!("seed {seed}");
        check(&Stack { lowers: lowers.clone(), upper: Some(pair) }, &what);
        check(&Stack { lowers, upper: None }, &what);
    }
}
