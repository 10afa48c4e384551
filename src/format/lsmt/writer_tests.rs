//! Tests of the layers that are written: as upstream cuts them, and as a page is kept together.
#![expect(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]

use proptest::prelude::*;

use super::*;
use crate::format::uuid::Uuid;

fn identity() -> LayerIdentity {
    let user_tag = UserTag::new(b"made by a test").unwrap();
    LayerIdentity { uuid: None, parent_uuid: Some(Uuid::NULL), virtual_size_bytes: 1 << 40, user_tag }
}

/// The file of a writer whose data is all zeroes.
fn file(writer: LayerWriter) -> Vec<u8> {
    let end = writer.finish(&identity());
    let mut file = identity().header();
    file.resize(usize::try_from(end.index_sector).unwrap() * 512, 0);
    [file, end.index, end.trailer].concat()
}

fn open(file: &[u8]) -> ReadOnlyLayer {
    let size_bytes = file.len() as u64;
    let layout = LayerLayout::decode(file, &file[file.len() - 4096..], size_bytes).unwrap();
    let index = layout.index_range();
    let [start, end] = [index.start(), index.end()].map(|at| usize::try_from(at).unwrap());
    layout.decode_index(&file[start..end]).unwrap()
}

fn spans(layer: &ReadOnlyLayer) -> Vec<(u64, u32, u64, bool)> {
    let parts = |it: &Segment| (it.offset(), it.length(), it.moffset(), it.zeroed());
    layer.segments().iter().map(parts).collect()
}

#[test]
fn entries_are_cut_and_joined_where_upstream_does() {
    let mut writer = LayerWriter::new(Packing::AsUpstream);
    assert_eq!(writer.data(0, 16_383, 0).unwrap(), 8);
    assert_eq!(writer.data(16_383, 1, 0).unwrap(), 8 + 16_383);
    writer.zeroed(16_384, 10, 0).unwrap();
    writer.zeroed(16_394, 16_372, 0).unwrap();
    writer.zeroed(32_766, 1, 0).unwrap();
    writer.data(40_001, 3, 0).unwrap();
    let layer = open(&file(writer));
    let expected = vec![
        (0, 16_320, 8, false),
        (16_320, 64, 16_328, false),
        (16_384, 16_382, 16_392, true),
        (32_766, 1, 16_392, true),
        (40_001, 3, 16_392, false),
    ];
    assert_eq!(spans(&layer), expected);
    assert_eq!(layer.layout().trailer().index_count, 256);
    assert_eq!(layer.layout().trailer().user_tag.text(), b"made by a test");
    assert_eq!(layer.virtual_size_bytes(), 1 << 40);
}

#[test]
fn other_tags_keep_entries_apart() {
    let mut writer = LayerWriter::new(Packing::AsUpstream);
    writer.data(0, 8, 1).unwrap();
    writer.data(8, 8, 2).unwrap();
    assert_eq!(open(&file(writer)).segments().len(), 2);
}

#[test]
fn an_empty_layer_and_a_full_one_are_layers_and_a_fuller_one_is_refused() {
    let empty = file(LayerWriter::new(Packing::Aligned));
    assert_eq!((empty.len(), open(&empty).segments().len()), (8192, 0));
    let mut writer = LayerWriter::new(Packing::Aligned);
    for number in 0..SEGMENTS_WRITTEN_LIMIT {
        writer.zeroed(number * 2, 1, 0).unwrap();
    }
    let full = LsmtError::IndexFull { limit: 999_936 };
    assert_eq!(writer.zeroed(2_000_000, 1, 0), Err(full));
    assert_eq!(writer.data(2_000_000, 1, 0), Err(full));
    // What continues the last one is not one more.
    writer.zeroed(SEGMENTS_WRITTEN_LIMIT * 2 - 1, 1, 0).unwrap();
    assert_eq!(open(&file(writer)).segments().len(), 999_936);
}

#[test]
fn what_an_index_cannot_name_is_refused() {
    let mut writer = LayerWriter::new(Packing::Aligned);
    let refused = writer.zeroed((1 << 50) - 2, 2, 0);
    assert!(matches!(refused, Err(LsmtError::Unnamed { length: 2, .. })), "{refused:?}");
}

#[test]
fn a_sealed_data_file_is_a_layer() {
    let segments = [Segment::new(3, 5, 8, false, 0).unwrap(), Segment::new(8, 9, 13, true, 0).unwrap()];
    let header = data_header(false, Uuid::NULL, None, 1 << 20);
    let mut file = header.encode();
    file.resize(13 * 512, 7);
    let end = seal(&header, &segments, file.len() as u64).unwrap();
    assert_eq!(end.len(), 512 + 4096);
    file.extend(end);
    assert_eq!(open(&file).segments(), segments);
}

proptest! {
    #[test]
    fn no_page_of_the_device_lies_in_two_pages_of_the_file(
        parts in proptest::collection::vec((0..20_u64, 1..40_u32, any::<bool>()), 0..60),
    ) {
        let mut writer = LayerWriter::new(Packing::Aligned);
        let mut at = 0;
        let mut written = Vec::new();
        for (gap, length, zeroed) in parts {
            let offset = at + gap;
            at = offset + u64::from(length);
            let end = writer.next_sector();
            let place = if zeroed {
                writer.zeroed(offset, length, 0).unwrap();
                None
            } else {
                let place = writer.data(offset, length, 0).unwrap();
                prop_assert!(place >= end && place - end < 8);
                Some(place)
            };
            written.extend((0..u64::from(length)).map(|step| (offset + step, place.map(|it| it + step))));
        }
        let layer = open(&file(writer));
        let mut read = Vec::new();
        for segment in layer.segments() {
            let place = |step| (!segment.zeroed()).then(|| segment.moffset() + step);
            read.extend((0..u64::from(segment.length())).map(|it| (segment.offset() + it, place(it))));
        }
        prop_assert_eq!(&read, &written);
        let mut page_of = std::collections::HashMap::new();
        for (sector, place) in read {
            if let Some(place) = place {
                prop_assert_eq!(place % 8, sector % 8);
                prop_assert_eq!(*page_of.entry(sector / 8).or_insert(place / 8), place / 8);
            }
        }
    }
}
