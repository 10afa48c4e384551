//! Tests of sparse files in all their forms.

use super::{
    super::*,
    build::{Archive, Item, list, record},
    error,
};
use crate::block::ByteRange;

const EXTENTS: [(u64, u64); 2] = [(1024, 512), (4096, 3)];
const SIZE: u64 = 8192;

fn content() -> Vec<u8> {
    [vec![1; 512], vec![2; 3]].concat()
}

fn records(records: &[(&str, &str)]) -> Vec<u8> {
    records.iter().flat_map(|(key, value)| record(key, value.as_bytes())).collect()
}

fn field(number: u64) -> [u8; 12] {
    format!("{number:011o}\0").into_bytes().try_into().expect("it fits")
}

fn old_gnu(extents: &[(u64, u64)], stored: &[u8]) -> Archive {
    let mut archive = Archive::default().header("sparse", b'S', stored.len() as u64);
    archive.patch(257, b"ustar  \0").patch(345, &[0; 24]).patch(483, &field(SIZE));
    let (near, far) = extents.split_at(extents.len().min(4));
    for (at, (offset, len)) in (386..).step_by(24).zip(near) {
        archive.patch(at, &field(*offset)).patch(at + 12, &field(*len));
    }
    archive.patch(482, &[u8::from(!far.is_empty())]);
    let blocks = far.chunks(21).enumerate().map(|(number, pairs)| {
        let mut block: Vec<u8> =
            pairs.iter().flat_map(|(offset, len)| [field(*offset), field(*len)].concat()).collect();
        block.resize(504, 0);
        block.push(u8::from((number + 1) * 21 < far.len()));
        block.resize(512, 0);
        block
    });
    let blocks: Vec<u8> = blocks.flatten().collect();
    archive.body(&blocks).body(stored)
}

fn version_1(map: &str, stored: &[u8]) -> Archive {
    let mut body = map.as_bytes().to_vec();
    body.resize(body.len().next_multiple_of(512), 0);
    body.extend(stored);
    let version = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")];
    let file = [("GNU.sparse.name", "sparse"), ("GNU.sparse.realsize", "8192")];
    Archive::default()
        .raw_pax(b'x', &records(&[version, file].concat()))
        .file("GNUSparseFile.0/sparse", &body)
}

fn version_0(map: &[(&str, &str)], stored: &[u8]) -> Archive {
    let file = [("GNU.sparse.size", "8192"), ("path", "sparse")];
    Archive::default().raw_pax(b'x', &records(&[&file[..], map].concat())).file("stand-in", stored)
}

const PAIRS: [(&str, &str); 5] = [
    ("GNU.sparse.numblocks", "2"),
    ("GNU.sparse.offset", "1024"),
    ("GNU.sparse.numbytes", "512"),
    ("GNU.sparse.offset", "4096"),
    ("GNU.sparse.numbytes", "3"),
];

#[test]
fn all_forms_mean_the_same_file() {
    let forms = [
        old_gnu(&EXTENTS, &content()),
        version_0(&PAIRS, &content()),
        version_0(&[("GNU.sparse.numblocks", "2"), ("GNU.sparse.map", "1024,512,4096,3")], &content()),
        version_1("2\n1024\n512\n4096\n3\n", &content()),
    ];
    for (number, form) in forms.into_iter().enumerate() {
        let items = list(&form.file("after", b"x").end()).expect("the archive is sound");
        let [Item { entry, data }, after] = &items[..] else { panic!("form {number}: {items:?}") };
        assert_eq!(
            (entry.name.as_slice(), entry.size, &entry.kind),
            (&b"sparse"[..], SIZE, &EntryKind::File)
        );
        let ranges = EXTENTS.map(|(offset, len)| ByteRange::between(offset, offset + len));
        assert_eq!(entry.extents.as_deref(), Some(&ranges[..]), "form {number}");
        assert_eq!(data[..], [(1024, vec![1; 512]), (4096, vec![2; 3])]);
        assert_eq!(after.data, [(0, b"x".to_vec())]);
    }
}

#[test]
fn a_file_may_be_one_hole() {
    for form in
        [old_gnu(&[], b""), old_gnu(&[(SIZE, 0)], b""), version_1("0\n", b""), version_1("1\n8192\n0\n", b"")]
    {
        let items = list(&form.end()).expect("the archive is sound");
        assert_eq!((items[0].entry.extents.as_deref(), &items[0].data[..]), (Some(&[][..]), &[][..]));
    }
}

#[test]
fn extents_that_touch_are_one() {
    let items = list(&version_1("4\n0\n1\n1\n0\n1\n2\n3\n5\n", &[9; 8]).end()).expect("the archive is sound");
    assert_eq!(items[0].entry.extents.as_deref(), Some(&[ByteRange::between(0, 8)][..]));
    assert_eq!(items[0].data, [(0, vec![9; 8])]);
}

#[test]
fn the_old_map_goes_on_in_blocks() {
    let extents: Vec<(u64, u64)> = (0..60).map(|number| (number * 100, 1)).collect();
    let items = list(&old_gnu(&extents, &[5; 60]).end()).expect("the archive is sound");
    let found: Vec<u64> = items[0].data.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(found, extents.iter().map(|(offset, _)| *offset).collect::<Vec<_>>());
}

#[test]
fn the_lines_of_a_map_may_take_many_blocks() {
    let pairs: String = (0..200).map(|number| format!("{}\n1\n", number * 40)).collect();
    let items = list(&version_1(&format!("200\n{pairs}"), &[5; 200]).end()).expect("the archive is sound");
    assert_eq!(items[0].data.len(), 200);
}

#[test]
fn a_map_that_does_not_fit_is_an_error() {
    let content_rule = |mapped, stored| ArchiveRule::SparseContent { mapped, stored };
    for (form, rule) in [
        (version_1("1\n0\n4\n", b"12345"), content_rule(4, 5)),
        (old_gnu(&[(0, 6)], b"12345"), content_rule(6, 5)),
        (version_1("1\n8190\n3\n", b"123"), ArchiveRule::SparseMap),
        (version_1("2\n5\n1\n5\n1\n", b"12"), ArchiveRule::SparseMap),
        (version_1("1\n-1\n1\n", b"1"), ArchiveRule::SparseMap),
        (version_1("1\n9223372036854775807\n9223372036854775807\n", b"1"), ArchiveRule::SparseMap),
        (version_1("x\n", b"1"), ArchiveRule::SparseMap),
        (version_1("-1\n", b"1"), ArchiveRule::SparseMap),
        (version_1("3\n0\n1\n", b""), ArchiveRule::SparseMap),
        (version_1("", b""), ArchiveRule::SparseMap),
        (version_0(&PAIRS[..4], &content()), ArchiveRule::SparseMap),
        (
            version_0(&[("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", "0,1,2")], b"1"),
            ArchiveRule::SparseMap,
        ),
        (version_0(&[("GNU.sparse.map", "0,1")], b"1"), ArchiveRule::SparseMap),
        (version_0(&[("GNU.sparse.numbytes", "1")], b"1"), ArchiveRule::SparseMap),
        (version_0(&[("GNU.sparse.major", "2")], b"1"), ArchiveRule::SparseVersion),
        (version_0(&[], b"1"), ArchiveRule::SparseVersion),
        (
            version_0(
                &[("GNU.sparse.realsize", "5"), ("GNU.sparse.map", "0,1"), ("GNU.sparse.numblocks", "1")],
                b"1",
            ),
            ArchiveRule::Contradiction(ArchiveField::Size),
        ),
        (
            version_0(&[("GNU.sparse.map", "0,1"), ("GNU.sparse.offset", "5")], b"1"),
            ArchiveRule::Contradiction(ArchiveField::Sparse),
        ),
    ] {
        assert_eq!(error(form).rule, rule);
    }
}

#[test]
fn only_regular_files_are_sparse() {
    let mut directory = version_0(&PAIRS, &content());
    directory.patch(156, b"5");
    assert_eq!(error(directory).rule, ArchiveRule::SparseKind);
    let mut star = old_gnu(&EXTENTS, &content());
    star.patch(257, b"ustar\x0000");
    assert_eq!(error(star).rule, ArchiveRule::SparseMagic);
    let both = Archive::default().raw_pax(b'x', &records(&PAIRS));
    let mut both = both.header("sparse", b'S', 0);
    both.patch(257, b"ustar  \0").patch(483, &field(0));
    assert_eq!(error(both).rule, ArchiveRule::Contradiction(ArchiveField::Sparse));
}
