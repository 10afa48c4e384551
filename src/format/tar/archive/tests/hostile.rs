//! Tests of what an archive may cost that is made to do harm.

use super::{
    super::*,
    build::{Archive, Gnu, list, record},
    error,
};

/// The reader after `archive`, of which nothing may be left, and what it has found.
fn feed(archive: &[u8]) -> (ArchiveReader, Result<u64, ArchiveError>) {
    let mut reader = ArchiveReader::new();
    let mut input = archive;
    let mut count = 0;
    loop {
        match reader.next(&mut input) {
            Ok(Some(_)) => count += 1,
            Ok(None) => return (reader, Ok(count)),
            Err(error) => return (reader, Err(error)),
        }
    }
}

fn sample() -> Vec<u8> {
    Archive::default()
        .long(Gnu::Name, &"n".repeat(600))
        .pax(&[("mtime", b"1.5")])
        .file("one", b"content")
        .raw_pax(b'g', &record("comment", b"x"))
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")])
        .file("two", &[b"1\n4\n5\n".as_slice(), &[0; 506], b"12345"].concat())
        .header("dir/", b'5', 0)
        .end()
}

#[test]
fn a_cut_at_any_byte_is_an_error_or_an_end_after_an_entry() {
    let whole = sample();
    let items = list(&whole).expect("the sample is sound");
    for cut in 0..whole.len() {
        match list(&whole[..cut]) {
            Ok(found) => assert_eq!(found, items[..found.len()], "cut at {cut}"),
            Err(error) => assert_eq!(error.rule, ArchiveRule::Truncated { at: cut as u64 }),
        }
    }
}

#[test]
fn an_error_stays() {
    let mut reader = ArchiveReader::new();
    let wrong = [b'x'; 512];
    let error = ArchiveError { offset: 0, rule: ArchiveRule::Checksum };
    assert_eq!(reader.next(&mut &wrong[..]), Err(error));
    assert_eq!(reader.next(&mut &[][..]), Err(error));
    assert_eq!(reader.finish(), Err(error));
}

#[test]
fn a_size_that_is_only_claimed_costs_nothing() {
    for size in ["8589934592", "9223372036854775807"] {
        let archive = Archive::default().pax(&[("size", size.as_bytes())]).file("huge", b"x").end();
        let (reader, found) = feed(&archive);
        assert_eq!(found, Ok(2), "an entry and data");
        let rule = ArchiveRule::Truncated { at: archive.len() as u64 };
        assert_eq!(reader.finish(), Err(ArchiveError { offset: 1024, rule }));
    }
    for kind in *b"xgLK" {
        let archive = Archive::default().header("huge", kind, 1 << 33);
        assert_eq!(error(archive).rule, ArchiveRule::ExtensionLength { len: 1 << 33 });
        let archive = Archive::default().header("huge", kind, (1 << 20) + 1);
        assert_eq!(error(archive).rule, ArchiveRule::ExtensionLength { len: (1 << 20) + 1 });
    }
}

#[test]
fn maps_end_at_one_mebibyte() {
    let mut archive = Archive::default().header("old", b'S', 0);
    archive.patch(257, b"ustar  \0").patch(345, &[0; 24]).patch(482, &[1]).patch(483, b"00000000000\0");
    let mut going_on = [0; 512];
    going_on[504] = 1;
    let archive = (0..3000).fold(archive, |archive, _| archive.body(&going_on));
    assert_eq!(error(archive).rule, ArchiveRule::SparseLength);

    let sparse: [(&str, &[u8]); 2] = [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")];
    for map in [&b"1000000000\n"[..], b""] {
        let mut body = map.to_vec();
        body.resize(2 << 20, if map.is_empty() { b'1' } else { b'\n' });
        let archive = Archive::default().pax(&sparse).file("lines", &body);
        assert_eq!(error(archive).rule, ArchiveRule::SparseLength);
    }
}

#[test]
fn a_header_of_the_largest_size_is_read() {
    let count = (1 << 20) / 64;
    let records: Vec<u8> =
        (0..count).flat_map(|number| record(&format!("SCHILY.xattr.{number:08}"), &[1; 38])).collect();
    assert_eq!(records.len(), 1 << 20);
    let archive = Archive::default().raw_pax(b'x', &records).file("name", b"").end();
    assert_eq!(list(&archive).expect("the archive is sound")[0].entry.xattrs.len(), count);
}

#[test]
fn many_entries_take_no_memory() {
    let one = Archive::default().header("name", b'5', 0).end();
    let mut reader = ArchiveReader::new();
    for number in 0..20_000 {
        let mut input = &one[..512];
        assert!(
            matches!(reader.next(&mut input), Ok(Some(Event::Entry(entry))) if entry.offset == number * 512)
        );
        assert_eq!(reader.next(&mut input), Ok(Some(Event::EntryEnd)));
        assert_eq!(reader.next(&mut input), Ok(None));
    }
    assert_eq!(reader.finish(), Ok(()));
}
