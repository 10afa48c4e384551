//! Random layers over one another, over our own file systems and those of mke2fs: after each, e2fsck has nothing to say and the
//! kernel, or without the right to mount debugfs, shows the very tree of the model.
//!
//! `STRATABD_EXT4_SEEDS` is how many sequences are tried, 3 by default, and `STRATABD_EXT4_SEED` the first of them.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]

#[expect(dead_code, reason = "one of several users of the support code")]
mod support;

use std::ops::Range;

use fastrand::Rng;
use stratabd_ext4::{Attributes, Device, Error, Filesystem, Node, Timestamp};
use support::{
    Image, dumped,
    model::{Metadata, Model, Operation, Xattrs},
    mounted::Mounted,
};

const LAYERS: usize = 4;
const OPERATIONS: usize = 250;
const SIZE_BYTES: u64 = 256 << 20;

fn name(random: &mut Rng) -> Vec<u8> {
    let names: [&[u8]; 9] =
        [b"a", b"b", b"c", b"d", b"usr", b"lib", b"\xff\xfe", b"with space", &[b'n'; 255]];
    random.choice(names).unwrap().to_vec()
}

fn path(random: &mut Rng) -> Vec<u8> {
    let depth = random.usize(1..5);
    let mut names: Vec<Vec<u8>> = (0..depth).map(|_| name(random)).collect();
    if random.u8(..) < 20 {
        names.insert(random.usize(..names.len()), b"..".to_vec());
    }
    names.join(&b'/')
}

fn bytes(random: &mut Rng, count: usize) -> Vec<u8> {
    (0..count).map(|_| random.u8(..)).collect()
}

fn xattrs(random: &mut Rng) -> Xattrs {
    let mut all = Xattrs::new();
    if random.bool() {
        return all;
    }
    for name in ["trusted.one", "trusted.overlay.origin", "security.other"] {
        if random.bool() {
            let length = random.choice([0, 1, 5, 40, 700]).unwrap();
            all.push((name.as_bytes().to_vec(), bytes(random, length)));
        }
    }
    all
}

fn metadata(random: &mut Rng) -> Metadata {
    let seconds = [0, 1, -1, -2_000_000_000, 1_700_000_000, 5_000_000_000, 15_000_000_000];
    Metadata {
        mode: random.u32(..0o10000),
        uid: random.choice([0, 1000, 65_535, 65_536, 2_000_000, 4_000_000_000]).unwrap(),
        gid: random.choice([0, 1000, 70_000]).unwrap(),
        mtime: Timestamp {
            seconds: random.choice(seconds).unwrap(),
            nanoseconds: random.choice([0, 1, 999_999_999]).unwrap(),
        },
        xattrs: xattrs(random),
    }
}

fn content(random: &mut Rng) -> Vec<u8> {
    let mut content = Vec::new();
    for _ in 0..random.usize(..6) {
        let length = random.choice([1, 100, 4095, 4096, 4097, 30_000, 80_000, 200_000]).unwrap();
        if random.bool() {
            content.extend(bytes(random, length))
        } else {
            content.resize(content.len() + length, 0)
        }
    }
    content
}

fn node(random: &mut Rng) -> Node {
    let (major, minor) = (random.choice([0, 8, 255, 256, 4095]).unwrap(), random.u32(..1 << 20));
    random
        .choice([
            Node::Fifo,
            Node::Socket,
            Node::Character { major, minor: minor & 0xff },
            Node::Block { major, minor },
        ])
        .unwrap()
}

fn operation(random: &mut Rng) -> Operation {
    let (path, metadata) = (path(random), metadata(random));
    match random.u32(..20) {
        0..4 => Operation::Directory(path, metadata),
        4..9 => Operation::File(path, content(random), metadata),
        9..11 => {
            let mut target = self::path(random);
            if random.bool() {
                target.insert(0, b'/');
            }
            Operation::Symlink(path, target, metadata)
        }
        11 => Operation::Node(path, node(random), metadata),
        12..15 => Operation::HardLink(path, self::path(random), metadata),
        15 => Operation::Attributes(path, metadata),
        16..19 => Operation::Whiteout(path),
        _ => Operation::Opaque(path),
    }
}

/// Cuts content into pieces, and gives runs of zeroes as holes at times.
fn write(
    filesystem: &mut Filesystem<impl Device>,
    random: &mut Rng,
    path: &[u8],
    content: &[u8],
    attributes: &Attributes<'_>,
) -> Result<(), Error> {
    let mut file = filesystem.file(path, attributes)?;
    let mut rest = content;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(random.usize(1..=rest.len().min(150_000)));
        if piece.iter().all(|byte| *byte == 0) && random.bool() {
            file.skip(piece.len() as u64)?;
        } else {
            file.write(piece)?;
        }
        rest = after;
    }
    file.close()
}

fn apply(
    filesystem: &mut Filesystem<impl Device>,
    random: &mut Rng,
    operation: &Operation,
) -> Result<(), Error> {
    fn attributes(metadata: &Metadata) -> Attributes<'_> {
        let Metadata { mode, uid, gid, mtime, xattrs } = metadata;
        Attributes { mode: *mode, uid: *uid, gid: *gid, mtime: *mtime, xattrs }
    }
    match operation {
        Operation::Directory(path, metadata) => filesystem.directory(path, &attributes(metadata)),
        Operation::File(path, content, metadata) => {
            write(filesystem, random, path, content, &attributes(metadata))
        }
        Operation::Symlink(path, target, metadata) => filesystem.symlink(path, target, &attributes(metadata)),
        Operation::Node(path, node, metadata) => filesystem.node(path, *node, &attributes(metadata)),
        Operation::HardLink(path, target, metadata) => {
            filesystem.hard_link(path, target, &attributes(metadata))
        }
        Operation::Attributes(path, metadata) => filesystem.set_attributes(path, &attributes(metadata)),
        Operation::Whiteout(path) => filesystem.whiteout(path),
        Operation::Opaque(path) => filesystem.opaque(path),
    }
}

/// Layers over `image`, the first one with `first`.
fn try_layers(image: &Image, seed: u64, is_formatted: bool, root_time: Option<Timestamp>) {
    let mut random = Rng::with_seed(seed);
    let mut model = Model::new(support::OPTIONS.time);
    for layer in 0..LAYERS {
        let mut filesystem = if layer == 0 && !is_formatted { image.format() } else { image.open() };
        model.begin_layer();
        if layer == 0 && root_time.is_none() {
            let root = Operation::Directory(b"./".to_vec(), metadata(&mut random));
            apply(&mut filesystem, &mut random, &root).unwrap();
            model.apply(&root).unwrap();
        }
        for count in 0..OPERATIONS {
            let operation = operation(&mut random);
            let wanted = model.apply(&operation);
            let done = apply(&mut filesystem, &mut random, &operation);
            assert_eq!(
                done.is_ok(),
                wanted.is_ok(),
                "seed {seed} layer {layer} {count} {operation:?}: {done:?}"
            );
        }
        filesystem.finish(Timestamp { seconds: 1_700_000_001, nanoseconds: 0 }).unwrap();
        image.check();
        match Mounted::new(image) {
            Some(mounted) => mounted.compare(&model),
            None => dumped::compare(image, &model),
        }
    }
    dumped::compare(image, &model);
}

fn seeds() -> Range<u64> {
    let first = support::number("STRATABD_EXT4_SEED", 0);
    first..first + support::number("STRATABD_EXT4_SEEDS", 3)
}

#[test]
fn layers_over_our_own_file_system_are_what_the_model_says() {
    for seed in seeds() {
        try_layers(&Image::new(SIZE_BYTES), seed, false, Some(support::OPTIONS.time));
    }
}

#[test]
fn layers_over_those_of_mke2fs_are_what_the_model_says() {
    let upstream =
        "^has_journal,^metadata_csum,sparse_super2,resize_inode,64bit,extent,flex_bg,^uninit_bg,^orphan_file";
    let narrow = "^has_journal,^metadata_csum,^64bit,^flex_bg,uninit_bg,^resize_inode";
    let journal = "has_journal,^metadata_csum,^64bit,uninit_bg,^orphan_file,^metadata_csum_seed";
    for seed in seeds() {
        for (at, features) in [upstream, narrow, journal].into_iter().enumerate() {
            let size = SIZE_BYTES + ((seed % 64) << 20);
            let image =
                Image::made_by_mke2fs(size, &["-t", "ext4", "-b", "4096", "-i", "16384", "-O", features]);
            try_layers(&image, seed ^ (at as u64 + 1) << 40, true, None);
        }
    }
}
