//! Archives that GNU tar, bsdtar, Python and Go wrote mean what Go's `archive/tar` takes them for.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]

#[path = "support/fixtures.rs"]
#[expect(dead_code, reason = "the manifest is of other fixtures")]
mod fixtures;

use std::{
    fmt::Write,
    fs::{self, File},
    io::{BufReader, Read},
    path::Path,
};

use fixtures::hex;
use sha2::{Digest, Sha256};
use stratabd::format::tar::archive::{ArchiveReader, Entry, EntryKind, Event, Timestamp};

/// The content of an entry, holes filled in.
struct Content {
    digest: Sha256,
    end: u64,
}

impl Content {
    fn fill_to(&mut self, offset: u64) {
        self.digest.update(vec![0; usize::try_from(offset - self.end).unwrap()]);
        self.end = offset;
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.fill_to(offset);
        self.digest.update(bytes);
        self.end += bytes.len() as u64;
    }
}

fn time(time: Option<Timestamp>) -> String {
    time.map_or("-".to_owned(), |time| format!("{}.{:09}", time.seconds, time.nanoseconds))
}

fn line(entry: &Entry, mut content: Content) -> String {
    let (flag, about) = match &entry.kind {
        EntryKind::File => {
            content.fill_to(entry.size);
            ('0', format!(" {} {}", entry.size, hex(&content.digest.finalize())))
        }
        EntryKind::HardLink(target) => ('1', format!(" -> \"{}\"", target.escape_ascii())),
        EntryKind::Symlink(target) => ('2', format!(" -> \"{}\"", target.escape_ascii())),
        EntryKind::CharDevice(device) => ('3', format!(" {}:{}", device.major, device.minor)),
        EntryKind::BlockDevice(device) => ('4', format!(" {}:{}", device.major, device.minor)),
        EntryKind::Directory => ('5', String::new()),
        EntryKind::Fifo => ('6', String::new()),
        EntryKind::Other(flag) => panic!("no fixture has type {flag:#04x}"),
    };
    let (name, mode) = (entry.name.escape_ascii(), entry.mode);
    let times = [Some(entry.mtime), entry.atime, entry.ctime].map(time).join(" ");
    let mut line = format!("\"{name}\" {flag} {mode:o} {}:{} {times}{about}", entry.uid, entry.gid);
    for (name, value) in &entry.xattrs {
        write!(line, " \"{}\"=\"{}\"", name.escape_ascii(), value.escape_ascii()).unwrap();
    }
    line + "\n"
}

fn list(archive: &[u8], piece_bytes: usize) -> String {
    let mut reader = ArchiveReader::new();
    let mut listing = String::new();
    let mut at_hand = None;
    for mut piece in archive.chunks(piece_bytes) {
        while let Some(event) = reader.next(&mut piece).unwrap() {
            match event {
                Event::Entry(entry) => at_hand = Some((entry, Content { digest: Sha256::new(), end: 0 })),
                Event::Data { offset, bytes } => at_hand.as_mut().unwrap().1.put(offset, bytes),
                Event::EntryEnd => {
                    let (entry, content) = at_hand.take().unwrap();
                    listing += &line(&entry, content);
                }
                Event::ArchiveEnd => assert!(at_hand.is_none()),
            }
        }
    }
    reader.finish().unwrap();
    listing
}

#[test]
fn archives_of_other_programs_mean_what_go_takes_them_for() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/archive");
    let paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|kind| kind == "xz")).collect();
    assert!(paths.len() >= 15, "{} fixtures were found", paths.len());
    for path in paths {
        let mut archive = Vec::new();
        lzma_rs::xz_decompress(&mut BufReader::new(File::open(&path).unwrap()), &mut archive).unwrap();
        let mut expected = String::new();
        let listing = path.with_extension("").with_extension("txt");
        File::open(&listing).unwrap().read_to_string(&mut expected).unwrap();
        for piece_bytes in [archive.len(), 1000, 7] {
            assert_eq!(list(&archive, piece_bytes), expected, "{} by {piece_bytes}", path.display());
        }
    }
}
