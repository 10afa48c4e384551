//! The merged index against a model that paints every sector.

use proptest::prelude::*;

use super::*;

/// Sectors of the painted window; it straddles a multiple of 2 TiB where `base` says so.
const WINDOW: u64 = 600;

/// What a sector reads as: zero, or a sector of a layer's file.
type Sector = Option<(usize, u64)>;

#[derive(Debug, Clone)]
struct Stack {
    base: u64,
    /// Lowest first.
    layers: Vec<Vec<Segment>>,
}

fn stacks() -> impl Strategy<Value = Stack> {
    let run = (0..9_u64, 1..40_u32, any::<bool>(), 0..3_u64);
    let layers = prop::collection::vec(prop::collection::vec(run, 0..30), 1..12);
    let bases = prop_oneof![Just(0), Just((1 << 32) - WINDOW / 2), Just((3 << 32) - 7), Just((1 << 49) + 1)];
    (bases, layers).prop_map(|(base, layers)| Stack {
        base,
        layers: layers.iter().map(|runs| segments(base, runs)).collect(),
    })
}

/// Turns gaps and lengths into sorted segments; a place that goes on from the one before makes joinable ones.
fn segments(base: u64, runs: &[(u64, u32, bool, u64)]) -> Vec<Segment> {
    let (mut at, mut place) = (base, 8);
    let mut list = Vec::new();
    for (gap, length, zeroed, jump) in runs {
        at += gap;
        place += jump;
        if at + u64::from(*length) > base + WINDOW {
            break;
        }
        list.push(Segment::new(at, *length, place, *zeroed, 0).unwrap());
        at += u64::from(*length);
        place += if *zeroed { 0 } else { u64::from(*length) };
    }
    list
}

fn paint(stack: &Stack) -> Vec<Sector> {
    let mut sectors = vec![None; usize::try_from(WINDOW).unwrap()];
    for (layer, segments) in stack.layers.iter().enumerate() {
        for segment in segments {
            for step in 0..u64::from(segment.length()) {
                let at = usize::try_from(segment.offset() + step - stack.base).unwrap();
                sectors[at] = (!segment.zeroed()).then(|| (layer, segment.moffset() + step));
            }
        }
    }
    sectors
}

fn resolved(index: &Index, layers: usize, range: ByteRange, cursor: &mut Cursor) -> Vec<Sector> {
    let mut sectors = Vec::new();
    for extent in index.resolve(range, cursor) {
        assert!(!extent.is_empty());
        for step in 0..extent.len() / SECTOR_BYTES {
            sectors.push(match extent {
                Extent::Zero { .. } => None,
                Extent::Data { layer, offset, .. } => {
                    Some((layers - 1 - usize::from(layer), offset / SECTOR_BYTES + step))
                }
            });
        }
    }
    sectors
}

proptest! {
    #[test]
    fn every_range_reads_as_the_painted_sectors(
        stack in stacks(),
        queries in prop::collection::vec((0..WINDOW, 0..WINDOW), 1..20),
    ) {
        let painted = paint(&stack);
        let size = (stack.base + WINDOW) * SECTOR_BYTES;
        let index = Index::merge(&stack.layers, size);
        let mut shared = Cursor::default();
        for (from, to) in queries.into_iter().filter(|(from, to)| from <= to).chain([(0, WINDOW)]) {
            let start = (stack.base + from) * SECTOR_BYTES;
            let range = ByteRange::new(start, (to - from) * SECTOR_BYTES).unwrap();
            let wanted = &painted[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()];
            for cursor in [&mut Cursor::default(), &mut shared] {
                prop_assert_eq!(resolved(&index, stack.layers.len(), range, cursor), wanted);
            }
        }
    }

    #[test]
    fn the_stretches_of_data_are_those_of_the_painted_sectors(stack in stacks(), from in 0..WINDOW) {
        let painted = paint(&stack);
        let index = Index::merge(&stack.layers, (stack.base + WINDOW) * SECTOR_BYTES);
        let start = (stack.base + from) * SECTOR_BYTES;
        let mut rest = ByteRange::between(start, (stack.base + WINDOW) * SECTOR_BYTES);
        let mut found = vec![false; painted.len()];
        while !rest.is_empty() {
            let stretch = index.next_data(rest);
            prop_assert!(rest.contains(stretch));
            for at in (stretch.start()..stretch.end()).step_by(512) {
                found[usize::try_from(at / SECTOR_BYTES - stack.base).unwrap()] = true;
            }
            prop_assert!(!stretch.is_empty() || stretch.start() == rest.end());
            rest = ByteRange::between(stretch.end(), rest.end());
        }
        let from = usize::try_from(from).unwrap();
        let wanted: Vec<bool> = painted.iter().map(Option::is_some).collect();
        prop_assert_eq!(&found[from..], &wanted[from..]);
    }

    #[test]
    fn a_sequential_reader_sees_what_a_random_one_sees(stack in stacks(), step in 1..50_u64) {
        let painted = paint(&stack);
        let index = Index::merge(&stack.layers, (stack.base + WINDOW) * SECTOR_BYTES);
        let (mut cursor, mut sectors, mut at) = (Cursor::default(), Vec::new(), 0);
        while at < WINDOW {
            let len = step.min(WINDOW - at);
            let range = ByteRange::new((stack.base + at) * SECTOR_BYTES, len * SECTOR_BYTES).unwrap();
            sectors.extend(resolved(&index, stack.layers.len(), range, &mut cursor));
            at += len;
        }
        prop_assert_eq!(sectors, painted);
    }
}

fn segment(offset: u64, length: u32, moffset: u64) -> Segment {
    Segment::new(offset, length, moffset, false, 0).unwrap()
}

#[test]
fn segments_that_continue_one_another_become_one() {
    let run: Vec<Segment> = (0..1000).map(|index| segment(index * 16383, 16383, 8 + index * 16383)).collect();
    let index = Index::merge(&[run], 1 << 40);
    assert_eq!(index.segments(), 250, "four at a time fit the 16 bits of a length");
    let range = ByteRange::new(0, 4 * 16383 * SECTOR_BYTES).unwrap();
    let all: Vec<Extent> = index.resolve(range, &mut Cursor::default()).collect();
    assert_eq!(all, [Extent::Data { layer: 0, offset: 8 * SECTOR_BYTES, len: range.len() }]);
}

#[test]
fn every_one_of_many_segments_is_found_wherever_they_crowd() {
    let count = 70_000_u64;
    // Far from the device's start they all lie in one stretch.
    for base in [0, (1 << 32) - count, 5 << 40] {
        let list: Vec<Segment> =
            (0..count).map(|index| segment(base + index * 2, 1, 8 + index * 3)).collect();
        let index = Index::merge(&[&list[..], &[]], (base + count * 2) * SECTOR_BYTES);
        assert_eq!(index.segments(), list.len());
        assert!(index.memory_bytes() <= 20 * list.len() + 64, "{} bytes", index.memory_bytes());
        for wanted in &list {
            let range = ByteRange::new(wanted.offset() * SECTOR_BYTES, 2 * SECTOR_BYTES).unwrap();
            let found: Vec<Extent> = index.resolve(range, &mut Cursor::default()).collect();
            let data = Extent::Data { layer: 1, offset: wanted.moffset() * SECTOR_BYTES, len: SECTOR_BYTES };
            assert_eq!(found, [data, Extent::Zero { len: SECTOR_BYTES }]);
        }
    }
}

#[test]
fn what_lies_past_the_size_is_kept_for_a_larger_device_over_it() {
    let index = Index::merge(&[[segment(0, 10, 8), segment(20, 10, 100)]], 25 * SECTOR_BYTES + 3);
    let range = ByteRange::new(0, 100 * SECTOR_BYTES).unwrap();
    let lens: Vec<u64> =
        index.resolve(range, &mut Cursor::default()).map(|extent| extent.len() / SECTOR_BYTES).collect();
    assert_eq!((index.size_bytes(), lens), (25 * SECTOR_BYTES, vec![10, 10, 10, 70]));
    assert_eq!(index.reach_bytes(), 30 * SECTOR_BYTES);
    assert_eq!(Index::merge(&[[segment(0, 10, 8)]], 25 * SECTOR_BYTES).reach_bytes(), 25 * SECTOR_BYTES);
}

#[test]
fn a_full_stack_of_255_layers_shows_the_highest() {
    let layers: Vec<Vec<Segment>> =
        (0..255).map(|layer| vec![segment(layer, 1000, 8 + layer * 1000)]).collect();
    let index = Index::merge(&layers, 1 << 30);
    let range = ByteRange::new(0, 254 * SECTOR_BYTES).unwrap();
    let ranks: Vec<Extent> = index.resolve(range, &mut Cursor::default()).collect();
    assert_eq!(ranks.len(), 254);
    assert_eq!(ranks[0], Extent::Data { layer: 254, offset: 8 * SECTOR_BYTES, len: SECTOR_BYTES });
}
