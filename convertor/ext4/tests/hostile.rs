//! File systems with random damage: to open and change them ends with an error or a result, soon, and never in a panic or
//! with a touch outside of the device.
//!
//! `STRATABD_EXT4_MUTATIONS` is how many are tried of each base, 1,500 by default, from `STRATABD_EXT4_SEED` on.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]

#[expect(dead_code, reason = "one of several users of the support code")]
mod support;

use std::{fs, time::Instant};

use fastrand::Rng;
use stratabd_ext4::{Attributes, Device, Error, Filesystem, MemoryDevice, Node, Timestamp};
use support::Image;

const PAGE_BYTES: usize = 4096;
/// Far more than any takes: some milliseconds.
const SECONDS_LIMIT: u64 = 20;

/// Something of everything, so that damage hits each structure.
fn populate<D: Device>(mut filesystem: Filesystem<D>) -> Result<D, Error> {
    let xattrs = [(b"user.large".to_vec(), vec![7; 1000]), (b"security.capability".to_vec(), vec![1; 20])];
    let attributes = Attributes { mode: 0o755, xattrs: &xattrs, ..Attributes::default() };
    let plain = Attributes { xattrs: &[], ..attributes };
    for directory in 0..4 {
        for file in 0..40 {
            let path = format!("directory{directory}/below/file{file}");
            let mut file = filesystem.file(path.as_bytes(), if file == 0 { &attributes } else { &plain })?;
            file.write(path.as_bytes())?;
            file.close()?;
        }
    }
    for file in 0..400 {
        filesystem.node(format!("many/entry with a long name {file}").as_bytes(), Node::Fifo, &plain)?;
    }
    let mut sparse = filesystem.file(b"sparse", &plain)?;
    for _ in 0..400 {
        sparse.write(&[1; PAGE_BYTES])?;
        sparse.skip(20 * PAGE_BYTES as u64)?;
    }
    sparse.close()?;
    filesystem.symlink(b"long", &[b'x'; 300], &plain)?;
    filesystem.symlink(b"short", b"directory1", &plain)?;
    filesystem.hard_link(b"hard", b"directory0/below/file0", &plain)?;
    filesystem.directory(b"directory3", &attributes)?;
    filesystem.finish(Timestamp::default())
}

/// A layer that comes by all of it.
fn change(device: MemoryDevice, random: &mut Rng) -> Result<(), Error> {
    let mut filesystem = Filesystem::open(device)?;
    let plain = Attributes { mode: 0o700, ..Attributes::default() };
    for step in 0..8 {
        match (step + random.u32(..3)) % 8 {
            0 => filesystem.directory(b"directory0/below/new", &plain)?,
            1 => filesystem.whiteout(b"many")?,
            2 => filesystem.hard_link(b"short/another", b"sparse", &plain)?,
            3 => filesystem.whiteout(b"sparse")?,
            4 => filesystem.opaque(b"directory1")?,
            5 => {
                let mut file = filesystem.file(b"directory2/below", &plain)?;
                file.write(&[3; 70_000])?;
                file.close()?;
            }
            6 => filesystem.set_attributes(b"directory3", &plain)?,
            _ => filesystem.symlink(b"long", b"elsewhere", &plain)?,
        }
    }
    if random.bool() {
        filesystem.opaque(b"/")?;
    }
    let device = filesystem.finish(Timestamp::default())?;
    // What it has left may be as damaged as it was, and is opened again by the next layer.
    let mut again = Filesystem::open(device)?;
    again.opaque(b"/")?;
    again.finish(Timestamp::default())?;
    Ok(())
}

fn in_memory(image: &Image) -> MemoryDevice {
    let bytes = fs::File::open(&image.path).unwrap();
    let size = bytes.metadata().unwrap().len();
    let mut file = image.device();
    let mut device = MemoryDevice::new(size);
    let mut page = [0; PAGE_BYTES];
    for offset in (0..size).step_by(PAGE_BYTES) {
        file.read_at(offset, &mut page).unwrap();
        if page != [0; PAGE_BYTES] {
            device.write_at(offset, &page).unwrap();
        }
    }
    device
}

fn pages(device: &mut MemoryDevice) -> Vec<u64> {
    let mut page = [0; PAGE_BYTES];
    let mut found = Vec::new();
    for offset in (0..device.size_bytes()).step_by(PAGE_BYTES) {
        device.read_at(offset, &mut page).unwrap();
        // Blocks of content have one byte all over, and nobody reads them.
        if page.iter().any(|byte| *byte != page[0]) {
            found.push(offset);
        }
    }
    found
}

fn damage(device: &mut MemoryDevice, pages: &[u64], random: &mut Rng) {
    for _ in 0..random.usize(1..4) {
        // The first two have the superblock and the descriptors.
        let page = if random.u8(..) < 80 {
            pages[random.usize(..2)]
        } else {
            random.choice(pages).copied().unwrap()
        };
        let mut bytes = [0; PAGE_BYTES];
        device.read_at(page, &mut bytes).unwrap();
        let used: Vec<usize> = (0..PAGE_BYTES).filter(|at| bytes[*at] != 0).collect();
        let at = if random.bool() { random.choice(used).unwrap_or(0) } else { random.usize(..PAGE_BYTES) };
        let at = at / 4 * 4;
        let word = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let word = match random.u32(..6) {
            0 => word ^ 1 << random.u32(..32),
            1 => word.wrapping_add(1),
            2 => u32::MAX,
            3 => 0,
            4 => word ^ u32::from(random.u8(..)) << (8 * random.u32(..4)),
            _ => random.u32(..0x8000),
        };
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        device.write_at(page, &bytes).unwrap();
    }
}

fn try_mutations(base: &MemoryDevice, seed: u64) {
    let count = support::number("STRATABD_EXT4_MUTATIONS", 1500);
    let seed = seed ^ support::number("STRATABD_EXT4_SEED", 0) << 2;
    let mut base = base.clone();
    let pages = pages(&mut base);
    let (mut results, mut errors) = (0, 0);
    for mutation in 0..count {
        let mut random = Rng::with_seed(seed << 32 | mutation);
        let mut device = base.clone();
        damage(&mut device, &pages, &mut random);
        let began = Instant::now();
        match change(device, &mut random) {
            Ok(()) => results += 1,
            Err(Error::Device { source, .. }) => panic!("seed {seed} {mutation}: touched {source}"),
            Err(_) => errors += 1,
        }
        assert!(began.elapsed().as_secs() < SECONDS_LIMIT, "seed {seed} {mutation} takes too long");
    }
    assert!(results > count / 50 && errors > count / 10, "{results} results, {errors} errors");
}

#[test]
fn damage_to_our_own_file_system_is_an_error_or_a_result() {
    let filesystem = Filesystem::format(MemoryDevice::new(32 << 20), &support::OPTIONS).unwrap();
    let base = populate(filesystem).unwrap();
    change(base.clone(), &mut Rng::with_seed(0)).unwrap();
    try_mutations(&base, 1);
}

/// Without checksums of descriptors more damage gets past the first check.
#[test]
fn damage_to_those_of_mke2fs_is_an_error_or_a_result() {
    let features = "^has_journal,^metadata_csum,sparse_super2,^uninit_bg,^resize_inode";
    let options = ["-t", "ext4", "-b", "4096", "-i", "16384", "-O", features];
    let image = Image::made_by_mke2fs(64 << 20, &options);
    let base = populate(Filesystem::open(in_memory(&image)).unwrap()).unwrap();
    try_mutations(&base, 2);
}

#[test]
fn what_is_not_kept_up_is_refused_by_its_name() {
    for (options, name) in [
        ("-O metadata_csum", "metadata_csum"),
        ("-O ^metadata_csum,inline_data", "inline_data"),
        ("-O ^metadata_csum,encrypt", "encrypt"),
        ("-O ^metadata_csum,bigalloc", "bigalloc"),
        ("-O ^metadata_csum,ea_inode", "ea_inode"),
        ("-O ^metadata_csum,casefold", "casefold"),
        ("-O ^metadata_csum,meta_bg,^resize_inode", "meta_bg"),
        ("-O ^metadata_csum,quota", "quota"),
        ("-O ^metadata_csum,mmp", "mmp"),
        ("-O ^metadata_csum,verity", "verity"),
        ("-O ^metadata_csum,large_dir", "large_dir"),
        ("-O ^metadata_csum,^extent,^64bit", "extent"),
        ("-O ^metadata_csum -I 512", "inodes"),
        ("-O ^metadata_csum -b 1024", "blocks"),
        ("-O ^metadata_csum -g 8192", "groups"),
    ] {
        let options = format!("-t ext4 -b 4096 -i 16384 {options}");
        let image = Image::made_by_mke2fs(64 << 20, &options.split(' ').collect::<Vec<_>>());
        match Filesystem::open(image.device()) {
            Err(Error::Unsupported(message)) => assert!(message.contains(name), "{options}: {message}"),
            other => panic!("{options}: {other:?}"),
        }
    }
    let none = Filesystem::open(MemoryDevice::new(1 << 20));
    assert!(matches!(none, Err(Error::NotExt4)) && Filesystem::open(MemoryDevice::new(5)).is_err());
}
