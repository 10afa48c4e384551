//! Layers become file systems that are what GNU tar extracts, and what containerd makes of whiteouts.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]

mod support;

use std::io::Write;

use convertor::{
    apply::{Applied, ApplyError, apply},
    layer::{LayerError, LayerReader},
};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};
use stratabd::format::{
    oci::Digest,
    tar::archive::{ArchiveError, ArchiveRule},
};
use stratabd_ext4::{Filesystem, MemoryDevice, Timestamp};
use support::{Image, OPTIONS, archive, fixture};

const TIME: Timestamp = Timestamp { seconds: 1_700_000_001, nanoseconds: 0 };
const SIZE_BYTES: u64 = 64 << 20;

fn gzip(archive: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(archive).unwrap();
    encoder.finish().unwrap()
}

fn in_memory(archive: &[u8]) -> Result<Applied, ApplyError> {
    let mut filesystem = Filesystem::format(MemoryDevice::new(SIZE_BYTES), &OPTIONS).unwrap();
    apply(archive, &mut filesystem)
}

#[test]
fn archives_of_other_programs_become_what_gnu_tar_extracts() {
    for name in [
        "bsdtar-pax",
        "gnu-oldgnu-sparse",
        "gnu-pax-sparse-0.0",
        "gnu-pax-sparse-0.1",
        "gnu-pax-sparse-1.0",
        "gnu-v7",
        "python-gnu",
    ] {
        let archive = fixture(name);
        let image = Image::new();
        let mut filesystem = image.format();
        let applied = apply(&archive[..], &mut filesystem).unwrap();
        assert!(applied.entries > 1 && applied.dropped_xattrs == 0, "{name}: {applied:?}");
        filesystem.finish(TIME).unwrap();
        image.check();
        let other = Image::made_by_mke2fs();
        let (Some(found), Some(wanted)) = (image.mount("ro"), other.mount("rw")) else { return };
        wanted.extract(&archive);
        let (found, wanted) = (found.tree(), wanted.tree());
        let names: Vec<_> = [found.keys().collect::<Vec<_>>(), wanted.keys().collect()].into();
        assert_eq!(names[0], names[1], "{name}");
        for (path, line) in &found {
            assert_eq!(line, &wanted[path], "{name}: {path}");
        }
    }
}

#[test]
fn layers_lie_over_one_another_as_containerd_unpacks_them() {
    let lower = archive(&[
        ("./", b'5', ""),
        ("usr/lib/", b'5', ""),
        ("lib", b'2', "usr/lib"),
        ("abs", b'2', "/usr"),
        ("lib/one", b'0', "one"),
        ("gone", b'0', "gone"),
        ("dir/", b'5', ""),
        ("dir/below", b'0', "below"),
        ("dir/kept", b'0', "kept"),
        ("opaque/", b'5', ""),
        ("opaque/below", b'0', "below"),
        ("file", b'0', "file"),
        ("linked", b'1', "dir/../file"),
        ("tree/a/b", b'0', "b"),
    ]);
    let upper = archive(&[
        ("lib/two", b'0', "two"),
        ("abs/../lib/three", b'0', "three"),
        (".wh.gone", b'0', ""),
        ("dir/.wh.below", b'1', "dir/kept"),
        ("dir/kept/", b'5', ""),
        ("opaque/new", b'0', "new"),
        ("opaque/.wh..wh..opq", b'0', ""),
        ("file/", b'5', ""),
        ("file/inside", b'1', "linked"),
        ("../escaped", b'0', "inside"),
        ("new", b'0', "new"),
        (".wh.new", b'0', ""),
        ("tree", b'0', "leaf"),
        (".wh..wh.plnk/1.2", b'0', "aufs"),
        ("lib/to-two", b'1', "/lib/two"),
    ]);
    let image = Image::new();
    let mut filesystem = image.format();
    assert_eq!(apply(&lower[..], &mut filesystem).unwrap().entries, 14);
    filesystem.finish(TIME).unwrap();
    image.check();
    let mut filesystem = image.open();
    assert_eq!(apply(&upper[..], &mut filesystem).unwrap().entries, 15);
    filesystem.finish(TIME).unwrap();
    image.check();
    let Some(mounted) = image.mount("ro") else { return };
    let tree = mounted.tree();
    let names: Vec<&str> = tree.keys().map(String::as_str).collect();
    let wanted = "abs dir dir/kept escaped file file/inside lib linked new opaque opaque/new tree usr usr/lib \
                  usr/lib/one usr/lib/three usr/lib/to-two usr/lib/two";
    assert_eq!(names.join(" "), wanted);
    assert!(tree["linked"].ends_with(" = file/inside linked"), "{}", tree["linked"]);
    assert!(tree["usr/lib/two"].ends_with(" = usr/lib/to-two usr/lib/two"), "{}", tree["usr/lib/two"]);
    assert_eq!((mounted.text("tree"), mounted.text("file/inside")), ("leaf".to_owned(), "file".to_owned()));
}

#[test]
fn a_compressed_layer_is_put_in_place_and_named_in_one_pass() {
    let archive = [fixture("gnu-pax-sparse-1.0"), b"what follows the end counts".to_vec()].concat();
    let blob = gzip(&archive);
    let mut layer = LayerReader::new(&blob[..]).unwrap();
    let mut filesystem = Filesystem::format(MemoryDevice::new(SIZE_BYTES), &OPTIONS).unwrap();
    apply(&mut layer, &mut filesystem).unwrap();
    let one = filesystem.finish(TIME).unwrap();
    let summary = layer.finish().unwrap();
    assert_eq!(summary.diff_id, Digest::from_hash(Sha256::digest(&archive).into()));
    assert_eq!(summary.blob_digest, Digest::from_hash(Sha256::digest(&blob).into()));

    let mut filesystem = Filesystem::format(MemoryDevice::new(SIZE_BYTES), &OPTIONS).unwrap();
    apply(&archive[..], &mut filesystem).unwrap();
    assert!(filesystem.finish(TIME).unwrap() == one, "the same layer is the same bytes");
}

#[test]
fn attributes_that_linux_refuses_are_left_out_and_counted() {
    let record = |key: &str| {
        let rest = format!(" SCHILY.xattr.{key}=value\n");
        format!("{}{rest}", rest.len() + 2)
    };
    let records = ["user.of-a-link", "security.kept", "other.unknown"].map(record).concat();
    let pax = archive(&[("pax", b'0', &records)]);
    let mut archive = [&pax[..pax.len() - 1024], &archive(&[("link", b'2', "target")])].concat();
    archive[156] = b'x';
    archive[148..156].fill(b' ');
    let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
    archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(in_memory(&archive).unwrap(), Applied { entries: 1, dropped_xattrs: 2 });
}

#[test]
fn what_cannot_be_made_is_named() {
    let first = ("first", b'0', "x");
    let at = |entry| in_memory(&archive(&[first, entry])).unwrap_err();
    let error = at(("odd", b'7', ""));
    assert!(matches!(&error, ApplyError::Kind { offset: 1024, flag: b'7', .. }), "{error}");
    let error = at(("dir/.wh.", b'0', ""));
    assert!(matches!(&error, ApplyError::Whiteout { offset: 1024, name } if name == b"dir/.wh."), "{error}");
    for entry in [("link", b'1', "nowhere"), ("first/below", b'0', "x"), ("link", b'2', ""), ("..", b'0', "")]
    {
        let error = at(entry);
        let ApplyError::Entry { offset: 1024, name, .. } = &error else { panic!("{error}") };
        assert_eq!(name, entry.0.as_bytes());
    }
    let deep = "d/".repeat(2000);
    assert_eq!(in_memory(&archive(&[(&deep, b'5', "")])).unwrap().entries, 1);
    let deep = "d/".repeat(10_000);
    let error = in_memory(&archive(&[(&deep, b'5', "")])).unwrap_err();
    assert!(matches!(&error, ApplyError::PathLength { len: 19_999, .. }), "{error}");
    let cut = archive(&[first]);
    let error = in_memory(&cut[..512]).unwrap_err();
    let rule = ArchiveRule::Truncated { at: 512 };
    assert!(matches!(error, ApplyError::Archive(found) if found == ArchiveError { offset: 0, rule }));

    let blob = gzip(&cut);
    let mut filesystem = Filesystem::format(MemoryDevice::new(SIZE_BYTES), &OPTIONS).unwrap();
    let layer = LayerReader::new(&blob[..blob.len() - 1]).unwrap();
    let error = apply(layer, &mut filesystem).unwrap_err();
    let ApplyError::Read(cause) = &error else { panic!("{error}") };
    assert!(cause.get_ref().is_some_and(|inner| inner.is::<LayerError>()), "{cause}");
}
