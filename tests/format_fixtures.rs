//! Every layer that upstream's tools wrote is read to the same bytes, and every damaged one is refused by its rule.
//!
//! What flattens a layer here is plain code that shares nothing with the engine: a reference to hold it against.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]
#![expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]

#[path = "support/fixtures.rs"]
mod fixtures;

use fixtures::{Fixture, hex, sha256, tar_members};
use sha2::{Digest, Sha256};
use stratabd::{
    block::ByteRange,
    format::{
        foreign::Foreign,
        lsmt::{self, LayerLayout, LsmtError, ReadOnlyLayer, SegmentRule},
        tar::{self, Envelope, TarError},
        zfile::{
            self, Algorithm, BlockFormat, BlockRule, Decoder, Encoder, JumpTable, Layout, Start, Writer,
            ZfileError,
        },
    },
};

const SECTOR: usize = 512;

#[derive(Debug, PartialEq, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error(transparent)]
    Zfile(#[from] ZfileError),
    #[error(transparent)]
    Lsmt(#[from] LsmtError),
}

fn slice(file: &[u8], range: ByteRange) -> &[u8] {
    let [start, end] = [range.start(), range.end()].map(|at| usize::try_from(at).unwrap());
    &file[start..end]
}

/// What is inside the envelope.
fn payload(file: &[u8]) -> Result<&[u8], Refusal> {
    let head = &file[..file.len().min(tar::HEAD_BYTES)];
    Ok(match Envelope::detect(head, file.len() as u64)? {
        Some(envelope) => slice(file, ByteRange::new(envelope.payload_offset, envelope.payload_len).unwrap()),
        None => file,
    })
}

fn jump_table(zfile: &[u8]) -> Result<JumpTable, Refusal> {
    let size_bytes = zfile.len() as u64;
    let layout = match Start::decode(zfile, size_bytes)? {
        Start::Complete(layout) => layout,
        Start::TrailerAt(range) => Layout::from_trailer(slice(zfile, range), size_bytes)?,
    };
    Ok(JumpTable::decode(layout, slice(zfile, layout.index_range()))?)
}

/// What is inside envelope and ZFile.
fn content(file: &[u8]) -> Result<Vec<u8>, Refusal> {
    let payload = payload(file)?;
    if !zfile::is_zfile(payload) {
        return Ok(payload.to_vec());
    }
    let table = jump_table(payload)?;
    let mut decoder = Decoder::new();
    let mut content = vec![0; usize::try_from(table.layout().content_bytes()).unwrap()];
    let blocks = content.chunks_mut(table.layout().block_size() as usize);
    for (number, dest) in (0..).zip(blocks) {
        let block = table.block(number).unwrap();
        decoder.decode(table.layout(), &block, slice(payload, block.encoded), dest)?;
    }
    Ok(content)
}

fn layer(content: &[u8]) -> Result<ReadOnlyLayer, Refusal> {
    let size_bytes = content.len() as u64;
    let trailer = LayerLayout::trailer_range(size_bytes)?;
    let layout = LayerLayout::decode(content, slice(content, trailer), size_bytes)?;
    Ok(layout.decode_index(slice(content, layout.index_range()))?)
}

/// The hash of the device that one layer over nothing is.
fn flat_sha256(content: &[u8]) -> Result<String, Refusal> {
    let layer = layer(content)?;
    let mut hash = Sha256::new();
    let hash_zeroes = |sectors: u64, hash: &mut Sha256| {
        let mut left = usize::try_from(sectors).unwrap() * SECTOR;
        while left > 0 {
            let step = left.min(1 << 20);
            hash.update(&[0; 1 << 20][..step]);
            left -= step;
        }
    };
    let mut at = 0;
    for segment in layer.segments() {
        hash_zeroes(segment.offset() - at, &mut hash);
        if segment.zeroed() {
            hash_zeroes(u64::from(segment.length()), &mut hash);
        } else {
            let start = usize::try_from(segment.moffset()).unwrap() * SECTOR;
            hash.update(&content[start..start + segment.length() as usize * SECTOR]);
        }
        at = segment.end();
    }
    hash_zeroes(layer.virtual_size_bytes() / 512 - at, &mut hash);
    Ok(hex(hash.finalize().as_slice()))
}

#[test]
fn every_zfile_decodes_to_its_content() {
    let random = "a28ae0b9e40df00c63a6d6815bb2fd7adba85c70d3c238b88fe11ce93d8e2d6b";
    let mut seen = 0;
    for fixture in Fixture::all().into_iter().filter(|fixture| fixture.file.starts_with("zfile/")) {
        let found = sha256(&content(&fixture.read()).unwrap());
        // Upstream cannot read its own incompressible blocks of 64 KiB, so the manifest has no hash of that file.
        assert_eq!(found, fixture.flat_sha256.as_deref().unwrap_or(random), "{}", fixture.file);
        seen += 1;
    }
    assert_eq!(seen, 25);
}

/// The content again as `overlaybd-zfile` writes it, or as `overlaybd-commit` does, which goes back to the header.
fn rewritten(content: &[u8], format: BlockFormat, is_final: bool) -> Vec<u8> {
    let (mut encoder, mut writer) = (Encoder::new(format).unwrap(), Writer::new(format));
    let mut file = writer.start();
    for block in content.chunks(format.block_size() as usize) {
        let taken = encoder.encode(block, &mut file).unwrap();
        writer.add(block.len() as u32, taken).unwrap();
    }
    let tail = writer.finish();
    if is_final {
        file[..zfile::SLOT_BYTES].copy_from_slice(&tail.header);
    }
    [file, tail.index, tail.trailer].concat()
}

#[test]
fn a_zfile_is_written_as_upstreams_tools_write_it() {
    let mut same = 0;
    for fixture in Fixture::all().iter().filter(|fixture| fixture.file.starts_with("zfile/")) {
        let file = fixture.read();
        let inner = payload(&file).unwrap();
        let layout = *jump_table(inner).unwrap().layout();
        let format = BlockFormat::new(layout.algorithm(), layout.block_size()).unwrap();
        let is_final = matches!(Start::decode(inner, inner.len() as u64), Ok(Start::Complete(_)));
        if fixture.file.contains("random140000.lz4.64k") {
            // Upstream's reader refuses this file of its own, so ours is not written.
            continue;
        }
        let ours = rewritten(&content(&file).unwrap(), format, is_final);
        if layout.algorithm() == Algorithm::Lz4 {
            assert!(ours == inner, "{}", fixture.file);
            same += 1;
        } else {
            // Another version of the library makes other frames.
            assert!(ours.len().abs_diff(inner.len()) * 1000 <= inner.len(), "{}", fixture.file);
            assert_eq!(content(&ours).unwrap(), content(&file).unwrap());
        }
    }
    assert_eq!(same, 13);
}

#[test]
fn every_form_of_a_layer_holds_the_same_layer() {
    let mut seen = 0;
    for number in 0..3 {
        let plain = Fixture::named(&format!("ext4/L{number}.lsmt.xz"));
        let variants = format!("ext4/L{number}.z");
        for fixture in Fixture::all().into_iter().filter(|fixture| fixture.file.starts_with(&variants)) {
            let content = content(&fixture.read()).unwrap();
            assert_eq!(sha256(&content), plain.sha256, "{}", fixture.file);
            layer(&content).unwrap();
            seen += 1;
        }
    }
    assert_eq!(seen, 13);
}

#[test]
fn every_plain_layer_flattens_to_its_device() {
    let is_layer = |fixture: &Fixture| {
        let file = fixture.file.as_str();
        let known = [".lsmt", ".lsmt.xz", "sealed.xz", "recommit.xz"];
        known.iter().any(|ending| file.ends_with(ending))
    };
    let mut seen = 0;
    for fixture in Fixture::all().into_iter().filter(is_layer) {
        assert_eq!(flat_sha256(&fixture.read()).unwrap(), fixture.flat_sha256.unwrap(), "{}", fixture.file);
        seen += 1;
    }
    assert_eq!(seen, 13);
}

/// Writes each layer over the one before: slow, and too simple to be wrong.
fn paint(device: &mut [u8], content: &[u8]) {
    for segment in layer(content).unwrap().segments() {
        let [at, len] = [segment.offset(), u64::from(segment.length())].map(|it| it as usize * SECTOR);
        let from = segment.moffset() as usize * SECTOR;
        if segment.zeroed() {
            device[at..at + len].fill(0);
        } else {
            device[at..at + len].copy_from_slice(&content[from..from + len]);
        }
    }
}

#[test]
fn layers_painted_over_one_another_are_the_stack() {
    let hundred = "6b079f86755cbe8a82cc292b3918f0d98d436da9067d0678cc47b1caff2154d0";
    let archive = Fixture::named("lsmt/stack256.tar.xz");
    let bytes = archive.read();
    let members = tar_members(&bytes);
    assert_eq!(members.len(), 256);
    let mut device = vec![0; 8 << 20];
    for (number, file) in members.iter().take(255).enumerate() {
        paint(&mut device, &content(file).unwrap());
        if number == 99 {
            assert_eq!(sha256(&device), hundred);
        }
    }
    assert_eq!(Some(sha256(&device)), archive.flat_sha256);
}

/// What a damaged fixture must come to: a rule, or the hash of a device.
enum Outcome {
    Refused(fn(&Refusal) -> bool),
    Reads(&'static str),
}

const TINY: &str = "7e2052f04f37415007825047bc94a292614cff285a18193008241e9752ff2b9a";
const L2: &str = "b08a6fb10d718cd8b6d42a54b6c1eca1754398f31594d9406fe8b41a8874e050";
const TINY_FLIPPED: &str = "1230f9977b94a92f00c873b4881e63cbf56c38f7af40d330babf42a2cdc0fb44";
const TRAILER: u64 = 46592;

fn lsmt_slot(refusal: &Refusal, wanted: u64, rule: lsmt::SlotRule) -> bool {
    *refusal == Refusal::Lsmt(LsmtError::Slot { offset: wanted, rule })
}

fn lsmt_segment(refusal: &Refusal, wanted: fn(SegmentRule) -> bool) -> bool {
    matches!(refusal, Refusal::Lsmt(LsmtError::Segment { rule, .. }) if wanted(*rule))
}

fn damaged_block(refusal: &Refusal, wanted: u32) -> bool {
    let Refusal::Zfile(ZfileError::Block { number, rule, .. }) = refusal else { return false };
    *number == wanted && matches!(rule, BlockRule::Checksum { .. })
}

fn not_lsmt(refusal: &Refusal) -> bool {
    lsmt_slot(refusal, 0, lsmt::SlotRule::Magic)
}

const CORRUPT: [(&str, Outcome); 21] = {
    use Outcome::{Reads, Refused};
    [
        ("lsmt-data-flip", Reads(TINY_FLIPPED)),
        ("lsmt-header-magic", Refused(not_lsmt)),
        (
            "lsmt-index-disorder",
            Refused(|it| lsmt_segment(it, |rule| matches!(rule, SegmentRule::Disorder { .. }))),
        ),
        (
            "lsmt-index-moffset-oob",
            Refused(|it| lsmt_segment(it, |rule| matches!(rule, SegmentRule::Place { .. }))),
        ),
        (
            "lsmt-index-size-huge",
            Refused(|it| matches!(it, Refusal::Lsmt(LsmtError::TooManySegments { offset: TRAILER, .. }))),
        ),
        (
            "lsmt-index-size-zero",
            Refused(|it| {
                matches!(it, Refusal::Lsmt(LsmtError::IndexPlace { offset: TRAILER, count: 0, .. }))
            }),
        ),
        ("lsmt-tag-nonzero", Reads(TINY)),
        ("lsmt-trailer-magic", Refused(|it| lsmt_slot(it, TRAILER, lsmt::SlotRule::Magic))),
        ("lsmt-trailer-unsealed", Refused(|it| lsmt_slot(it, TRAILER, lsmt::SlotRule::Unsealed))),
        ("lsmt-trunc-trailer", Refused(|it| lsmt_slot(it, TRAILER - 4096, lsmt::SlotRule::Magic))),
        ("lsmt-version9", Refused(|it| lsmt_slot(it, TRAILER, lsmt::SlotRule::Version(9)))),
        // No tar any more, so the bytes of the tar are taken for a layer.
        ("tar-magic-flip", Refused(not_lsmt)),
        ("tar-name-flip", Refused(|it| lsmt_slot(it, 0, lsmt::SlotRule::Foreign(Foreign::Tar)))),
        // The byte that was flipped, at 700, is in the second block.
        ("zfile-data-flip", Refused(|it| damaged_block(it, 1))),
        (
            "zfile-header-digest",
            Refused(|it| {
                let Refusal::Zfile(ZfileError::Slot { offset: 0, rule }) = it else { return false };
                matches!(rule, zfile::SlotRule::Digest { .. })
            }),
        ),
        ("zfile-header-magic", Refused(not_lsmt)),
        (
            "zfile-jumptable-flip",
            Refused(|it| matches!(it, Refusal::Zfile(ZfileError::IndexChecksum { .. }))),
        ),
        ("zfile-trailer-flip", Reads(L2)),
        ("zfile-trunc", Reads(L2)),
        ("zfile2-crc-flip", Refused(|it| damaged_block(it, 0))),
        (
            "zfile2-trailer-flip",
            Refused(|it| {
                let wanted = ZfileError::Slot { offset: 117_255 - 512, rule: zfile::SlotRule::Magic };
                *it == Refusal::Zfile(wanted)
            }),
        ),
    ]
};

#[test]
fn every_damaged_fixture_is_refused_by_its_rule_or_reads_as_it_is() {
    let present = Fixture::all().into_iter().filter(|fixture| fixture.file.starts_with("corrupt/")).count();
    assert_eq!(present, CORRUPT.len());
    for (name, outcome) in CORRUPT {
        let file = Fixture::named(&format!("corrupt/{name}")).read();
        let found = content(&file).and_then(|content| flat_sha256(&content));
        match (outcome, found) {
            (Outcome::Reads(wanted), Ok(found)) => assert_eq!(found, wanted, "{name}"),
            (Outcome::Refused(expected), Err(refusal)) => assert!(expected(&refusal), "{name}: {refusal:?}"),
            (_, found) => panic!("{name}: {found:?}"),
        }
    }
}
