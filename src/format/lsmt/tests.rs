//! Tests of the LSMT layer against the golden bytes of the specification and against damage to them.
#![expect(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]

use proptest::prelude::*;

use super::*;

const UUID: &str = "8E3F1C2A-1111-2222-3333-0123456789AB";
const INDEX: usize = 0x2000;
const TRAILER: usize = 0x3000;
/// The filler that writers pad an index with.
const PADDING: [u8; 16] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The example of the specification: 4 KiB of data at sector 2, a zeroed run of 16 sectors at sector 100.
fn golden() -> Vec<u8> {
    let mut file = vec![0; 0x4000];
    let mut slot = b"LSMT\x00\x01\x02\x00\x65\x7e\x63\xd2\x94\x44\x08\x4c".to_vec();
    slot.extend(b"\xa2\xd2\xc8\xec\x4f\xcf\xae\x8a\x86\x01\x00\x00\x07\x00\x00\x00");
    slot.extend([0; 16]);
    slot.extend((64_u64 << 30).to_le_bytes());
    slot.extend(UUID.as_bytes());
    slot.extend(b"\x0000000000-0000-0000-0000-000000000000\x00\x00\x00\x01\x01");
    put(&mut file, 0, &slot);
    put(&mut file, TRAILER, &slot);
    put(&mut file, 0x1000, &[0xaa; 4096]);
    file[INDEX..TRAILER]
        .as_chunks_mut()
        .0
        .fill([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    put(&mut file, INDEX, b"\x02\x00\x00\x00\x00\x00\x20\x00\x08\x00\x00\x00\x00\x00\x00\x00");
    put(&mut file, INDEX + 16, b"\x64\x00\x00\x00\x00\x00\x40\x00\x10\x00\x00\x00\x00\x00\x80\x00");
    put(&mut file, TRAILER + 28, &[6]);
    put(&mut file, TRAILER + 32, b"\x00\x20\x00\x00\x00\x00\x00\x00\x00\x01");
    file
}

fn open(file: &[u8]) -> Result<ReadOnlyLayer, LsmtError> {
    let size_bytes = file.len() as u64;
    let trailer = usize::try_from(LayerLayout::trailer_range(size_bytes)?.start()).unwrap();
    let layout = LayerLayout::decode(file, &file[trailer..], size_bytes)?;
    let index = layout.index_range();
    let [start, end] = [index.start(), index.end()].map(|at| usize::try_from(at).unwrap());
    layout.decode_index(&file[start..end])
}

fn with(at: usize, bytes: &[u8]) -> Result<ReadOnlyLayer, LsmtError> {
    let mut file = golden();
    put(&mut file, at, bytes);
    open(&file)
}

fn slot(offset: usize, rule: SlotRule) -> Result<ReadOnlyLayer, LsmtError> {
    Err(LsmtError::Slot { offset: offset as u64, rule })
}

#[test]
fn the_golden_layer_opens() {
    let layer = open(&golden()).unwrap();
    let expected = [Segment::new(2, 8, 8, false, 0).unwrap(), Segment::new(100, 16, 16, true, 0).unwrap()];
    assert_eq!(layer.segments(), expected);
    assert_eq!(layer.virtual_size_bytes(), 64 << 30);
    let trailer = layer.layout().trailer();
    assert_eq!(trailer.uuid.unwrap().to_string(), UUID);
    assert!(trailer.parent_uuid.unwrap().is_null());
    assert_eq!(trailer.user_tag.text(), b"");
}

#[test]
fn a_flag_that_is_not_known_is_refused_by_its_name() {
    for at in [0, TRAILER] {
        for bit in 6..32_u32 {
            let flags = u32::from(golden()[at + 28]) | 1 << bit;
            assert_eq!(with(at + 28, &flags.to_le_bytes()), slot(at, SlotRule::Flags(1 << bit)));
        }
        // Named once, and without effect.
        with(at + 28, &[golden()[at + 28] | 1 << 3 | 1 << 5]).unwrap();
    }
    let said = slot(0, SlotRule::Flags(0x40)).unwrap_err().to_string();
    assert_eq!(
        said,
        "LSMT slot at offset 0: its flags 0x40 are not known, and may change what the bytes of the layer mean"
    );
}

#[test]
fn the_golden_slots_are_written_byte_for_byte() {
    let file = golden();
    let layout = *open(&file).unwrap().layout();
    assert_eq!(layout.header().encode(), file[..SLOT_BYTES]);
    assert_eq!(layout.trailer().encode(), file[TRAILER..]);
}

#[test]
fn damage_to_a_slot_is_refused_by_name() {
    assert_eq!(with(0, b"X"), slot(0, SlotRule::Magic));
    assert_eq!(with(TRAILER + 23, b"X"), slot(TRAILER, SlotRule::Magic));
    assert_eq!(with(132, &[9, 9]), slot(0, SlotRule::Version(9)));
    assert_eq!(with(TRAILER + 132, &[2]), slot(TRAILER, SlotRule::Version(2)));
    assert_eq!(with(28, &[6]), slot(0, SlotRule::Position));
    assert_eq!(with(28, &[5]), slot(0, SlotRule::NotData));
    assert_eq!(with(TRAILER + 28, &[7]), slot(TRAILER, SlotRule::Position));
    assert_eq!(with(TRAILER + 28, &[4]), slot(TRAILER, SlotRule::NotData));
    assert_eq!(with(TRAILER + 28, &[2]), slot(TRAILER, SlotRule::Unsealed));
    assert_eq!(open(&golden()[..8191]), Err(LsmtError::TooSmall { size_bytes: 8191 }));
}

#[test]
fn reserved_bytes_are_ignored() {
    for at in [24, 130, 133, 4000, TRAILER + 24, TRAILER + 130, TRAILER + 4000] {
        assert_eq!(with(at, &[0xee]).unwrap().segments().len(), 2, "byte {at}");
    }
    assert_eq!(with(TRAILER + 56, b"not").unwrap().layout().trailer().uuid, None);
}

#[test]
fn an_index_that_contradicts_the_file_is_refused() {
    let offset = TRAILER as u64;
    let place = |index_offset, count| Err(LsmtError::IndexPlace { offset, index_offset, count });
    let count = |count: u64| with(TRAILER + 40, &count.to_le_bytes());
    let start = |start: u64| with(TRAILER + 32, &start.to_le_bytes());
    assert_eq!(
        count(1_000_001),
        Err(LsmtError::TooManySegments { offset, count: 1_000_001, limit: 1_000_000 })
    );
    assert_eq!(count(257), place(0x2000, 257));
    assert_eq!(count(0), place(0x2000, 0));
    assert_eq!(count(224), place(0x2000, 224));
    assert_eq!(count(225).unwrap().segments().len(), 2);
    assert_eq!(start(u64::MAX - 4095), place(u64::MAX - 4095, 256));
    assert_eq!(start(0x2001), place(0x2001, 256));
    assert_eq!(start(0), place(0, 256));
}

#[test]
fn a_segment_that_breaks_a_rule_is_refused_with_its_place() {
    let refused = |number: u64, rule| Err(LsmtError::Segment { number, offset: 0x2000 + 16 * number, rule });
    let second = |segment: Segment| with(INDEX + 16, &segment.encode());
    let segment = |offset, length, moffset, zeroed| Segment::new(offset, length, moffset, zeroed, 0).unwrap();
    let place = |start, end| refused(1, SegmentRule::Place { start, end, limit: 16 });
    assert_eq!(
        second(segment(9, 1, 8, false)),
        refused(1, SegmentRule::Disorder { offset: 9, previous_end: 10 })
    );
    assert_eq!(second(segment(10, 1, 7, false)), place(7, 8));
    assert_eq!(second(segment(10, 1, 16, false)), place(16, 17));
    assert_eq!(second(segment(10, 2, 15, false)), place(15, 17));
    assert_eq!(second(segment(10, 2, 7, true)), place(7, 7));
    assert_eq!(second(segment(10, 2, 17, true)), place(17, 17));
    assert!(second(segment(10, 1, 15, false)).is_ok());
    assert!(second(segment(10, 9000, 16, true)).is_ok());
    assert_eq!(with(INDEX + 22, &[0, 0]), refused(1, SegmentRule::Empty));
    // Offset 2^50 - 2, length 16383: the second sector would carry into the bits of the length.
    let last = ((1_u64 << 50) - 2) | 16383 << 50;
    let end = (1 << 50) - 2 + 16383;
    assert_eq!(with(INDEX + 16, &last.to_le_bytes()), refused(1, SegmentRule::Beyond { end }));
}

#[test]
fn padding_is_dropped_anywhere_and_tags_are_cleared() {
    assert_eq!(with(INDEX, &PADDING).unwrap().segments().len(), 1);
    let layer = with(INDEX + 15, &[7]).unwrap();
    assert!(layer.segments().iter().all(|segment| segment.tag() == 0));
}

#[test]
fn too_few_index_bytes_are_refused() {
    let layout = *open(&golden()).unwrap().layout();
    let short = LsmtError::IndexLength { offset: 0x2000, given_bytes: 16, wanted_bytes: 4096 };
    assert_eq!(layout.decode_index(&[0; 16]), Err(short));
}

proptest! {
    #[test]
    fn a_header_survives_encoding(
        (index_offset, index_count, virtual_size_bytes) in any::<(u64, u64, u64)>(),
        (header, data, sealed, sparse) in any::<(bool, bool, bool, bool)>(),
        text in proptest::collection::vec(1_u8.., 0..=256),
    ) {
        let header = Header {
            position: if header { SlotPosition::Header } else { SlotPosition::Trailer },
            kind: if data { FileKind::Data } else { FileKind::Index },
            sealed,
            sparse,
            index_offset,
            index_count,
            virtual_size_bytes,
            uuid: Some(UUID.parse().unwrap()),
            parent_uuid: Some(crate::format::uuid::Uuid::NULL),
            user_tag: UserTag::new(&text).unwrap(),
        };
        let slot = header.encode();
        prop_assert_eq!(slot.len(), SLOT_BYTES);
        let size = usize::try_from(Header::VIRTUAL_SIZE_OFFSET).unwrap();
        prop_assert_eq!(&slot[size..size + 8], virtual_size_bytes.to_le_bytes());
        let read = Header::decode(&slot, 0).unwrap();
        prop_assert_eq!(read, header);
        prop_assert_eq!(read.user_tag.text(), text);
    }

    #[test]
    fn a_segment_survives_encoding(word in any::<[u8; 16]>()) {
        let segment = Segment::decode(&word);
        prop_assert_eq!(segment.encode(), word);
        let rebuilt = Segment::new(
            segment.offset(), segment.length(), segment.moffset(), segment.zeroed(), segment.tag());
let fits = segment.length() > 0 && segment.end() < 1 << 50 && segment.mend() < 1 << 55;
        prop_assert_eq!(rebuilt, fits.then_some(segment));
    }
}
