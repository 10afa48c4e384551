//! How much memory an archive takes of a process, in which nothing else is tried.
//!
//! `STRATABD_ARCHIVE_ENTRIES` is how many entries it has, 10,000 by default.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]

#[expect(dead_code, reason = "one of several users of the support code")]
mod support;

use std::{
    fs,
    io::{self, Cursor, Read, Write},
};

use convertor::apply::apply;
use stratabd_ext4::Timestamp;
use support::{Image, archive};

const TIME: Timestamp = Timestamp { seconds: 1_700_000_001, nanoseconds: 0 };
/// What a process takes for whatever archive: metadata that is kept, buffers, the decoder, the test itself.
const RESIDENT_KIB: u64 = 128 << 10;
/// And for each entry in it: its name, where it leads, and both once more when its directory is written.
const RESIDENT_BYTES_PER_ENTRY: u64 = 160;

/// Directories, which are all held until the end.
struct Directories {
    left: u64,
    block: Cursor<Vec<u8>>,
}

impl Read for Directories {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        let read = self.block.read(dest)?;
        if read > 0 || self.left == 0 || dest.is_empty() {
            return Ok(read);
        }
        self.left -= 1;
        let mut block = archive(&[(&format!("flat/{:08}/", self.left), b'5', "")]);
        block.truncate(512);
        self.block = Cursor::new(block);
        self.block.read(dest)
    }
}

#[test]
fn memory_grows_little_with_the_number_of_entries() {
    let entries: u64 = std::env::var("STRATABD_ARCHIVE_ENTRIES").map_or(10_000, |text| text.parse().unwrap());
    let image = Image::of(64 << 30);
    let mut filesystem = image.format();
    let directories = Directories { left: entries, block: Cursor::new(Vec::new()) };
    let end = io::repeat(0).take(1024);
    assert_eq!(apply(directories.chain(end), &mut filesystem).unwrap().entries, entries);
    filesystem.finish(TIME).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    let _ = writeln!(io::stderr(), "{entries} directories: {} MiB at most", peak_kib >> 10);
    assert!(peak_kib < RESIDENT_KIB + ((entries * RESIDENT_BYTES_PER_ENTRY) >> 10), "{peak_kib} KiB");
    image.check();
}
