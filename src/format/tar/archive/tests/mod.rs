//! Tests of the reader of archives. What Go takes the same bytes for was asked of Go: `tests/archive_fixtures.rs` has more.
#![expect(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]

mod build;
mod hostile;
mod sparse;

use build::{Archive, Gnu, Item, list, list_in_pieces, only};
use proptest::prelude::*;

use super::*;

fn error(archive: Archive) -> ArchiveError {
    list(&archive.end()).expect_err("the archive is wrong")
}

#[test]
fn each_dialect_has_its_names() {
    let long = "n".repeat(150);
    let mut v7 = Archive::default().file("name", b"");
    v7.patch(257, &[0; 8]).patch(345, b"no prefix");
    assert_eq!(only(v7).name, b"name");
    let mut ustar = Archive::default().file("name", b"");
    ustar.patch(345, b"dir/of/it");
    assert_eq!(only(ustar).name, b"dir/of/it/name");
    let mut star = Archive::default().file("name", b"");
    star.patch(345, &[b'p'; 131]).patch(476, b"00000000005\0").patch(508, b"tar\0");
    let star = only(star);
    assert_eq!(star.name, [&[b'p'; 131][..], b"/name"].concat());
    assert_eq!(star.atime, Some(Timestamp { seconds: 5, nanoseconds: 0 }));
    let gnu = Archive::default().long(Gnu::Name, &long).file("name", b"");
    assert_eq!(only(gnu).name, long.as_bytes());
    let pax = Archive::default().pax(&[("path", long.as_bytes())]).file("name", b"");
    assert_eq!(only(pax).name, long.as_bytes());
}

#[test]
fn a_prefix_that_old_versions_of_go_wrote_into_a_header_of_gnu_is_read() {
    let mut archive = Archive::default().file("name", b"");
    archive.patch(257, b"ustar  \0").patch(345, b"a/prefix/that/is/no/time");
    assert_eq!(only(archive).name, b"a/prefix/that/is/no/time/name");
    let mut archive = Archive::default().file("name", b"");
    archive
        .patch(257, b"ustar  \0")
        .patch(345, b"00000000005\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe");
    let entry = only(archive);
    assert_eq!(entry.name, b"name");
    assert_eq!(entry.atime.map(|time| time.seconds), Some(5));
    assert_eq!(entry.ctime.map(|time| time.seconds), Some(-2));
}

#[test]
fn numbers_are_octal_or_binary() {
    let mut archive = Archive::default().file("name", b"");
    archive.patch(100, b"  4755 \0").patch(108, b"\x80\0\0\0\0\x1e\x84\x80").patch(116, b"\0\0\0\0\0\0\0\0");
    archive.patch(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfb");
    let entry = only(archive);
    assert_eq!((entry.mode, entry.uid, entry.gid), (0o4755, 2_000_000, 0));
    assert_eq!(entry.mtime, Timestamp { seconds: -5, nanoseconds: 0 });
    for (at, bytes, rule) in [
        (100, &b"12x4\0\0\0\0"[..], ArchiveRule::NotNumber(ArchiveField::Mode)),
        (108, b"-1\0\0\0\0\0\0", ArchiveRule::NotNumber(ArchiveField::Uid)),
        (116, b"0000008\0", ArchiveRule::NotNumber(ArchiveField::Gid)),
        (
            124,
            b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            ArchiveRule::NotNumber(ArchiveField::Size),
        ),
        (
            124,
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            ArchiveRule::OutOfRange(ArchiveField::Size),
        ),
        (108, b"\xff\xff\xff\xff\xff\xff\xff\xff", ArchiveRule::OutOfRange(ArchiveField::Uid)),
        (116, b"\x80\0\0\0\xff\xff\xff\xff", ArchiveRule::OutOfRange(ArchiveField::Gid)),
    ] {
        let mut archive = Archive::default().file("before", b"x").file("name", b"");
        archive.patch(at, bytes);
        assert_eq!(error(archive), ArchiveError { offset: 1024, rule });
    }
}

#[test]
fn pax_records_go_before_the_header() {
    let archive = Archive::default()
        .pax(&[
            ("uid", b"2000000"),
            ("gid", b"+3"),
            ("mtime", b"-1.25"),
            ("atime", b"7.1234567899"),
            ("ctime", b"-0.5"),
            ("size", b"5"),
            ("linkpath", b"of no use"),
            ("comment", b"\xff\0\n"),
        ])
        .header("name", b'0', 999)
        .body(b"hello");
    let entry = only(archive);
    assert_eq!((entry.uid, entry.gid, entry.size), (2_000_000, 3, 5));
    assert_eq!(entry.mtime, Timestamp { seconds: -2, nanoseconds: 750_000_000 });
    assert_eq!(entry.atime, Some(Timestamp { seconds: 7, nanoseconds: 123_456_789 }));
    assert_eq!(entry.ctime, Some(Timestamp { seconds: -1, nanoseconds: 500_000_000 }));
}

#[test]
fn records_go_by_their_length_and_the_last_of_a_key_counts() {
    let archive = Archive::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", b"\x01\0\n\x02=12 x=\n"),
            ("SCHILY.xattr.user.empty", b""),
            ("LIBARCHIVE.xattr.user.empty", b"AAAA"),
            ("LIBARCHIVE.xattr.user.50%25", b"/wA"),
            ("mtime", b"nonsense"),
            ("mtime", b"8"),
            ("path", b""),
            ("hdrcharset", b"BINARY"),
        ])
        .file("name", b"");
    let entry = only(archive);
    assert_eq!(entry.name, b"name");
    assert_eq!(entry.mtime.seconds, 8);
    let xattrs = [
        (&b"security.capability"[..], &b"\x01\0\n\x02=12 x=\n"[..]),
        (b"user.50%", b"\xff\0"),
        (b"user.empty", b""),
    ];
    assert_eq!(entry.xattrs, xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).into());
}

#[test]
fn a_malformed_record_names_its_place() {
    for body in [
        &b"3 a\n"[..],
        b"9 a=b\n",
        b"6 a=b ",
        b"6 =ab\n",
        b"x a=b\n",
        b"6 abc\n",
        b"6a=bc\n",
        b"9 path=\0\n",
        b"0 a=b\n",
    ] {
        let archive = Archive::default().raw_pax(b'x', &[b"8 uid=7\n", body].concat()).file("name", b"");
        let rule = ArchiveRule::PaxRecord { at: 8 };
        assert_eq!(error(archive), ArchiveError { offset: 0, rule }, "{}", body.escape_ascii());
    }
}

#[test]
fn what_has_no_content_has_none_whatever_its_size() {
    for kind in *b"123456" {
        let archive = Archive::default().header("bare", kind, 512).file("after", b"x");
        let items = list(&archive.end()).expect("the archive is sound");
        let found = |item: &Item| (item.entry.name.clone(), item.entry.size);
        let wanted = [(b"bare".to_vec(), 0), (b"after".to_vec(), 1)];
        assert_eq!(items.iter().map(found).collect::<Vec<_>>(), wanted);
    }
    let mut other = Archive::default().file("other", b"content");
    other.patch(156, b"7");
    assert_eq!(only(other).kind, EntryKind::Other(b'7'));
}

#[test]
fn kinds_have_what_belongs_to_them() {
    let long = "t".repeat(200);
    let link = |kind| only(Archive::default().long(Gnu::Link, &long).header("l", kind, 0)).kind;
    assert_eq!(link(b'1'), EntryKind::HardLink(long.clone().into_bytes()));
    assert_eq!(link(b'2'), EntryKind::Symlink(long.clone().into_bytes()));
    let mut device = Archive::default().header("d", b'3', 0);
    device.patch(329, b"0000403\0").patch(337, b"\x80\0\0\0\0\x01\x11\x70");
    assert_eq!(only(device).kind, EntryKind::CharDevice(DeviceNumber { major: 259, minor: 70_000 }));
    let mut device = Archive::default().header("d", b'4', 0);
    device.patch(329, b"\xff\xff\xff\xff\xff\xff\xff\xff");
    assert_eq!(error(device).rule, ArchiveRule::OutOfRange(ArchiveField::Major));
    assert_eq!(only(Archive::default().header("old/", 0, 0)).kind, EntryKind::Directory);
    assert_eq!(only(Archive::default().header("old", 0, 0)).kind, EntryKind::File);
    assert_eq!(error(Archive::default().file("new/", b"")).rule, ArchiveRule::FileNamedDirectory);
}

#[test]
fn global_headers_are_ignored_unless_they_change_content_or_names() {
    let global =
        |key: &str| Archive::default().raw_pax(b'g', &build::record(key, b"5")).file("name", b"hello");
    for key in ["comment", "uid", "mtime", "SCHILY.xattr.user.x", "hdrcharset"] {
        let entry = only(global(key));
        assert_eq!((entry.uid, entry.mtime.seconds, entry.xattrs.len()), (0, 0, 0));
    }
    for (key, field) in [
        ("path", ArchiveField::Name),
        ("linkpath", ArchiveField::Link),
        ("size", ArchiveField::Size),
        ("GNU.sparse.map", ArchiveField::Sparse),
    ] {
        assert_eq!(error(global(key)), ArchiveError { offset: 0, rule: ArchiveRule::Global(field) });
    }
}

#[test]
fn what_readers_understand_differently_is_an_error() {
    let pax = |records: &[(&str, &[u8])]| Archive::default().pax(records);
    let contradiction = ArchiveRule::Contradiction;
    for (archive, offset, rule) in [
        (pax(&[("path", b"one"), ("path", b"two")]), 0, contradiction(ArchiveField::Name)),
        (pax(&[("size", b"1"), ("size", b"01")]), 0, contradiction(ArchiveField::Size)),
        (pax(&[("path", b"one")]).long(Gnu::Name, "two"), 2048, contradiction(ArchiveField::Name)),
        (
            Archive::default().long(Gnu::Link, "two").pax(&[("linkpath", b"one")]),
            2048,
            contradiction(ArchiveField::Link),
        ),
        (pax(&[("mtime", b"1")]).pax(&[("uid", b"1")]), 1024, ArchiveRule::SecondPax),
        (pax(&[("size", b"5")]).long(Gnu::Name, "two"), 1024, ArchiveRule::SizeBeforeExtension),
        (pax(&[("mtime", b"1")]).raw_pax(b'g', b"6 a=b\n"), 1024, ArchiveRule::Detached),
        (Archive::default().long(Gnu::Name, "two").raw_pax(b'g', b"6 a=b\n"), 1024, ArchiveRule::Detached),
        (Archive::default().raw_pax(b'X', b"6 a=b\n"), 0, ArchiveRule::Solaris),
        (pax(&[("SCHILY.xattr.", b"1")]), 1024, ArchiveRule::Xattr),
        (pax(&[("LIBARCHIVE.xattr.a", b"%")]), 1024, ArchiveRule::Xattr),
        (pax(&[("LIBARCHIVE.xattr.%4", b"AA")]), 1024, ArchiveRule::Xattr),
    ] {
        assert_eq!(error(archive.file("name", b"hello")), ArchiveError { offset, rule });
    }
}

#[test]
fn extensions_that_agree_are_none() {
    let archive = Archive::default().long(Gnu::Name, "two").pax(&[("path", b"two"), ("path", b"two")]);
    assert_eq!(only(archive.file("name", b"")).name, b"two");
    let archive = Archive::default().long(Gnu::Name, "one").long(Gnu::Name, "two");
    assert_eq!(only(archive.file("name", b"")).name, b"two");
}

#[test]
fn an_archive_ends_as_go_ends_it() {
    let archive = Archive::default().file("name", b"hello");
    let whole = archive.clone().end();
    let ends = |bytes: &[u8]| list(bytes).map(|items| items.len());
    assert_eq!(ends(&[]), Ok(0));
    assert_eq!(ends(&whole), Ok(1));
    assert_eq!(ends(&whole[..517]), Ok(1), "without padding");
    assert_eq!(ends(&whole[..1024]), Ok(1), "without an end");
    assert_eq!(ends(&whole[..1536]), Ok(1), "with one block of zeroes");
    assert_eq!(ends(&[&whole, &b"whatever follows"[..]].concat()), Ok(1));
    let rule = ArchiveRule::LoneZeroBlock;
    assert_eq!(ends(&[&whole[..1536], &whole].concat()), Err(ArchiveError { offset: 1536, rule }));
    let cut = |at: usize, offset| {
        let rule = ArchiveRule::Truncated { at: at as u64 };
        assert_eq!(ends(&whole[..at]), Err(ArchiveError { offset, rule }));
    };
    cut(511, 0);
    cut(516, 0);
    cut(1025, 1024);
    cut(1537, 1536);
}

proptest! {
    #[test]
    fn pieces_do_not_matter(archive in build::any_archive(), pieces in proptest::collection::vec(1_usize..700, 1..20)) {
        let whole = list(&archive);
        prop_assert_eq!(&list_in_pieces(&archive, &[1]), &whole);
        prop_assert_eq!(&list_in_pieces(&archive, &pieces), &whole);
    }
}
