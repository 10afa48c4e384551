//! What is fuzzed: for each target one function that hands hostile bytes to one parser and asserts what must hold.
//!
//! The same functions run in two places: in the fuzzer, by `ci/fuzz NAME`, and in `convertor/tests/corpus.rs`, which replays every
//! file of `corpus/NAME` in `cargo test`. To add a target:
//!
//! 1. write its function here and add it to [`TARGETS`];
//! 2. put a few small inputs into `corpus/NAME`: cuts of real files, and one that breaks each rule.
//!
//! `convertor/tests/corpus.rs` fails when one of these is missing. A crash that was found goes into the corpus with its fix.

use std::cell::RefCell;

use stratabd::{
    block::{ByteRange, Geometry},
    cache::{MapHeader, MapKind, decode_map, decode_sectors},
    format::{
        crc,
        ext4::Superblock,
        lsmt::{self, LayerLayout},
        oci::{Document, LAYER_COUNT_LIMIT, Platform},
        tar::{self, Envelope},
        zfile::{self, Decoder, JumpTable, Layout, Start, ZfileError},
    },
    frontend::ublk::{Descriptor, Work},
    image::superblock,
};

#[path = "archive.rs"]
mod archive;
#[path = "ext4.rs"]
mod ext4;
#[path = "layer.rs"]
mod layer;
#[path = "registry.rs"]
mod registry;
#[path = "server.rs"]
mod server;
#[path = "verity.rs"]
mod verity;

pub use archive::{tar_archive, tar_members};
pub use ext4::ext4_layer;
pub use layer::layer_blob;
pub use registry::{
    registry_challenge, registry_content_range, registry_docker_config, registry_location,
    registry_next_image, registry_program_answer, registry_reference, registry_refusal, registry_retry_after,
    registry_service_answer, registry_token,
};
pub use server::{
    server_api_answer, server_api_request, server_config, server_image_config, server_next_config,
    server_overlaybd_config, server_record,
};
pub use verity::verity;

/// A name, and what is called with the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 36] = [
    ("tar_archive", tar_archive),
    ("tar_members", tar_members),
    ("tar_envelope", tar_envelope),
    ("ext4_layer", ext4_layer),
    ("verity", verity),
    ("layer_blob", layer_blob),
    ("zfile_header", zfile_header),
    ("zfile_jump_table", zfile_jump_table),
    ("zfile_block", zfile_block),
    ("lsmt_header", lsmt_header),
    ("lsmt_index", lsmt_index),
    ("lsmt_journal", lsmt_journal),
    ("lsmt_log", lsmt_log),
    ("lsmt_writable", lsmt_writable),
    ("oci_manifest", oci_manifest),
    ("registry_challenge", registry_challenge),
    ("registry_content_range", registry_content_range),
    ("registry_docker_config", registry_docker_config),
    ("registry_retry_after", registry_retry_after),
    ("registry_reference", registry_reference),
    ("registry_refusal", registry_refusal),
    ("registry_location", registry_location),
    ("registry_token", registry_token),
    ("registry_next_image", registry_next_image),
    ("registry_program_answer", registry_program_answer),
    ("registry_service_answer", registry_service_answer),
    ("server_config", server_config),
    ("server_image_config", server_image_config),
    ("server_next_config", server_next_config),
    ("server_overlaybd_config", server_overlaybd_config),
    ("server_record", server_record),
    ("server_api_request", server_api_request),
    ("server_api_answer", server_api_answer),
    ("image_superblock", image_superblock),
    ("cache_map", cache_map),
    ("ublk_descriptor", ublk_descriptor),
];

/// The input is a whole file.
pub fn tar_envelope(input: &[u8]) {
    let size_bytes = input.len() as u64;
    let head = input.get(..tar::HEAD_BYTES).unwrap_or(input);
    match Envelope::detect(head, size_bytes) {
        Ok(Some(Envelope { payload_offset, payload_len })) => {
            assert!(payload_len > 0 && matches!(payload_offset, 512 | 1536));
            assert!(payload_offset.checked_add(payload_len).is_some_and(|end| end <= size_bytes));
        }
        Ok(None) => {}
        Err(error) => check_message(&error),
    }
}

/// The input is a whole ZFile. Its digests are set right, or no input would get past them.
pub fn zfile_header(input: &[u8]) {
    let mut file = input.to_vec();
    right_digest(&mut file, 0);
    let trailer = file.len().saturating_sub(zfile::SLOT_BYTES);
    if trailer >= zfile::SLOT_BYTES {
        right_digest(&mut file, trailer);
    }
    let size_bytes = file.len() as u64;
    match open_zfile(&file, size_bytes) {
        Ok(layout) => {
            let index = layout.index_range();
            assert!(index.end() <= size_bytes && index.start() >= zfile::SLOT_BYTES as u64);
            assert_eq!(index.len(), u64::from(layout.block_count()) * 4);
            let [count, size] = [layout.block_count(), layout.block_size()].map(u64::from);
            assert_eq!(layout.content_bytes().div_ceil(size), count);
        }
        Err(error) => check_message(&error),
    }
    if let Ok(header) = zfile::Header::decode(&file, 0) {
        assert_eq!(zfile::Header::decode(&header.encode(), 0), Ok(header));
    }
}

fn open_zfile(file: &[u8], size_bytes: u64) -> Result<Layout, ZfileError> {
    match Start::decode(file, size_bytes)? {
        Start::Complete(layout) => Ok(layout),
        Start::TrailerAt(range) => {
            let start = usize::try_from(range.start()).expect("the range lies in the input");
            Layout::from_trailer(file.get(start..).expect("the range lies in the input"), size_bytes)
        }
    }
}

fn right_digest(file: &mut [u8], at: usize) {
    let slot = file.get_mut(at..).unwrap_or_default();
    if let Err(ZfileError::Slot { rule: zfile::SlotRule::Digest { computed, .. }, .. }) =
        zfile::Header::decode(slot, 0)
    {
        slot.get_mut(28..32).expect("a slot has a digest").copy_from_slice(&computed.to_le_bytes());
    }
}

/// The first byte chooses the layout, the next three say how much the last block lacks and by how much the table's
/// place is off; the rest is the table.
pub fn zfile_jump_table(input: &[u8]) {
    let Some(([choice, lacking @ .., shift], table)) = input.split_first_chunk::<4>() else { return };
    let (entries, _) = table.as_chunks::<4>();
    let table = entries.as_flattened();
    let block_size = 4096_u32 << (choice % 5);
    let count = entries.len() as u64;
    let total = entries.iter().fold(0_u64, |total, entry| total + u64::from(u32::from_le_bytes(*entry)));
    let lacking = u64::from(u16::from_le_bytes(*lacking)) % u64::from(block_size);
    let header = zfile::Header {
        flags: zfile::Flags::HEADER
            .union(zfile::Flags::DATA)
            .union(zfile::Flags::FINAL)
            .union(zfile::Flags::DIGESTS),
        index_offset: 512 + total + u64::from(*shift),
        index_count: count,
        content_bytes: (count * u64::from(block_size)).saturating_sub(lacking),
        index_crc: crc::raw(0, table),
        block_size,
        algorithm: 1,
        level: 0,
        uses_dictionary: false,
        dictionary_bytes: 0,
        verify: choice & 0x80 != 0,
    };
    let size_bytes = header.index_offset + table.len() as u64;
    let layout = open_zfile(&header.encode(), size_bytes).expect("the header is sound");
    match JumpTable::decode(layout, table) {
        Ok(table) => check_jump_table(&table),
        Err(error) => check_message(&error),
    }
}

fn check_jump_table(table: &JumpTable) {
    let layout = *table.layout();
    let mut at = ByteRange::between(0, 0);
    let mut encoded_end = 512;
    for number in 0..layout.block_count() {
        let block = table.block(number).expect("the block exists");
        assert_eq!((block.content.start(), block.encoded.start()), (at.end(), encoded_end));
        assert!(!block.content.is_empty() && !block.encoded.is_empty());
        let plan = table.plan(block.content).expect("the range is inside");
        assert_eq!((plan.blocks, plan.encoded), (number..=number, block.encoded));
        at = block.content;
        encoded_end = block.encoded.end();
    }
    assert_eq!((at.end(), encoded_end), (layout.content_bytes(), layout.index_range().start()));
    assert_eq!(table.block(layout.block_count()), None);
    let whole = ByteRange::between(0, layout.content_bytes());
    assert_eq!(table.plan(whole).map(|plan| plan.encoded.end()), (!whole.is_empty()).then_some(encoded_end));
    assert_eq!(table.plan(ByteRange::between(0, layout.content_bytes() + 1)), None);
}

thread_local! {
    static DECODER: RefCell<Decoder> = RefCell::default();
}

/// The first byte chooses the compressor, the next two the length of the content; the rest is the block, whose checksum
/// is set right.
pub fn zfile_block(input: &[u8]) {
    let Some(([choice, len @ ..], block)) = input.split_first_chunk::<3>() else { return };
    let len = usize::from(u16::from_le_bytes(*len)) + 1;
    let checksum = crc::raw(zfile::BLOCK_CRC_SEED, block).to_le_bytes();
    let encoded = [block, &checksum].concat();
    let header = zfile::Header {
        flags: zfile::Flags::HEADER.union(zfile::Flags::DATA).union(zfile::Flags::FINAL),
        index_offset: 512 + encoded.len() as u64,
        index_count: 1,
        content_bytes: len as u64,
        index_crc: 0,
        block_size: zfile::BLOCK_SIZE_MAX,
        algorithm: 1 + choice % 2,
        level: 0,
        uses_dictionary: false,
        dictionary_bytes: 0,
        verify: true,
    };
    let layout = open_zfile(&header.encode(), header.index_offset + 4).expect("the header is sound");
    let size = u32::try_from(encoded.len()).expect("inputs are short");
    let Ok(table) = JumpTable::decode(layout, &size.to_le_bytes()) else { return };
    let block = table.block(0).expect("there is one block");
    let decode = |filler: u8| {
        let mut dest = vec![filler; len + 64];
        let (content, beyond) = dest.split_at_mut(len);
        let outcome = DECODER.with_borrow_mut(|decoder| decoder.decode(&layout, &block, &encoded, content));
        assert!(beyond.iter().all(|byte| *byte == filler), "bytes past the destination were written");
        outcome.map(|()| content.to_vec())
    };
    // What was in the destination must not shine through.
    assert_eq!(decode(0x00), decode(0xff));
}

/// The input is a whole layer.
pub fn lsmt_header(input: &[u8]) {
    let size_bytes = input.len() as u64;
    if let Ok(header) = lsmt::Header::decode(input, 0) {
        assert_eq!(
            lsmt::Header::decode(&header.encode(), 0).map(|read| read.index_offset),
            Ok(header.index_offset)
        );
    }
    let trailer = input.get(input.len().saturating_sub(lsmt::SLOT_BYTES)..).unwrap_or_default();
    match LayerLayout::decode(input, trailer, size_bytes) {
        Ok(layout) => {
            let index = layout.index_range();
            assert!(index.start() >= 4096 && index.end() <= size_bytes - 4096);
            assert_eq!(index.len(), layout.trailer().index_count * 16);
        }
        Err(error) => check_message(&error),
    }
}

/// The first two bytes say how many sectors of data there are; the rest is the index.
pub fn lsmt_index(input: &[u8]) {
    let Some((sectors, index)) = input.split_first_chunk::<2>() else { return };
    let (entries, _) = index.as_chunks::<{ lsmt::SEGMENT_BYTES }>();
    let limit = lsmt::DATA_START_SECTOR + u64::from(u16::from_le_bytes(*sectors));
    let header = lsmt::Header {
        position: lsmt::SlotPosition::Header,
        kind: lsmt::FileKind::Data,
        sealed: true,
        sparse: false,
        index_offset: limit * 512,
        index_count: entries.len() as u64,
        virtual_size_bytes: 0,
        uuid: None,
        parent_uuid: None,
        user_tag: lsmt::UserTag::default(),
    };
    let trailer = lsmt::Header { position: lsmt::SlotPosition::Trailer, ..header };
    let index = entries.as_flattened();
    let size_bytes = header.index_offset + index.len() as u64 + 4096;
    let layout =
        LayerLayout::decode(&header.encode(), &trailer.encode(), size_bytes).expect("the slots are sound");
    match layout.decode_index(index) {
        Ok(layer) => check_segments(layer.segments(), limit),
        Err(error) => check_message(&error),
    }
}

fn check_segments(segments: &[lsmt::Segment], limit: u64) {
    let mut end = 0;
    for segment in segments {
        assert!(
            segment.offset() >= end && segment.length() > 0 && segment.tag() == 0 && !segment.is_padding()
        );
        assert!(segment.moffset() >= lsmt::DATA_START_SECTOR && segment.mend() <= limit);
        end = segment.end();
    }
}

/// The input is the file of a journal, for a layer of 1 MiB whose data file has as much.
pub fn lsmt_journal(input: &[u8]) {
    let (header, entries) = match lsmt::decode_journal(input) {
        Ok(found) => found,
        Err(error) => return check_message(&error),
    };
    assert!(entries.len() as u64 <= header.capacity && header.capacity <= lsmt::JOURNAL_ENTRY_LIMIT);
    if header.capacity <= 1024 {
        let again = lsmt::decode_journal(&header.encode(&entries)).expect("it is whole");
        assert!(again.0 == header && again.1 == entries);
    }
    let data = lsmt::Header {
        position: lsmt::SlotPosition::Header,
        kind: lsmt::FileKind::Data,
        sealed: false,
        sparse: false,
        index_offset: 0,
        index_count: 0,
        virtual_size_bytes: 1 << 20,
        uuid: Some(header.uuid),
        parent_uuid: None,
        user_tag: lsmt::UserTag::default(),
    };
    match lsmt::check_entries(&entries, &data, 1 << 20) {
        Ok(()) => assert!(
            entries.iter().all(|entry| entry.length() > 0 && entry.end() <= 2048 && entry.mend() <= 2048)
        ),
        Err(error) => check_message(&error),
    }
}

/// The first half of the input is the start of a data file that may be written, the second that of its index file.
pub fn lsmt_writable(input: &[u8]) {
    let (data, index) = input.split_at(input.len() / 2);
    let slot = |start: &[u8]| {
        let mut slot = start.to_vec();
        slot.resize(slot.len().max(lsmt::SLOT_BYTES), 0);
        slot
    };
    let data = lsmt::decode_data_header(&slot(data));
    let index = lsmt::decode_index_header(&slot(index));
    for error in [data.as_ref().err(), index.as_ref().err()].into_iter().flatten() {
        check_message(error);
    }
    let Ok(data) = data else { return };
    assert!(!data.sealed && data.kind == lsmt::FileKind::Data);
    // What is made for it belongs to it.
    let made = lsmt::decode_index_header(&lsmt::index_header(&data).encode()).expect("it is sound");
    assert_eq!(lsmt::require_pair(&data, &made), Ok(()));
    assert_eq!(made.virtual_size_bytes, data.virtual_size_bytes);
    let Ok(index) = index else { return };
    match lsmt::require_pair(&data, &index) {
        Ok(()) => assert!(data.uuid == index.uuid || data.uuid.is_none() || index.uuid.is_none()),
        Err(error) => check_message(&error),
    }
}

/// The first two bytes say how many sectors the data file has, the third how many bytes of the entries come at once; the
/// rest is the entries of the index file.
pub fn lsmt_log(input: &[u8]) {
    let Some(([low, high, piece], entries)) = input.split_first_chunk::<3>() else { return };
    let limit = u64::from(u16::from_le_bytes([*low, *high]));
    let replay = |piece: usize| {
        let mut replay = lsmt::LogReplay::new(4096 + entries.len() as u64, limit * 512)?;
        entries.chunks(piece).try_for_each(|piece| replay.feed(piece))?;
        Ok(replay.finish())
    };
    let replayed: Result<lsmt::Replayed, lsmt::LsmtError> = replay(usize::from(*piece) + 1);
    assert_eq!(replayed, replay(usize::MAX));
    match replayed {
        Ok(replayed) => {
            let counting = (replayed.end_offset - 4096) / 16;
            assert_eq!(counting + replayed.torn_entries, entries.len() as u64 / 16);
            check_segments(&replayed.segments.into_segments(), limit);
        }
        Err(error) => check_message(&error),
    }
}

/// The input is the body that a registry answered.
pub fn oci_manifest(input: &[u8]) {
    match Document::decode(input) {
        Ok(Document::Manifest(manifest)) => match manifest.layers() {
            Ok(layers) => {
                assert!((1..=LAYER_COUNT_LIMIT).contains(&layers.len()));
                for layer in layers {
                    assert_eq!(layer.digest.to_string().parse(), Ok(layer.digest));
                }
            }
            Err(error) => check_message(&error),
        },
        Ok(Document::Index(index)) => {
            let wanted = Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: None };
            match index.select(&wanted) {
                Ok(chosen) => assert!(chosen.platform.as_ref().is_none_or(|offered| wanted.accepts(offered))),
                Err(error) => check_message(&error),
            }
        }
        Err(error) => check_message(&error),
    }
}

/// The input is the start of a device, and at the same time what lies where btrfs has its superblock.
pub fn image_superblock(input: &[u8]) {
    for bytes in [superblock::block_bytes(input), superblock::btrfs_block_bytes(input)].into_iter().flatten()
    {
        assert!(bytes.is_power_of_two() && (512..=65_536).contains(&bytes), "{bytes}");
    }
    if let Some(ext4) = Superblock::of(input) {
        assert_eq!(superblock::block_bytes(input), Some(ext4.block_bytes));
        assert!(ext4.fills(0) && (ext4.size_bytes() == u64::MAX || ext4.fills(ext4.size_bytes())));
    }
}

/// The first byte chooses the kind of map, the next three the size of the blob in units of 64 bytes; the rest is the map,
/// whose CRCs are set right.
pub fn cache_map(input: &[u8]) {
    let Some(([kind, size @ ..], map)) = input.split_first_chunk::<4>() else { return };
    let [first, second, third] = *size;
    let kind = if kind % 2 == 0 { MapKind::Boot } else { MapKind::Durable };
    let size_bytes = u64::from(u32::from_le_bytes([first, second, third, 0])) * 64;
    let wanted = MapHeader { kind, size_bytes, key: [7; 32], incarnation: 0 };
    let mut map = map.to_vec();
    for sector in map.chunks_exact_mut(512) {
        let (body, crc) = sector.split_at_mut(508);
        crc.copy_from_slice(&(!crc::raw(!0, body)).to_le_bytes());
    }
    match decode_map(&map, &wanted) {
        Ok(incarnation) => {
            let sectors = map.get(512..).unwrap_or_default();
            let mut end = 0;
            for (first, sums) in decode_sectors(sectors, 0, size_bytes, incarnation, &[9; 16]) {
                for run in sums.runs() {
                    assert!(first + run.start >= end && run.start < run.end, "out of order");
                    end = first + run.end;
                }
            }
            assert!(end <= size_bytes.div_ceil(4096), "a grain past the end");
            assert!(end <= sectors.len() as u64 / 512 * 120, "a grain that is in no sector");
        }
        Err(error) => check_message(&error),
    }
}

/// The first 16 bytes are a descriptor, the next 8 choose the device: its size, its block size, what it takes.
pub fn ublk_descriptor(input: &[u8]) {
    let Some((descriptor, rest)) = input.split_first_chunk::<16>() else { return };
    let Some((&[choice, most, size @ ..], _)) = rest.split_first_chunk::<8>() else { return };
    let [op_flags, sectors, low, high] = [0, 4, 8, 12].map(|at| {
        let word = descriptor.get(at..at + 4).and_then(|word| word.try_into().ok());
        u32::from_le_bytes(word.expect("there are four words"))
    });
    let descriptor = Descriptor { op_flags, sectors, start_sector: u64::from(high) << 32 | u64::from(low) };
    let block_bytes = if choice & 1 == 0 { 512 } else { 4096 };
    let blocks = size.iter().fold(0_u64, |size, byte| size << 8 | u64::from(*byte)) >> (choice >> 3);
    let size_bytes = blocks * u64::from(block_bytes);
    let (read_only, discard) = (choice & 2 != 0, choice & 4 != 0);
    let geometry = Geometry { read_only, discard, ..Geometry::read_only(size_bytes, block_bytes) };
    let most = 4096 * (u32::from(most) + 1);
    let inside = |offset: u64, len: u64| {
        let whole = offset.is_multiple_of(block_bytes.into()) && len.is_multiple_of(block_bytes.into());
        whole && offset.checked_add(len).is_some_and(|end| end <= size_bytes)
    };
    match descriptor.check(&geometry, most) {
        Ok(Work::Read { offset, len }) => assert!((1..=most).contains(&len) && inside(offset, len.into())),
        Ok(Work::Write { offset, len, .. }) => {
            assert!(!read_only && (1..=most).contains(&len) && inside(offset, len.into()));
        }
        Ok(Work::Zero { offset, len }) => assert!(!read_only && inside(offset, len)),
        Ok(Work::Flush) => {}
        Err(error) => check_message(&error),
    }
}

/// A message that holds words of the input still has a bounded length.
fn check_message(error: &dyn std::error::Error) {
    assert!(error.to_string().len() < 8192);
}
