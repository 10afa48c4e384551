//! Makes archives by hand, and reads them.

use proptest::prelude::*;

use super::super::*;

/// The blocks of an archive, without its end.
#[derive(Debug, Clone, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    last_header: usize,
}

/// What GNU tar has a body for.
#[derive(Clone, Copy)]
pub(super) enum Gnu {
    Name = b'L' as isize,
    Link = b'K' as isize,
}

impl Archive {
    /// A header of ustar.
    pub(super) fn header(mut self, name: &str, kind: u8, size: u64) -> Self {
        self.last_header = self.bytes.len();
        self.bytes.extend([0; 512]);
        self.patch(0, name.as_bytes())
            .patch(100, b"0000644\0")
            .patch(108, b"0000000\0")
            .patch(116, b"0000000\0");
        self.patch(124, format!("{size:011o}\0").as_bytes()).patch(136, b"00000000000\0");
        self.patch(156, &[kind]).patch(257, b"ustar\x0000");
        self
    }

    /// Puts bytes into the last header and makes its checksum right.
    pub(super) fn patch(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        let block = &mut self.bytes[self.last_header..][..512];
        block[at..at + bytes.len()].copy_from_slice(bytes);
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }

    /// What follows a header, padded.
    pub(super) fn body(mut self, body: &[u8]) -> Self {
        self.bytes.extend(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, name: &str, content: &[u8]) -> Self {
        self.header(name, b'0', content.len() as u64).body(content)
    }

    pub(super) fn long(self, kind: Gnu, text: &str) -> Self {
        self.header("././@LongLink", kind as u8, text.len() as u64 + 1).body(format!("{text}\0").as_bytes())
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.raw_pax(b'x', &body)
    }

    pub(super) fn raw_pax(self, kind: u8, body: &[u8]) -> Self {
        self.header("pax", kind, body.len() as u64).body(body)
    }

    pub(super) fn end(self) -> Vec<u8> {
        [self.bytes, vec![0; 1024]].concat()
    }
}

pub(super) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut len = rest.len();
    while len.to_string().len() + rest.len() != len {
        len = len.to_string().len() + rest.len();
    }
    [len.to_string().into_bytes(), rest].concat()
}

/// An entry, and its data with neighbours joined.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) entry: Entry,
    pub(super) data: Vec<(u64, Vec<u8>)>,
}

pub(super) fn list(archive: &[u8]) -> Result<Vec<Item>, ArchiveError> {
    list_in_pieces(archive, &[usize::MAX])
}

/// Lists an archive that comes in pieces of these lengths, again and again.
pub(super) fn list_in_pieces(archive: &[u8], pieces: &[usize]) -> Result<Vec<Item>, ArchiveError> {
    let mut reader = ArchiveReader::new();
    let mut items: Vec<Item> = Vec::new();
    let mut is_open = false;
    let mut rest = archive;
    for len in pieces.iter().cycle() {
        let (mut piece, after) = rest.split_at(rest.len().min(*len));
        rest = after;
        while let Some(event) = reader.next(&mut piece)? {
            let was_open = is_open;
            is_open = matches!(event, Event::Entry(_) | Event::Data { .. });
            match event {
                Event::Entry(entry) => items.push(Item { entry: *entry, data: Vec::new() }),
                Event::Data { offset, bytes } => items.last_mut().expect("an entry began").put(offset, bytes),
                Event::EntryEnd => assert!(was_open, "an entry began"),
                Event::ArchiveEnd => assert!(!was_open, "the last entry has ended"),
            }
        }
        assert!(piece.is_empty(), "nothing is left over");
        if rest.is_empty() {
            break;
        }
    }
    reader.finish().map(|()| items)
}

impl Item {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        assert!(!bytes.is_empty() && offset + bytes.len() as u64 <= self.entry.size);
        match self.data.last_mut() {
            Some((start, data)) if *start + data.len() as u64 == offset => data.extend(bytes),
            _ => self.data.push((offset, bytes.to_vec())),
        }
    }
}

/// The one entry of a sound archive.
pub(super) fn only(archive: Archive) -> Entry {
    let mut items = list(&archive.end()).expect("the archive is sound");
    let item = items.pop().expect("there is an entry");
    assert!(items.is_empty());
    item.entry
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z/.]{0,12}", "[0-9]{1,4}", Just("l".repeat(700)), "-?[0-9]{1,3}\\.[0-9]{0,10}"]
}

fn any_key() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "path",
        "linkpath",
        "size",
        "mtime",
        "uid",
        "SCHILY.xattr.a",
        "LIBARCHIVE.xattr.b",
        "GNU.sparse.name",
        "GNU.sparse.map",
        "GNU.sparse.numblocks",
        "GNU.sparse.realsize",
        "comment",
    ])
}

/// Mostly sound archives with some bytes changed, sometimes in a header whose checksum is right again.
pub(super) fn any_archive() -> impl Strategy<Value = Vec<u8>> {
    let part = (
        0..6_u8,
        any_text(),
        any_key(),
        any_text(),
        0_usize..1400,
        proptest::option::of((0_usize..508, any::<[u8; 4]>())),
    );
    let parts = proptest::collection::vec(part, 0..6);
    (parts, proptest::option::of((any::<usize>(), any::<u8>()))).prop_map(|(parts, flip)| {
        let archive =
            parts.into_iter().fold(Archive::default(), |archive, (kind, text, key, value, len, patch)| {
                let name = &text[..text.len().min(100)];
                let mut archive = match kind {
                    0 => archive.long(Gnu::Name, &text),
                    1 => archive.long(Gnu::Link, &text),
                    2 => archive.pax(&[(key, value.as_bytes())]),
                    3 => archive.header(name, b'5', len as u64),
                    4 => archive.raw_pax(b'g', &record(key, value.as_bytes())),
                    _ => archive.file(name, &vec![7; len]),
                };
                if let Some((at, bytes)) = patch.filter(|(at, _)| at % 3 == 0) {
                    archive.patch(at, &bytes);
                }
                archive
            });
        let mut bytes = archive.end();
        if let Some((at, value)) = flip {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes
    })
}
