//! Archives that are made to do harm end with a clear error or the right result, soon and in bounded memory.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]

#[expect(dead_code, reason = "one of several users of the support code")]
mod support;

use std::{
    io::{self, Cursor, Read},
    time::{Duration, Instant},
};

use convertor::{
    apply::{Applied, ApplyError, apply},
    layer::{LayerError, LayerReader},
};
use flate2::{Compression, write::GzEncoder};
use stratabd_ext4::{Error, Filesystem, MemoryDevice, Timestamp};
use support::{Image, OPTIONS, archive};

const TIME: Timestamp = Timestamp { seconds: 1_700_000_001, nanoseconds: 0 };
const SIZE_BYTES: u64 = 64 << 20;
/// Far more than any of these takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Applies an archive to an empty file system in memory, and says how many pages that has then.
fn applied(archive: impl Read) -> Result<(Applied, usize), ApplyError> {
    let began = Instant::now();
    let mut filesystem = Filesystem::format(MemoryDevice::new(SIZE_BYTES), &OPTIONS).unwrap();
    let applied = apply(archive, &mut filesystem);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let applied = applied?;
    Ok((applied, filesystem.finish(TIME).unwrap().page_count()))
}

fn checked(archive: &[u8]) -> Image {
    let image = Image::of(1 << 30);
    let mut filesystem = image.format();
    apply(archive, &mut filesystem).unwrap();
    filesystem.finish(TIME).unwrap();
    image.check();
    image
}

fn cause(error: &ApplyError) -> &Error {
    match error {
        ApplyError::Entry { error, .. } => error,
        other => panic!("{other}"),
    }
}

/// Gives an entry of an archive, whose header is at `at`, another size.
fn claim(archive: &mut [u8], at: usize, size: &[u8; 12]) {
    let block = &mut archive[at..at + 512];
    block[124..136].copy_from_slice(size);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn gzip(archive: impl Read) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    io::copy(&mut { archive }, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// An archive with one file, whose content comes from elsewhere.
fn one_file(size_bytes: u64, content: impl Read) -> impl Read {
    let mut head = archive(&[("file", b'0', "")]);
    head.truncate(512);
    claim(&mut head, 0, format!("{size_bytes:011o}\0").as_bytes().try_into().unwrap());
    Cursor::new(head).chain(content.take(size_bytes)).chain(io::repeat(0).take(1024))
}

#[test]
fn what_a_header_claims_is_believed_only_as_it_comes() {
    // 8 GiB less a byte, and 8 GiB and far more in base 256.
    for size in
        [b"77777777777\0", b"\x80\0\0\0\0\0\0\x02\0\0\0\0", b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\0"]
    {
        let mut claimed = archive(&[("file", b'0', "ten bytes.")]);
        claim(&mut claimed, 0, size);
        let error = applied(&claimed[..]).unwrap_err();
        assert!(matches!(error, ApplyError::Archive(_)), "{error}");
        // What is no file has no content, whatever it claims.
        let mut claimed = archive(&[("directory/", b'5', ""), ("file", b'0', "x")]);
        claim(&mut claimed, 0, size);
        assert_eq!(applied(&claimed[..]).unwrap().0.entries, 2);
    }
    // The names of a long header are not held in memory before they are there.
    let mut claimed = archive(&[(&"n".repeat(200), b'0', "x")]);
    claim(&mut claimed, 0, b"77777777777\0");
    assert!(matches!(applied(&claimed[..]).unwrap_err(), ApplyError::Archive(_)));
}

#[test]
fn a_bomb_takes_time_and_room_by_what_it_fills_alone() {
    // Zeroes are holes.
    let bomb = gzip(one_file(48 << 20, io::repeat(0)));
    assert!(bomb.len() < 1 << 20);
    let (_, pages) = applied(LayerReader::new(&bomb[..]).unwrap()).unwrap();
    assert!(pages < 64, "{pages}");
    // What is more than the device has ends where that does.
    for content in [7, 0] {
        let bomb = gzip(one_file(96 << 20, io::repeat(content)));
        let result = applied(LayerReader::new(&bomb[..]).unwrap());
        match content {
            0 => assert!(result.unwrap().1 < 64),
            _ => assert!(matches!(cause(&result.unwrap_err()), Error::NoSpace)),
        }
    }
    // All of the bytes are there, but behind the end of the archive.
    let bomb = gzip(Cursor::new(archive(&[("file", b'0', "x")])).chain(io::repeat(0).take(32 << 20)));
    assert_eq!(applied(LayerReader::new(&bomb[..]).unwrap()).unwrap().0.entries, 1);
    let cut = applied(LayerReader::new(&bomb[..bomb.len() / 2]).unwrap()).unwrap_err();
    let ApplyError::Read(error) = &cut else { panic!("{cut}") };
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref()).unwrap();
    assert!(matches!(inner, LayerError::Truncated { .. }), "{inner}");
}

#[test]
fn links_that_lead_in_circles_end() {
    let links = [
        ("a", b'2', "b"),
        ("b", b'2', "a"),
        ("here", b'2', "."),
        ("up", b'2', "../.."),
        ("dir/self", b'2', "/dir/self/x"),
    ];
    for through in ["a/file", "b/c", "dir/self/file"] {
        let entries = [&links[..], &[(through, b'0', "x")]].concat();
        let error = applied(&archive(&entries)[..]).unwrap_err();
        assert!(matches!(cause(&error), Error::TooManySymlinks(_)), "{through}: {error}");
        // A whiteout of what is not there is none.
        let gone = format!("{}/.wh.file", through.split_once('/').unwrap().0);
        let entries = [&links[..], &[(gone.as_str(), b'0', "")]].concat();
        applied(&archive(&entries)[..]).unwrap();
    }
    let round = "here/".repeat(200) + &"up/".repeat(40) + "file";
    let hard = [("itself", b'1', "itself")];
    let error = applied(&archive(&hard)[..]).unwrap_err();
    assert!(matches!(cause(&error), Error::NotFound(_)), "{error}");
    let error = applied(&archive(&[&links[..], &[("dir/hard", b'1', "dir")]].concat())[..]).unwrap_err();
    assert!(matches!(cause(&error), Error::LinkToDirectory(_)), "{error}");
    // 240 links are few enough, and lead to the root.
    let image = checked(&archive(&[&links[..], &[(round.as_str(), b'0', "inside")]].concat()));
    if let Some(mounted) = image.mount("ro") {
        assert_eq!(mounted.text("file"), "inside");
    }
}

#[test]
fn a_tree_that_links_make_deeper_than_any_path_is_sound() {
    let step = "d/".repeat(1000);
    let mut names: Vec<(String, u8, String)> = vec![(step.clone(), b'5', String::new())];
    for level in 1..10 {
        let below = if level == 1 { step.clone() } else { format!("link{}/{step}", level - 1) };
        names.push((format!("link{level}"), b'2', below));
        names.push((format!("link{level}/{step}"), b'5', String::new()));
    }
    let entries: Vec<(&str, u8, &str)> =
        names.iter().map(|(name, kind, about)| (name.as_str(), *kind, about.as_str())).collect();
    // A link of a header has a hundred bytes.
    let mut archive_bytes = Vec::new();
    for (name, kind, about) in entries {
        if about.len() > 100 {
            let long = archive(&[("././@LongLink", b'L', about)]);
            let mut long = long[..long.len() - 1024].to_vec();
            long[156] = b'K';
            let size = format!("{:011o}\0", about.len());
            claim(&mut long, 0, size.as_bytes().try_into().unwrap());
            archive_bytes.extend(long);
        }
        let entry = archive(&[(name, kind, about.get(..about.len().min(100)).unwrap())]);
        archive_bytes.extend(&entry[..entry.len() - 1024]);
    }
    archive_bytes.resize(archive_bytes.len() + 1024, 0);
    let image = checked(&archive_bytes);
    // And goes again.
    let mut filesystem = image.open();
    apply(&archive(&[(".wh.d", b'0', "")])[..], &mut filesystem).unwrap();
    filesystem.finish(TIME).unwrap();
    image.check();
}

#[test]
fn the_same_name_again_and_again_takes_the_room_of_one() {
    let content = "x".repeat(60_000);
    let entries: Vec<(&str, u8, &str)> = (0..3000)
        .map(|at| if at % 3 == 1 { ("name", b'5', "") } else { ("name", b'0', content.as_str()) })
        .collect();
    let image = checked(&archive(&entries));
    if let Some(mounted) = image.mount("ro") {
        assert_eq!(mounted.text("name").len(), content.len());
    }
}
