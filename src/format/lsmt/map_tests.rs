//! Tests of the map of segments and of the replay of an index file, against a plain array of sectors.
#![expect(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]

use proptest::prelude::*;

use super::*;
use crate::format::uuid::Uuid;

const DEVICE: usize = 200;
/// Whole sectors of the data file that the tests replay against.
const DATA_SECTORS: u64 = 1000;

/// What a sector shows: nothing, zeroes, or a sector of the data file.
type Sector = Option<Option<u64>>;

fn paint(device: &mut [Sector], segment: Segment) {
    for step in 0..u64::from(segment.length()) {
        let shown = (!segment.zeroed()).then_some(segment.moffset() + step);
        device[usize::try_from(segment.offset() + step).unwrap()] = Some(shown);
    }
}

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    let one = (0..DEVICE as u64 - 40, 1..40_u32, 8..900_u64, any::<bool>());
    let one = one
        .prop_map(|(offset, length, place, zeroed)| Segment::new(offset, length, place, zeroed, 0).unwrap());
    proptest::collection::vec(one, 0..60)
}

fn replay(entries: &[u8]) -> Result<Replayed, LsmtError> {
    let mut replay = LogReplay::new(4096 + entries.len() as u64, DATA_SECTORS * 512 + 511)?;
    replay.feed(entries)?;
    Ok(replay.finish())
}

proptest! {
    #[test]
    fn later_segments_lie_over_earlier_ones(inserted in segments(), piece in 1..50_usize) {
        let mut device = vec![None; DEVICE];
        inserted.iter().for_each(|segment| paint(&mut device, *segment));
        let bytes: Vec<u8> = inserted.iter().flat_map(|segment| segment.with_tag(9).encode()).collect();
        let mut replay = LogReplay::new(4096 + bytes.len() as u64, DATA_SECTORS * 512).unwrap();
        for piece in bytes.chunks(piece) {
            replay.feed(piece).unwrap();
        }
        let replayed = replay.finish();
        prop_assert_eq!((replayed.end_offset, replayed.torn_entries), (4096 + bytes.len() as u64, 0));
        let mut shown = vec![None; DEVICE];
        let mut end = 0;
        for segment in replayed.segments.iter() {
            prop_assert!(segment.offset() >= end && segment.tag() == 0);
            end = segment.end();
            paint(&mut shown, segment);
        }
        prop_assert_eq!(shown, device);
        prop_assert_eq!(replayed.segments.len(), replayed.segments.into_segments().len());
    }
}

#[test]
fn a_torn_tail_ends_the_log_and_what_follows_does_not_count() {
    let good = Segment::new(5, 4, 996, false, 0).unwrap().encode();
    let past = Segment::new(9, 5, 996, false, 0).unwrap().encode();
    let zeroed_past = Segment::new(9, 5, 1001, true, 0).unwrap().encode();
    for torn in [past, zeroed_past, [0; 16]] {
        // Not even what would be an error counts after it.
        let wrong = Segment::new(0, 1, 7, false, 0).unwrap().encode();
        let replayed = replay(&[good, torn, good, wrong].concat()).unwrap();
        assert_eq!((replayed.end_offset, replayed.torn_entries), (4096 + 16, 3));
        assert_eq!(replayed.segments.len(), 1);
    }
    let part = replay(&[&good[..], &good[..15]].concat()).unwrap();
    assert_eq!((part.end_offset, part.torn_entries), (4096 + 16, 0));
    let end = Segment::new(9, 5, 1000, true, 0).unwrap().encode();
    assert_eq!(replay(&end).unwrap().torn_entries, 0);
}

#[test]
fn padding_counts_as_nothing_and_other_damage_is_refused_with_its_place() {
    let good = Segment::new(5, 4, 8, false, 0).unwrap().encode();
    let replayed = replay(&[Segment::PADDING.encode(), good, Segment::PADDING.encode()].concat()).unwrap();
    assert_eq!((replayed.end_offset, replayed.segments.len()), (4096 + 48, 1));
    let refused = |entry: [u8; 16]| replay(&[good, entry].concat()).unwrap_err();
    let rule = |rule| LsmtError::Segment { number: 1, offset: 4096 + 16, rule };
    let before_data = Segment::new(0, 2, 7, false, 0).unwrap();
    assert_eq!(
        refused(before_data.encode()),
        rule(SegmentRule::Place { start: 7, end: 9, limit: DATA_SECTORS })
    );
    let mut empty = good;
    empty[6..8].fill(0);
    assert_eq!(refused(empty), rule(SegmentRule::Empty));
    let mut beyond = good;
    beyond[..6].copy_from_slice(&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);
    beyond[6] |= 3;
    assert_eq!(refused(beyond), rule(SegmentRule::Beyond { end: (1 << 50) - 2 + 4 }));
    let long = LogReplay::new(4096 + 16 * (LOG_ENTRY_LIMIT + 1), 0).unwrap_err();
    assert_eq!(long, LsmtError::LogTooLong { count: LOG_ENTRY_LIMIT + 1, limit: LOG_ENTRY_LIMIT });
}

#[test]
fn the_headers_of_a_pair_say_what_they_are() {
    let uuid: Uuid = "8E3F1C2A-1111-2222-3333-0123456789AB".parse().unwrap();
    let data = data_header(false, uuid, None, 1 << 30);
    let index = index_header(&data);
    assert_eq!(data.encode()[28], 3);
    assert_eq!((index.encode()[28], index.encode()[33]), (1, 0x10));
    assert_eq!(data_header(true, uuid, None, 0).encode()[28], 0x13);
    assert_eq!(decode_data_header(&data.encode()).unwrap().uuid, data.uuid);
    let read = decode_index_header(&index.encode()).unwrap();
    require_pair(&data, &read).unwrap();
    let other = Header { uuid: Some(Uuid::NULL), ..index };
    assert_eq!(require_pair(&data, &other), Err(LsmtError::Mismatched { data: uuid, index: Uuid::NULL }));
    let slot = |rule| LsmtError::Slot { offset: 0, rule };
    assert_eq!(decode_data_header(&index.encode()), Err(slot(SlotRule::NotData)));
    assert_eq!(decode_index_header(&data.encode()), Err(slot(SlotRule::NotIndex)));
    let sealed = Header { sealed: true, ..data };
    assert_eq!(decode_data_header(&sealed.encode()), Err(slot(SlotRule::Sealed)));
    let elsewhere = Header { index_offset: 512, ..index };
    assert_eq!(decode_index_header(&elsewhere.encode()), Err(slot(SlotRule::IndexStart(512))));
}
