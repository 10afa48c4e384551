//! Tests of blobs in every compression, whole, cut and damaged.

use std::io::{self, Read, Write};

use flate2::{GzBuilder, write::GzEncoder};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use stratabd::format::oci::Digest;

use super::*;

/// Gives no more than so many bytes at once.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        let len = dest.len().min(self.1);
        self.0.read(&mut dest[..len])
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_hash(Sha256::digest(bytes).into())
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn skippable(len: u8) -> Vec<u8> {
    [&[0x5a, 0x2a, 0x4d, 0x18, len, 0, 0, 0][..], &vec![7; len.into()]].concat()
}

/// The archive in a blob that comes in pieces, read in pieces.
fn read(blob: &[u8], piece_bytes: usize) -> Result<(Vec<u8>, LayerSummary), LayerError> {
    let mut reader = LayerReader::new(Trickle(blob, piece_bytes))?;
    let mut archive = Vec::new();
    let mut piece = vec![0; piece_bytes.min(70_000)];
    loop {
        match reader.fill(&mut piece)? {
            0 => break,
            filled => archive.extend(&piece[..filled]),
        }
    }
    assert_eq!(reader.fill(&mut piece)?, 0, "the end stays");
    reader.finish().map(|summary| (archive, summary))
}

fn content() -> Vec<u8> {
    (0..50_000_u32).flat_map(|number| (number / 7 % 1000).to_le_bytes()).collect()
}

fn sound(compression: Compression, blob: &[u8], content: &[u8]) {
    for piece_bytes in [1 << 20, 1000, 1] {
        if piece_bytes == 1 && content.len() > 100_000 {
            continue;
        }
        assert_eq!(LayerReader::new(blob).unwrap().compression(), compression);
        let (archive, summary) = read(blob, piece_bytes).unwrap();
        assert!(archive == content, "{compression}: {} bytes are not {}", archive.len(), content.len());
        let wanted = LayerSummary {
            blob_digest: digest(blob),
            blob_bytes: blob.len() as u64,
            diff_id: digest(content),
            archive_bytes: content.len() as u64,
        };
        assert_eq!(summary, wanted);
        assert_eq!(LayerReader::new(blob).unwrap().finish().unwrap(), wanted, "what nobody reads counts");
    }
}

#[test]
fn each_compression_is_told_by_its_first_bytes() {
    let content = content();
    sound(Compression::None, &content, &content);
    sound(Compression::Gzip, &gzip(&content), &content);
    sound(Compression::Zstd, &zstd(&content), &content);
    for blob in [&b""[..], b"\x1f", b"\x1f\x8b\x07", b"\x28\xb5\x2f"] {
        sound(Compression::None, blob, blob);
    }
}

#[test]
fn members_and_frames_follow_one_another() {
    let named = GzBuilder::new()
        .filename("a.tar")
        .comment("of it")
        .extra("x")
        .write(Vec::new(), flate2::Compression::fast());
    let blob = [gzip(b"one"), gzip(b""), named.finish().unwrap(), gzip(b" two")].concat();
    sound(Compression::Gzip, &blob, b"one two");
    let blob = [skippable(9), zstd(b"one"), zstd(b""), skippable(0), zstd(b" two"), skippable(200)].concat();
    sound(Compression::Zstd, &blob, b"one two");
    sound(Compression::Zstd, &skippable(3), b"");
}

#[test]
fn what_follows_the_compressed_data_is_an_error() {
    for garbage in [&b"x"[..], &[0; 512], b"\x1f\x8b", b"\x28\xb5\x2f"] {
        for (blob, wanted) in [(gzip(b"content"), Compression::Gzip), (zstd(b"content"), Compression::Zstd)] {
            let error = read(&[&blob, garbage].concat(), 100).unwrap_err();
            let LayerError::Trailing { compression, offset } = error else { panic!("{error}") };
            assert_eq!((compression, offset), (wanted, blob.len() as u64));
        }
    }
    let mixed = read(&[gzip(b"one"), zstd(b"two")].concat(), 100).unwrap_err();
    assert!(matches!(mixed, LayerError::Trailing { .. }), "{mixed}");
}

#[test]
fn a_cut_at_any_byte_is_an_error() {
    let content = &content()[..3000];
    for (first, second) in [(gzip(b"one"), gzip(content)), (zstd(b"one"), zstd(content))] {
        let blob = [&first[..], &second].concat();
        for cut in (4..blob.len()).filter(|cut| *cut != first.len()) {
            let error = read(&blob[..cut], 1000).unwrap_err();
            let expected = match error {
                LayerError::Truncated { start, offset, .. } => {
                    offset == cut as u64 && (start == 0 || start == first.len() as u64)
                }
                // What is left of a magic number is none.
                LayerError::Trailing { offset, .. } => offset == first.len() as u64 && cut < first.len() + 4,
                _ => false,
            };
            assert!(expected, "cut at {cut}: {error}");
        }
    }
}

#[test]
fn damage_names_its_place() {
    let content = content();
    for (blob, other) in [(gzip(&content), gzip(b"x")), (zstd(&content), zstd(b"x"))] {
        let mut blob = [other.clone(), blob].concat();
        let middle = blob.len() / 2;
        blob[middle..][..8].fill(0xff);
        let error = read(&blob, 1 << 20).map(drop).unwrap_err();
        let LayerError::Damaged { start, offset, .. } = error else { panic!("{error}") };
        assert!(start == other.len() as u64 && start <= offset && offset <= blob.len() as u64, "{error}");
    }
    let mut blob = gzip(b"content");
    let at = blob.len() - 8;
    blob[at] ^= 1;
    assert!(matches!(read(&blob, 100), Err(LayerError::Damaged { .. })), "the checksum is wrong");
}

#[test]
fn a_window_past_the_limit_is_refused_before_it_is_made() {
    // No content size, a window of 2^28 and one empty block, the last.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3, 1, 0, 0];
    assert!(matches!(read(&frame, 100), Err(LayerError::Damaged { start: 0, .. })));
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3, 1, 0, 0];
    assert_eq!(read(&frame, 100).unwrap().0, b"");
}

#[test]
fn other_compressions_are_named() {
    for (blob, wanted) in [(&b"BZh91AY"[..], "bzip2"), (b"\xfd7zXZ\0", "xz")] {
        let error = LayerReader::new(blob).unwrap_err();
        assert!(matches!(error, LayerError::Unsupported(name) if name == wanted), "{error}");
    }
}

#[test]
fn an_error_of_the_blob_is_given_on() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::ConnectionReset))
        }
    }
    let start = gzip(&content());
    let mut reader = LayerReader::new(start[..1000].chain(Broken)).unwrap();
    let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let error = LayerReader::new(start[..1000].chain(Broken)).unwrap().finish().unwrap_err();
    assert!(matches!(error, LayerError::Io { offset: 1000, .. }), "{error}");
}

proptest! {
    #[test]
    fn any_damage_ends_and_pieces_do_not_matter(
        is_zstd in any::<bool>(),
        len in 0_usize..5000,
        damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        piece_bytes in 1_usize..300,
    ) {
        let content = &content()[..len];
        let mut blob = if is_zstd { zstd(content) } else { gzip(content) };
        for (at, value) in damage {
            let at = at % blob.len();
            blob[at] = value;
        }
        let results = [read(&blob, 1 << 20), read(&blob, piece_bytes)].map(|result| result.map_err(drop));
        prop_assert_eq!(&results[0], &results[1]);
    }
}
