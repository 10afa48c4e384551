//! Tests of the ZFile reader against the golden bytes of the specification and against damage to them.
#![expect(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]

use proptest::prelude::*;

use super::*;
use crate::{block::ByteRange, format::crc};

const INDEX: usize = 0x21e;
const TRAILER: usize = 0x222;

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The example of the specification: 4096 zeroes in LZ4, with a header that was rewritten.
pub(super) fn golden() -> Vec<u8> {
    let mut slot = b"ZFile\x00\x01\x00tuji.yyf@Alibaba\x60\x00\x00\x00\x4d\x37\x96\x70".to_vec();
    slot.extend(b"\x1b\0\0\0\0\0\0\0\x1e\x02\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x00\x10\0\0\0\0\0\0");
    slot.extend(b"\xa9\xc0\x65\xdb\0\0\0\0\x00\x10\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01");
    slot.resize(SLOT_BYTES, 0);
    let mut file = slot.clone();
    file.extend(b"\x1f\x00\x01\x00");
    file.extend([0xff; 15]);
    file.extend(b"\xf6\x50\0\0\0\0\0\x24\x17\x91\xb4\x1e\0\0\0");
    put(&mut slot, 28, &0x8056_e269_u32.to_le_bytes());
    slot[32] = 0x16;
    file.extend(slot);
    file
}

/// The golden file as tools that cannot seek leave it: the header is provisional and the trailer counts.
pub(super) fn golden_with_trailer() -> Vec<u8> {
    let mut file = golden();
    let provisional = Header {
        flags: Flags::from_bits(0x13),
        index_offset: 0,
        index_count: 0,
        content_bytes: 0,
        ..header()
    };
    put(&mut file, 0, &Header { index_crc: 0, ..provisional }.encode());
    file
}

fn header() -> Header {
    Header::decode(&golden(), 0).unwrap()
}

fn slice(file: &[u8], range: ByteRange) -> &[u8] {
    let [start, end] = [range.start(), range.end()].map(|at| usize::try_from(at).unwrap());
    &file[start..end]
}

fn open(file: &[u8]) -> Result<JumpTable, ZfileError> {
    let size_bytes = file.len() as u64;
    let layout = match Start::decode(file, size_bytes)? {
        Start::Complete(layout) => layout,
        Start::TrailerAt(range) => Layout::from_trailer(slice(file, range), size_bytes)?,
    };
    JumpTable::decode(layout, slice(file, layout.index_range()))
}

fn read(file: &[u8]) -> Result<Vec<u8>, ZfileError> {
    let table = open(file)?;
    let mut content = Vec::new();
    let mut decoder = Decoder::new();
    for number in 0..table.layout().block_count() {
        let block = table.block(number).unwrap();
        let mut dest = vec![0xee; usize::try_from(block.content.len()).unwrap()];
        decoder.decode(table.layout(), &block, slice(file, block.encoded), &mut dest)?;
        content.extend(dest);
    }
    Ok(content)
}

/// The golden file whose header has another field, with a right digest.
fn with(change: impl FnOnce(&mut Header)) -> Result<JumpTable, ZfileError> {
    let mut header = header();
    change(&mut header);
    let mut file = golden();
    put(&mut file, 0, &header.encode());
    open(&file)
}

fn slot<T>(offset: usize, rule: SlotRule) -> Result<T, ZfileError> {
    Err(ZfileError::Slot { offset: offset as u64, rule })
}

#[test]
fn the_golden_file_is_read_by_its_header_and_by_its_trailer() {
    assert_eq!(read(&golden()).unwrap(), [0; 4096]);
    assert_eq!(read(&golden_with_trailer()).unwrap(), [0; 4096]);
}

#[test]
fn the_golden_slots_are_written_byte_for_byte() {
    let file = golden();
    assert_eq!(header().encode(), file[..SLOT_BYTES]);
    assert_eq!(Header::decode(&file[TRAILER..], 0).unwrap().encode(), file[TRAILER..]);
    let provisional = golden_with_trailer()[28..32].try_into().unwrap();
    assert_eq!(u32::from_le_bytes(provisional), 0xc7a2_12fc);
}

#[test]
fn the_slot_that_is_not_used_may_be_damaged_or_gone() {
    let mut file = golden();
    put(&mut file, TRAILER, &[0xee; SLOT_BYTES]);
    assert!(read(&file).is_ok());
    assert!(read(&golden()[..TRAILER]).is_ok());
}

#[test]
fn a_digest_that_is_present_and_wrong_is_refused() {
    for at in [28, 33, 40, 72, 100, 511] {
        let mut file = golden();
        file[at] ^= 1;
        assert!(
            matches!(open(&file), Err(ZfileError::Slot { offset: 0, rule: SlotRule::Digest { .. } })),
            "byte {at}"
        );
        let mut file = golden_with_trailer();
        file[TRAILER + at] ^= 1;
        let expected = TRAILER as u64;
        let found = open(&file);
        assert!(
            matches!(found, Err(ZfileError::Slot { offset, rule: SlotRule::Digest { .. } }) if offset == expected),
            "byte {at}"
        );
    }
}

#[test]
fn garbage_that_writers_left_without_digests_is_ignored() {
    let mut file = golden();
    let flags = 0x7ffe_a464_0b43_u64;
    for (at, flags) in [(0, flags), (TRAILER, flags ^ 5)] {
        put(&mut file, at + 28, &[0xee; 4]);
        put(&mut file, at + 32, &flags.to_le_bytes());
        put(&mut file, at + 64, &[0xee; 8]);
        put(&mut file, at + 80, &[0xee; 4]);
        put(&mut file, at + 89, &[0xee; 7]);
        put(&mut file, at + 96, &[0xee; 416]);
    }
    put(&mut file, 40, &[0xee; 16]);
    assert_eq!(read(&file).unwrap(), [0; 4096]);
}

#[test]
fn a_slot_that_breaks_a_rule_is_refused_by_name() {
    let flags = |bits| with(|header| header.flags = Flags::from_bits(bits));
    assert_eq!(flags(0x1a), slot(0, SlotRule::Position));
    assert_eq!(flags(0x19), slot(0, SlotRule::NotData));
    assert_eq!(flags(0x3b), slot(0, SlotRule::CompressedIndex));
    assert_eq!(with(|header| header.algorithm = 0), slot(0, SlotRule::Algorithm(0)));
    assert_eq!(with(|header| header.uses_dictionary = true), slot(0, SlotRule::Dictionary));
    assert_eq!(with(|header| header.dictionary_bytes = 1), slot(0, SlotRule::Dictionary));
    for size in [0, 2048, 5000, 131_072] {
        assert_eq!(with(|header| header.block_size = size), slot(0, SlotRule::BlockSize(size)));
    }
    let mut file = golden();
    file[0] ^= 1;
    assert_eq!(open(&file), slot(0, SlotRule::Magic));
    assert_eq!(open(&golden()[..511]), slot(0, SlotRule::Short));
    assert_eq!(open(&golden_with_trailer()[..1023]), Err(ZfileError::TooSmall { size_bytes: 1023 }));
    let trailer = |bits: u8| {
        let mut file = golden_with_trailer();
        let changed = Header { flags: Flags::from_bits(u64::from(bits)), ..header() }.encode();
        put(&mut file, TRAILER, &changed);
        open(&file)
    };
    assert_eq!(trailer(0x17), slot(TRAILER, SlotRule::Position));
    assert_eq!(trailer(0x14), slot(TRAILER, SlotRule::NotData));
    assert_eq!(trailer(0x12), slot(TRAILER, SlotRule::Unsealed));
}

#[test]
fn a_count_offset_or_size_that_contradicts_the_file_is_refused() {
    let count =
        |count, content_bytes| slot(0, SlotRule::BlockCount { count, content_bytes, block_size: 4096 });
    assert_eq!(with(|header| header.index_count = 2), count(2, 4096));
    assert_eq!(with(|header| header.index_count = 0), count(0, 4096));
    assert_eq!(with(|header| header.content_bytes = 0), count(1, 0));
    assert_eq!(with(|header| header.content_bytes = u64::MAX), count(1, u64::MAX));
    let many = 1_000_000_001;
    assert_eq!(with(|header| header.index_count = many), slot(0, SlotRule::TooManyBlocks(many)));
    for index_offset in [0, 511, 1055, u64::MAX - 3] {
        let refused = slot(0, SlotRule::IndexPlace { index_offset, count: 1 });
        assert_eq!(with(|header| header.index_offset = index_offset), refused);
    }
    let huge = |header: &mut Header| {
        header.index_count = 1_000_000_000;
        header.content_bytes = 4_096_000_000_000;
    };
    assert_eq!(with(huge), slot(0, SlotRule::IndexPlace { index_offset: 0x21e, count: 1_000_000_000 }));
}

/// The golden file with another size in its table, and with a right checksum of the table.
fn with_entry(size: u32) -> Result<JumpTable, ZfileError> {
    let mut file = golden();
    put(&mut file, INDEX, &size.to_le_bytes());
    let index_crc = crc::raw(0, &size.to_le_bytes());
    put(&mut file, 0, &Header { index_crc, ..header() }.encode());
    open(&file)
}

#[test]
fn a_table_that_does_not_fill_the_file_is_refused() {
    let offset = INDEX as u64;
    for encoded_bytes in [0, 4, 4096 + 16 + 64 + 5, u32::MAX] {
        let refused = Err(ZfileError::EncodedSize { number: 0, offset, encoded_bytes });
        assert_eq!(with_entry(encoded_bytes), refused);
    }
    assert_eq!(with_entry(29), Err(ZfileError::DataEnd { offset, data_end: offset - 1 }));
    assert_eq!(with_entry(31), Err(ZfileError::DataEnd { offset, data_end: offset + 1 }));
    let mut file = golden();
    file[INDEX] ^= 1;
    assert!(matches!(open(&file), Err(ZfileError::IndexChecksum { offset: 0x21e, .. })));
    let layout = *open(&golden()).unwrap().layout();
    let short = ZfileError::IndexLength { offset, given_bytes: 3, wanted_bytes: 4 };
    assert_eq!(JumpTable::decode(layout, &[0; 3]), Err(short));
}

fn block_rule(file: &[u8]) -> BlockRule {
    match read(file) {
        Err(ZfileError::Block { number: 0, offset: 512, rule }) => rule,
        other => panic!("block 0 should be refused, not {:?}", other.map(|content| content.len())),
    }
}

#[test]
fn a_damaged_block_is_refused() {
    let mut file = golden();
    file[520] ^= 1;
    assert!(matches!(block_rule(&file), BlockRule::Checksum { stored: 0xb491_1724, .. }));
    let mut reseal = |at: usize, value: u8| {
        file = golden();
        file[at] = value;
        let sum = crc::raw(BLOCK_CRC_SEED, &file[512..538]);
        put(&mut file, 538, &sum.to_le_bytes());
        block_rule(&file)
    };
    assert_eq!(reseal(514, 9), BlockRule::Malformed);
    assert_eq!(reseal(531, 0xf5), BlockRule::Length { decoded_bytes: 4095 });
    assert_eq!(reseal(531, 0xf7), BlockRule::Malformed);
}

#[test]
fn slices_of_another_length_are_refused() {
    let file = golden();
    let table = open(&file).unwrap();
    let block = table.block(0).unwrap();
    let encoded = slice(&file, block.encoded);
    let attempt =
        |encoded: &[u8], dest: &mut [u8]| Decoder::new().decode(table.layout(), &block, encoded, dest);
    let slices = |encoded_bytes, decoded_bytes| {
        let rule = BlockRule::Slices { encoded_bytes, decoded_bytes };
        Err(ZfileError::Block { number: 0, offset: 512, rule })
    };
    assert_eq!(attempt(&encoded[1..], &mut [0; 4096]), slices(29, 4096));
    assert_eq!(attempt(encoded, &mut [0; 4095]), slices(30, 4095));
    assert_eq!(attempt(encoded, &mut [0; 4097]), slices(30, 4097));
    assert_eq!(attempt(encoded, &mut [0; 4096]), Ok(()));
}

/// A table of blocks of these sizes; only the table is there, not the blocks.
fn table(block_size: u32, sizes: &[u32], content_bytes: u64) -> JumpTable {
    let bytes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
    let index_offset = 512 + sizes.iter().map(|size| u64::from(*size)).sum::<u64>();
    let index_count = sizes.len() as u64;
    let index_crc = crc::raw(0, &bytes);
    let header = Header { block_size, index_offset, index_count, content_bytes, index_crc, ..header() };
    let size_bytes = index_offset + bytes.len() as u64;
    let Start::Complete(layout) = Start::decode(&header.encode(), size_bytes).unwrap() else {
        panic!("the header is final")
    };
    JumpTable::decode(layout, &bytes).unwrap()
}

proptest! {
    #[test]
    fn a_table_finds_every_block_where_the_sizes_put_it(
        sizes in proptest::collection::vec(5_u32..=65_861, 1..3000),
        missing in 0_u64..65_536,
    ) {
        let content_bytes = 65_536 * sizes.len() as u64 - missing;
        let table = table(65_536, &sizes, content_bytes);
        let mut start = 512;
        for (number, size) in (0_u32..).zip(&sizes) {
            let block = table.block(number).unwrap();
            prop_assert_eq!((block.encoded.start(), block.encoded.len()), (start, u64::from(*size)));
            let content = u64::from(number) * 65_536;
            prop_assert_eq!(block.content, ByteRange::between(content, content_bytes.min(content + 65_536)));
            start = block.encoded.end();
        }
        prop_assert_eq!(table.block(u32::try_from(sizes.len()).unwrap()), None);
        prop_assert_eq!(table.block(u32::MAX), None);
        prop_assert!(table.memory_bytes() <= sizes.len() * 4 + 8 * sizes.len().div_ceil(1024));
    }

    #[test]
    fn a_plan_covers_the_range_and_no_block_more(
        sizes in proptest::collection::vec(5_u32..=4180, 1..100),
        (start, len) in (0_u64..409_600, 0_u64..409_600),
    ) {
        let content_bytes = 4096 * sizes.len() as u64 - 100;
        let table = table(4096, &sizes, content_bytes);
        let range = ByteRange::between(start, start + len);
        let Some(plan) = table.plan(range) else {
            prop_assert!(range.is_empty() || range.end() > content_bytes);
            return Ok(());
        };
        let [first, last] = [*plan.blocks.start(), *plan.blocks.end()].map(|number| table.block(number).unwrap());
        prop_assert!(first.content.start() <= range.start() && range.start() < first.content.end());
        prop_assert!(last.content.start() < range.end() && range.end() <= last.content.end());
        prop_assert_eq!(plan.encoded, ByteRange::between(first.encoded.start(), last.encoded.end()));
    }

    #[test]
    fn a_header_survives_encoding(
        (index_offset, index_count, content_bytes) in any::<(u64, u64, u64)>(),
        (index_crc, block_size, dictionary_bytes) in any::<(u32, u32, u32)>(),
        (algorithm, level) in any::<(u8, u8)>(),
        (uses_dictionary, verify) in any::<(bool, bool)>(),
        bits in any::<u64>(),
    ) {
        let header = Header {
            flags: Flags::from_bits(bits),
            index_offset,
            index_count,
            content_bytes,
            index_crc,
            block_size,
            algorithm,
            level,
            uses_dictionary,
            dictionary_bytes,
            verify,
        };
        let slot = header.encode();
        prop_assert_eq!(slot.len(), SLOT_BYTES);
        prop_assert_eq!(Header::decode(&slot, 0).unwrap(), header);
    }
}
