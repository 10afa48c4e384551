//! The largest and the most of everything, and what is said when it is too much.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]

#[expect(dead_code, reason = "one of several users of the support code")]
mod support;

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt};

use stratabd_ext4::{
    Attributes, Device, Error, FileDevice, Filesystem, FormatOptions, MemoryDevice, Node, Timestamp,
};
use support::{Image, OPTIONS, mounted::Mounted};

const LARGE_BYTES: u64 = 4 << 40;

const PLAIN: Attributes<'static> =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp { seconds: 5, nanoseconds: 0 }, xattrs: &[] };

fn file<D: Device>(filesystem: &mut Filesystem<D>, path: &[u8], content: &[u8]) -> Result<(), Error> {
    let mut file = filesystem.file(path, &PLAIN)?;
    file.write(content)?;
    file.close()
}

fn finish<D: Device>(filesystem: Filesystem<D>) -> D {
    filesystem.finish(OPTIONS.time).unwrap()
}

fn in_memory(size_bytes: u64) -> Filesystem<MemoryDevice> {
    Filesystem::format(MemoryDevice::new(size_bytes), &OPTIONS).unwrap()
}

/// Two levels of index: over 508 leaves.
#[test]
fn sixty_thousand_names_in_a_directory_are_found_by_their_hash() {
    let image = Image::new(2 << 30);
    let mut filesystem = image.format();
    let name = |number: u32| format!("some rather long name, so that blocks are many {number}");
    for number in 0..60_000 {
        filesystem.node(format!("many/{}", name(number)).as_bytes(), Node::Fifo, &PLAIN).unwrap();
    }
    finish(filesystem);
    image.check();
    // The second layer has fewer, which fit where the first ones were.
    let mut filesystem = image.open();
    for number in 0..1000 {
        filesystem.whiteout(format!("many/{}", name(number * 7)).as_bytes()).unwrap();
    }
    finish(filesystem);
    image.check();
    if let Some(mounted) = Mounted::new(&image) {
        let names: HashSet<_> =
            fs::read_dir(mounted.path("many")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 59_000);
        // By the index, which only a lookup of a name uses.
        assert!(
            (7000..60_000)
                .step_by(100)
                .all(|at| fs::symlink_metadata(mounted.path("many").join(name(at))).is_ok())
        );
        assert!(fs::symlink_metadata(mounted.path("many").join(name(700))).is_err());
    }
}

#[test]
fn a_directory_of_more_directories_than_links_says_that_it_does_not_count() {
    let image = Image::new(2 << 30);
    let mut filesystem = image.format();
    for number in 0..65_500 {
        filesystem.directory(format!("many/{number}").as_bytes(), &PLAIN).unwrap();
    }
    finish(filesystem);
    image.check();
    if let Some(mounted) = Mounted::new(&image) {
        assert_eq!(fs::metadata(mounted.path("many")).unwrap().nlink(), 1);
    }
}

#[test]
fn a_tree_may_be_deep() {
    let image = Image::new(1 << 30);
    let mut filesystem = image.format();
    let path = b"d/".repeat(10_000);
    filesystem.directory(&path, &PLAIN).unwrap();
    finish(filesystem);
    image.check();
    let mut filesystem = image.open();
    file(&mut filesystem, &[&path, &b"file"[..]].concat(), b"x").unwrap();
    filesystem.whiteout(b"d/d/d").unwrap();
    finish(filesystem);
    image.check();
    let mut filesystem = image.open();
    filesystem.whiteout(b"d").unwrap();
    finish(filesystem);
    image.check();
}

#[test]
fn holes_take_no_blocks_and_many_extents_take_a_tree() {
    let image = Image::new(8 << 30);
    let mut filesystem = image.format();
    let mut sparse = filesystem.file(b"zeroes", &PLAIN).unwrap();
    sparse.write(b"begin").unwrap();
    sparse.skip((5 << 30) - 8).unwrap();
    sparse.write(b"end").unwrap();
    sparse.close().unwrap();
    let mut comb = filesystem.file(b"comb", &PLAIN).unwrap();
    for tooth in 0..120_000_u32 {
        comb.write(&tooth.to_le_bytes()).unwrap();
        comb.skip((17 << 12) - 4).unwrap();
    }
    comb.close().unwrap();
    assert!(matches!(filesystem.file(b"x", &PLAIN).unwrap().skip(17 << 40), Err(Error::FileTooLarge)));
    assert!(matches!(filesystem.finish(OPTIONS.time), Err(Error::Spoilt)));
    let mut filesystem = image.format();
    for (name, teeth) in [("comb", 120_000_u32), ("other", 1500), ("small", 5)] {
        let mut comb = filesystem.file(name.as_bytes(), &PLAIN).unwrap();
        for tooth in 0..teeth {
            comb.write(&tooth.to_le_bytes()).unwrap();
            comb.skip((17 << 12) - 4).unwrap();
        }
        comb.close().unwrap();
    }
    let mut sparse = filesystem.file(b"zeroes", &PLAIN).unwrap();
    sparse.write(b"begin").unwrap();
    sparse.skip((5 << 30) - 8).unwrap();
    sparse.write(b"end").unwrap();
    sparse.close().unwrap();
    finish(filesystem);
    image.check();
    if let Some(mounted) = Mounted::new(&image) {
        let found = fs::metadata(mounted.path("zeroes")).unwrap();
        assert_eq!((found.len(), found.blocks()), (5 << 30, 16));
        let comb = fs::File::open(mounted.path("comb")).unwrap();
        for tooth in (0..120_000_u32).step_by(997) {
            let mut bytes = [0; 4];
            std::os::unix::fs::FileExt::read_exact_at(&comb, &mut bytes, u64::from(tooth) * (17 << 12))
                .unwrap();
            assert_eq!(u32::from_le_bytes(bytes), tooth);
        }
    }
    let mut filesystem = image.open();
    filesystem.opaque(b"").unwrap();
    finish(filesystem);
    image.check();
}

#[test]
fn a_full_file_system_is_said_so_and_room_that_became_free_is_used_again() {
    let mut filesystem = in_memory(8 << 20);
    let failed =
        (0..).find_map(|number| file(&mut filesystem, format!("{number}").as_bytes(), &[1; 100_000]).err());
    assert!(matches!(failed, Some(Error::NoSpace)), "{failed:?}");
    assert!(matches!(filesystem.directory(b"d", &PLAIN), Err(Error::Spoilt)));

    let mut filesystem = in_memory(8 << 20);
    for _ in 0..20 {
        file(&mut filesystem, b"one", &vec![1; 5 << 20]).unwrap_or_else(|error| panic!("{error}"));
        filesystem = Filesystem::open(finish(filesystem)).unwrap();
        filesystem.whiteout(b"one").unwrap();
    }

    let mut filesystem = in_memory(8 << 20);
    let failed =
        (0..).find_map(|number| filesystem.node(format!("{number}").as_bytes(), Node::Fifo, &PLAIN).err());
    assert!(matches!(failed, Some(Error::NoInodes)), "{failed:?}");
}

#[test]
fn what_ext4_cannot_hold_is_refused_and_the_layer_goes_on() {
    let image = Image::new(64 << 20);
    let mut filesystem = image.format();
    file(&mut filesystem, b"file", b"x").unwrap();
    for number in 1..65_000 {
        filesystem.hard_link(format!("links/{number}").as_bytes(), b"file", &PLAIN).unwrap();
    }
    let xattrs = |name: &str, bytes: usize| [(name.as_bytes().to_vec(), vec![0; bytes])];
    let with = |filesystem: &mut Filesystem<FileDevice>, name, bytes| {
        let xattrs = xattrs(name, bytes);
        filesystem.directory(b"d", &Attributes { xattrs: &xattrs, ..PLAIN })
    };
    let refusals = [
        filesystem.hard_link(b"links/more", b"file", &PLAIN),
        filesystem.hard_link(b"links/more", b"links", &PLAIN),
        filesystem.hard_link(b"links/more", b"lacks", &PLAIN),
        filesystem.directory(b"file/below", &PLAIN),
        filesystem.directory(&[b'n'; 256], &PLAIN),
        filesystem.symlink(b"s", &[b'n'; 4096], &PLAIN),
        filesystem.node(b"n", Node::Block { major: 4096, minor: 0 }, &PLAIN),
        filesystem.node(b"/", Node::Fifo, &PLAIN),
        filesystem.whiteout(b"."),
        filesystem.set_attributes(b"lacks", &PLAIN),
        with(&mut filesystem, "user.large", 4050),
        with(&mut filesystem, "mine.name", 1),
        with(&mut filesystem, "system.posix_acl_access", 5),
    ];
    for (at, refusal) in refusals.into_iter().enumerate() {
        let error = refusal.unwrap_err();
        assert!(!error.spoils_layer(), "{at}: {error}");
    }
    finish(filesystem);
    image.check();
}

#[test]
fn file_systems_of_all_sizes_are_clean() {
    for size in [
        1 << 20,
        (1 << 20) + 5000,
        3 << 20,
        128 << 20,
        129 << 20,
        (2 << 30) + (5 << 20),
        64 << 30,
        LARGE_BYTES,
    ] {
        if size >= LARGE_BYTES {
            // e2fsck takes long for it.
            let device = finish(in_memory(size));
            assert!(Filesystem::open(device).is_ok());
            continue;
        }
        let image = Image::new(size);
        let mut filesystem = image.format();
        file(&mut filesystem, b"a/b", b"c").unwrap();
        finish(filesystem);
        image.check();
    }
    for size in [0, 4096, (1 << 20) - 1, (128 << 40) + 4096] {
        assert!(
            matches!(Filesystem::format(MemoryDevice::new(size), &OPTIONS), Err(Error::Size(_))),
            "{size}"
        );
    }
}

#[test]
fn the_same_calls_make_the_same_bytes() {
    let make = || {
        let mut filesystem = in_memory(64 << 20);
        for number in 0..3000 {
            file(&mut filesystem, format!("{}/{number}", number % 7).as_bytes(), &[1; 500]).unwrap();
        }
        let mut filesystem = Filesystem::open(finish(filesystem)).unwrap();
        filesystem.whiteout(b"3").unwrap();
        finish(filesystem)
    };
    assert!(make() == make());
    let other = FormatOptions { uuid: [9; 16], ..OPTIONS };
    assert!(
        finish(Filesystem::format(MemoryDevice::new(1 << 24), &other).unwrap()) != finish(in_memory(1 << 24))
    );
}

#[test]
fn a_layer_that_only_deletes_is_small() {
    let mut filesystem = in_memory(1 << 30);
    for number in 0..4000 {
        file(&mut filesystem, format!("{}/{number}", number % 40).as_bytes(), &[1; 5000]).unwrap();
    }
    let base = finish(filesystem);
    let mut filesystem = Filesystem::open(Changes { base, pages: HashSet::new() }).unwrap();
    for number in 0..4000 {
        filesystem.whiteout(format!("{}/{number}", number % 40).as_bytes()).unwrap();
    }
    // 40 directories, the five blocks of inodes that these are in, a superblock, descriptors, bitmaps. Other inodes are zeroed.
    let pages = finish(filesystem).pages.len();
    assert!(pages <= 52, "{pages}");
}

/// mke2fs leaves tables of inodes and bitmaps as they are on the disk, and says that nothing of them was used.
#[test]
fn what_was_never_written_of_tables_and_bitmaps_is_not_believed() {
    let image = Image::new(400 << 20);
    let mut device = image.device();
    for offset in (0..8 << 20).step_by(1 << 20) {
        device.write_at(offset, &[0x77; 1 << 20]).unwrap();
    }
    let features = "^has_journal,^metadata_csum,uninit_bg,^resize_inode";
    let options = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-i",
        "65536",
        "-E",
        "lazy_itable_init=1,nodiscard",
        "-O",
        features,
    ];
    support::run("mke2fs", &[&options[..], &[image.path.to_str().unwrap()]].concat());
    for layer in 0..3 {
        let mut filesystem = image.open();
        for number in 0..200 {
            let made = file(&mut filesystem, format!("{layer}/{number}").as_bytes(), &[1; 5000]);
            made.unwrap_or_else(|error| panic!("{error}"));
        }
        // Into a group whose bitmap was never written.
        if layer == 0 {
            file(&mut filesystem, b"large", &vec![2; 130 << 20]).unwrap();
        }
        filesystem.whiteout(format!("{}/100", layer - 1).as_bytes()).unwrap();
        finish(filesystem);
        image.check();
    }
}

/// Counts pages that are written, not those that are zeroed.
struct Changes {
    base: MemoryDevice,
    pages: HashSet<u64>,
}

impl Device for Changes {
    fn size_bytes(&self) -> u64 {
        self.base.size_bytes()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.base.read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.pages.extend(offset / 4096..(offset + bytes.len() as u64).div_ceil(4096));
        self.base.write_at(offset, bytes)
    }

    fn zero_at(&mut self, offset: u64, length: u64) -> std::io::Result<()> {
        self.base.zero_at(offset, length)
    }
}
