//! Whole devices by their hashes, and damaged layers by refusal.

use std::sync::{Arc, atomic::Ordering};

use super::blobs::{Asked, Behaviour, MemoryBlob};
use super::content_digest::ContentDigest;
use super::fixtures::{Fixture, hex, tar_members};
use super::reactor;
use sha2::{Digest, Sha256};
use stratabd::{
    block::{BlockDevice, BlockError, BlockQueue, ErrorKind},
    image::{Image, ImageError, ImageOptions, Layer},
    reactor::Reactor,
    source::BlobSource,
};

const EXT4_L0: &str = "cb74813c2a7e47c35ad640c24d2bb83c960342989188e89440e6e9ad14d13fa9";
const EXT4_L0_L1: &str = "a2cbed8b08692468295794111ded9df4b453bb25fb41c9c5f0c155f5bba1ccbf";
const EXT4_L0_L1_L2: &str = "c05be42ddd17d380d411757a8a44d21dd0a95a73e90b46587550e58b12779fd9";
const G0_G1: &str = "13202a5a7e9cf0d3ddcf694bea46f45987cef1f650c4562b8846ebf3a18bce01";
const G0_G1_G2: &str = "d3ef24f010a5fbbe4e130b98092599fd17198bf30dd6a1da90b71505cd3df84f";
const TINY_100: &str = "6b079f86755cbe8a82cc292b3918f0d98d436da9067d0678cc47b1caff2154d0";
const TINY_255: &str = "c4c53f6e3530d5b0e30d6b740c59eece2cf18df1e9ff97b979b49d09d8488c1b";

/// Of the same devices with one, two and three layers.
const EXT4_CONTENTS: [&str; 3] = [
    "83747716f91a642bd5aa89f67143d3e703d02b841d9fd5ed4b11e85f2d1d8a50",
    "c011bf094072d3516044e6ac724be4eb4b4204086c29d4fd3279987b28575f1b",
    "5bbf3c6b55f9012f504f34765db134e6915eaa59e51875f192e966472b5f5a4b",
];
/// Of `lsmt/g0` alone and with both above it.
const G0_CONTENT: &str = "873bb087e743ad3099d3ba79002558ec2d702a8198b66cb6dc38f308f0d41094";
const G0_G1_G2_CONTENT: &str = "be56aa516e8e18b7a34f2bbd921c79982ad22cb7bb08819f736b536e86c20b33";

fn blob(file: &str, behaviour: Behaviour) -> Arc<MemoryBlob> {
    MemoryBlob::new(file, Fixture::named(file).read(), behaviour)
}

fn stack(files: &[&str], behaviour: Behaviour) -> Vec<Arc<dyn BlobSource>> {
    files.iter().map(|file| blob(file, behaviour) as Arc<dyn BlobSource>).collect()
}

fn open(reactor: &Reactor, layers: Vec<Arc<dyn BlobSource>>, cache_bytes: u64) -> Result<Image, ImageError> {
    let options = ImageOptions { decoded_cache_bytes: cache_bytes, ..ImageOptions::default() };
    reactor.block_on(Image::open(reactor, layers, options)).unwrap()
}

fn read(reactor: &Reactor, image: &Image, offset: u64, len: usize) -> Result<Vec<u8>, BlockError> {
    let queue = image.open_queue(reactor).unwrap();
    let mut dest = vec![0xaa; len];
    reactor.block_on(queue.read(offset, &mut dest)).unwrap().map(|()| dest)
}

/// Hash of the whole device, read in requests of uneven sizes.
fn whole(reactor: &Reactor, image: &Image, seed: u64) -> Result<String, BlockError> {
    let queue = image.open_queue(reactor).unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut hash, mut at) = (Sha256::new(), 0);
    let size = image.geometry().size_bytes;
    let mut dest = vec![0; 3 << 20];
    while at < size {
        let sectors = random.usize(1..=dest.len() / 512) as u64;
        let len = (sectors * 512).min(size - at);
        let part = &mut dest[..len as usize];
        part.fill(0xaa);
        reactor.block_on(queue.read(at, part)).unwrap()?;
        hash.update(part);
        at += len;
    }
    Ok(hex(hash.finalize().as_slice()))
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Where two devices of one size differ first.
fn difference(reactor: &Reactor, one: &Image, other: &Image) -> Option<u64> {
    let queues = [one, other].map(|image| image.open_queue(reactor).unwrap());
    let mut dest = [vec![0xaa; 1 << 20], vec![0x55; 1 << 20]];
    let size = one.geometry().size_bytes;
    assert_eq!(size, other.geometry().size_bytes);
    (0..size).step_by(1 << 20).find(|at| {
        let len = (size - at).min(1 << 20) as usize;
        for (queue, dest) in queues.iter().zip(&mut dest) {
            reactor.block_on(queue.read(*at, &mut dest[..len])).unwrap().unwrap();
        }
        dest[0][..len] != dest[1][..len]
    })
}

/// What the guest tests hold devices to, of stacks whose SHA-256 is checked as well.
fn content(reactor: &Reactor, image: &Image) -> String {
    let queue = image.open_queue(reactor).unwrap();
    let mut digest = ContentDigest::default();
    let mut dest = vec![0xaa; 1 << 20];
    let size = image.geometry().size_bytes;
    for at in (0..size).step_by(1 << 20) {
        let part = &mut dest[..(size - at).min(1 << 20) as usize];
        reactor.block_on(queue.read(at, part)).unwrap().unwrap();
        digest.update(part);
    }
    digest.finish()
}

#[test]
fn every_variant_of_the_ext4_layers_makes_the_same_device() {
    let reactor = reactor();
    let plain = ["ext4/L0.lsmt.xz", "ext4/L1.lsmt.xz", "ext4/L2.lsmt.xz"];
    let wanted = [EXT4_L0, EXT4_L0_L1, EXT4_L0_L1_L2].iter().zip(EXT4_CONTENTS).zip(1..);
    let references = wanted.map(|((wanted, contents), height)| {
        let image = open(&reactor, stack(&plain[..height], Behaviour::Warm), 0).unwrap();
        assert_eq!(&whole(&reactor, &image, height as u64).unwrap(), wanted);
        assert_eq!(content(&reactor, &image), contents);
        image
    });
    let references: Vec<Image> = references.collect();
    let (l0, l1, l2) = (
        ["z4k", "z4kmt", "z16k", "z64k", "zstd4k", "zstd64kt", "zt4k"],
        ["zt4k", "z32kt", "z4k", "zstd8k"],
        ["z4k", "sealed.xz", "recommit.xz", "zt4k"],
    );
    for turn in 0..l0.len() {
        let files = [
            format!("ext4/L0.{}", l0[turn]),
            format!("ext4/L1.{}", l1[turn % l1.len()]),
            format!("ext4/L2.{}", l2[turn % l2.len()]),
        ];
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let height = (turn + 1).min(3);
        let behaviour = if turn % 2 == 0 { Behaviour::Warm } else { Behaviour::Cold };
        let image = open(&reactor, stack(&files[..height], behaviour), (turn as u64 % 3) << 20).unwrap();
        assert_eq!(image.geometry().size_bytes, 1 << 30);
        assert_eq!(image.geometry().logical_block_bytes, 4096, "as the ext4 has it");
        assert_eq!(difference(&reactor, &image, &references[height - 1]), None, "{files:?}");
    }
}

#[test]
fn stacks_of_plain_layers_read_as_upstream_reads_them() {
    let reactor = reactor();
    let files = ["lsmt/g0.lsmt.xz", "lsmt/g1.lsmt", "lsmt/g2.lsmt"];
    for (height, wanted) in [(2, G0_G1), (3, G0_G1_G2)] {
        for behaviour in [Behaviour::Warm, Behaviour::Cold] {
            let image = open(&reactor, stack(&files[..height], behaviour), 0).unwrap();
            assert_eq!(whole(&reactor, &image, 1).unwrap(), wanted);
        }
    }
    for (height, wanted) in [(1, G0_CONTENT), (3, G0_G1_G2_CONTENT)] {
        let image = open(&reactor, stack(&files[..height], Behaviour::Warm), 0).unwrap();
        assert_eq!(content(&reactor, &image), wanted);
    }
}

#[test]
fn every_single_layer_reads_as_the_manifest_says() {
    let reactor = reactor();
    let mut count = 0;
    for fixture in Fixture::all() {
        let is_layer = (fixture.file.starts_with("lsmt/") || fixture.file == "ext4/L1.lsmt.xz")
            && ![".tar", ".rw."].iter().any(|part| fixture.file.contains(part));
        let Some(wanted) = fixture.flat_sha256.as_ref().filter(|_| is_layer) else { continue };
        let image = open(&reactor, stack(&[&fixture.file], Behaviour::Warm), 1 << 20).unwrap();
        assert_eq!(&whole(&reactor, &image, 2).unwrap(), wanted, "{}", fixture.file);
        count += 1;
    }
    assert!(count >= 5, "only {count} layers were there");
}

#[test]
fn stacks_of_100_and_255_layers_read_and_256_or_none_are_refused() {
    let reactor = reactor();
    let archive = Fixture::named("lsmt/stack256.tar.xz").read();
    let members = tar_members(&archive);
    assert_eq!(members.len(), 256);
    let layers = |count: usize| -> Vec<Arc<dyn BlobSource>> {
        let blob = |index: usize| MemoryBlob::new("tiny", members[index].to_vec(), Behaviour::Warm);
        (0..count).map(|index| blob(index) as Arc<dyn BlobSource>).collect()
    };
    for (count, wanted) in [(100, TINY_100), (255, TINY_255)] {
        let image = open(&reactor, layers(count), 0).unwrap();
        assert_eq!(whole(&reactor, &image, 3).unwrap(), wanted);
        assert_eq!(image.layers().count(), count);
    }
    assert!(matches!(
        open(&reactor, layers(256), 0),
        Err(ImageError::TooManyLayers { count: 256, limit: 255 })
    ));
    assert!(matches!(open(&reactor, Vec::new(), 0), Err(ImageError::NoLayers)));
}

/// Damage that no check can see, or that is where nobody reads.
const HARMLESS: [&str; 4] = ["lsmt-tag-nonzero", "lsmt-data-flip", "zfile-trailer-flip", "zfile-trunc"];

#[test]
fn damaged_layers_are_refused_and_harmless_damage_is_not() {
    let reactor = reactor();
    let [tiny, l2] = ["lsmt/tiny.lsmt", "ext4/L2.z4k"]
        .map(|file| open(&reactor, stack(&[file], Behaviour::Warm), 0).unwrap());
    let mut seen = 0;
    for fixture in Fixture::all().iter().filter(|fixture| fixture.file.starts_with("corrupt/")) {
        let name = fixture.file.trim_start_matches("corrupt/");
        let opened = open(&reactor, stack(&[&fixture.file], Behaviour::Warm), 0);
        match (name, &opened) {
            ("lsmt-tag-nonzero", Ok(image)) => assert_eq!(difference(&reactor, image, &tiny), None),
            ("lsmt-data-flip", Ok(image)) => {
                assert!(difference(&reactor, image, &tiny).is_some(), "this damage cannot be seen");
            }
            ("zfile-trailer-flip" | "zfile-trunc", Ok(image)) => {
                assert_eq!(difference(&reactor, image, &l2), None, "{name}");
            }
            (_, result) => {
                assert!(!HARMLESS.contains(&name), "{name}: {result:?}");
                let error = match result {
                    Ok(image) => chain(&whole(&reactor, image, 5).expect_err(name)),
                    Err(error) => chain(error),
                };
                assert!(error.contains(&fixture.file), "{error} does not name the file");
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 21);
}

#[test]
fn any_read_by_any_number_of_tasks_equals_the_flattened_device() {
    let reactor = reactor();
    let plain = ["ext4/L0.lsmt.xz", "ext4/L1.lsmt.xz", "ext4/L2.lsmt.xz"];
    let reference = open(&reactor, stack(&plain, Behaviour::Warm), 0).unwrap();
    let mixed = ["ext4/L0.zstd4k", "ext4/L1.z32kt", "ext4/L2.zt4k"];
    for (behaviour, cache_bytes) in
        [(Behaviour::Warm, 0), (Behaviour::Warm, 1 << 20), (Behaviour::Cold, 0), (Behaviour::Cold, 100_000)]
    {
        let image = open(&reactor, stack(&mixed, behaviour), cache_bytes).unwrap();
        let tasks = (0..8_u64).map(|seed| {
            let (queue, reference) =
                (image.open_queue(&reactor).unwrap(), reference.open_queue(&reactor).unwrap());
            async move {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..150 {
                    // Most data of a young ext4 lies near the start of its groups.
                    let group = random.u64(0..8) * (128 << 20);
                    let offset = group + random.u64(0..(8 << 20) / 512) * 512;
                    let most = if random.u8(0..8) == 0 { 4096 } else { 64 };
                    let len = random.usize(1..=most) * 512;
                    let (mut dest, mut wanted) = (vec![0xaa; len], vec![0x55; len]);
                    queue.read(offset, &mut dest).await.unwrap();
                    reference.read(offset, &mut wanted).await.unwrap();
                    assert!(dest == wanted, "{len} bytes at {offset}");
                }
            }
        });
        reactor.block_on(futures_util::future::join_all(tasks)).unwrap();
        assert!(image.decoded_bytes() <= cache_bytes);
    }
}

#[test]
fn a_layer_opens_with_at_most_three_requests() {
    let reactor = reactor();
    for fixture in Fixture::all() {
        let is_layer = fixture.file.starts_with("ext4/L") || fixture.file == "lsmt/g1.lsmt";
        if !is_layer {
            continue;
        }
        let source = blob(&fixture.file, Behaviour::Cold);
        reactor.block_on(Layer::open(&reactor, source.clone())).unwrap().unwrap();
        let log = source.log.lock().unwrap();
        let reads = log.iter().filter(|asked| matches!(asked, Asked::Read(_))).count();
        assert!(reads <= 3, "{}: {log:?}", fixture.file);
    }
}

#[test]
fn a_device_refuses_writes_and_reads_past_its_end() {
    let reactor = reactor();
    let image = open(&reactor, stack(&["lsmt/tiny.lsmt"], Behaviour::Warm), 0).unwrap();
    let queue = image.open_queue(&reactor).unwrap();
    let kind = |result: Result<(), BlockError>| result.unwrap_err().kind();
    assert_eq!(kind(reactor.block_on(queue.write(0, &[0; 512])).unwrap()), ErrorKind::ReadOnly);
    assert_eq!(kind(reactor.block_on(queue.write_zeroes(0, 512)).unwrap()), ErrorKind::ReadOnly);
    assert!(reactor.block_on(queue.flush()).unwrap().is_ok());
    let size = image.geometry().size_bytes;
    for offset in [size, size - 512, u64::MAX - 511] {
        assert_eq!(read(&reactor, &image, offset, 1024).unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn a_layer_describes_itself_and_can_be_verified() {
    let reactor = reactor();
    let (layer, _) =
        reactor.block_on(Layer::open(&reactor, blob("ext4/L2.z4k", Behaviour::Cold))).unwrap().unwrap();
    let about = layer.description();
    assert_eq!(about.uuid.unwrap().to_string().to_lowercase(), "abc00002-1111-2222-3333-000000000002");
    assert_eq!(about.parent_uuid.unwrap().to_string().to_lowercase(), "abc00001-1111-2222-3333-000000000001");
    let compression = about.compression.unwrap();
    assert_eq!((compression.block_bytes, compression.checksums), (4096, true));
    let mut last = (0, 0);
    let report = reactor.block_on(layer.verify(&reactor, |at, end| last = (at, end))).unwrap().unwrap();
    assert_eq!((report.blocks, report.damaged_count), (u64::from(compression.blocks), 0));
    assert_eq!(last.0, last.1);

    // A good head and tail, so that it opens; damage in the middle.
    let mut bytes = Fixture::named("ext4/L2.z4k").read();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    let source = MemoryBlob::new("damaged", bytes, Behaviour::Warm);
    let (layer, _) = reactor.block_on(Layer::open(&reactor, source.clone())).unwrap().unwrap();
    let report = reactor.block_on(layer.verify(&reactor, |_, _| {})).unwrap().unwrap();
    assert_eq!(report.damaged_count, 1);
    assert!(report.damaged[0].offset <= middle as u64 && report.damaged[0].offset + 4200 > middle as u64);
    assert_eq!(source.invalidations.load(Ordering::Relaxed), 0);
}
