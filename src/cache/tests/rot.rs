//! What damage to its files does to a cache that is opened again.

use std::{os::unix::fs::FileExt, path::PathBuf};

use super::*;
use crate::{block::ByteRange, source::Readiness};

fn file_of(dir: &Path, digest: &str, name: &str) -> PathBuf {
    let digits = digest.strip_prefix("sha256:").unwrap();
    dir.join("blobs/sha256").join(&digits[..2]).join(digits).join(name)
}

/// Fills a cache with the blob of `origin` and closes it.
fn fill(dir: &Path, origin: &Arc<TestOrigin>) {
    let bench = Bench::new(config(dir));
    let blob = bench.blob(origin);
    bench.read(&blob, 0, origin.content.len()).unwrap();
    bench.settle(&blob);
    bench.sync();
}

/// Changes bytes of a file where it lies.
fn flip(file: &Path, offset: usize, len: usize) {
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset as u64).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5A);
    file.write_all_at(&bytes, offset as u64).unwrap();
}

#[test]
fn bytes_that_rotted_between_two_lives_are_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let origin = TestOrigin::new(MIB + 77, 90, Duration::ZERO);
    fill(dir.path(), &origin);
    let mut random = fastrand::Rng::with_seed(91);
    for trial in 0..50 {
        let name = ["data", "data", "map", "durable"][trial % 4];
        let file = file_of(dir.path(), &origin.digest, name);
        let len = usize::try_from(std::fs::metadata(&file).unwrap().len()).unwrap();
        for _ in 0..random.usize(1..4) {
            let damage = random.usize(1..30);
            flip(&file, random.usize(0..len - damage), damage);
        }
        let bench = Bench::new(config(dir.path()));
        let blob = bench.blob(&origin);
        let mut dest = vec![0; MIB + 77];
        for (part, start) in dest.chunks_mut(64 << 10).zip((0..).step_by(64 << 10)) {
            let ready = blob.try_read(start, part).unwrap();
            let grains = start / 4096..(start + part.len() as u64).div_ceil(4096);
            // The cache's thread may have looked before, to hold the whole blob against its digest.
            let is_proven = blob.entry().ledger.presence().is_proven(&grains);
            assert!(ready == Readiness::WouldWait || is_proven, "nothing is believed unseen");
            if ready == Readiness::WouldWait {
                bench.reactor.block_on(blob.read(&bench.reactor, start, part)).unwrap().unwrap();
            }
        }
        assert!(dest == origin.content, "trial {trial}");
        assert_eq!(bench.read(&blob, 0, MIB + 77).unwrap(), origin.content, "trial {trial}");
        bench.settle(&blob);
        bench.sync();
    }
}

#[test]
fn damage_costs_one_fetch_of_what_is_damaged_however_many_spots_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let origin = TestOrigin::new(4 * MIB, 92, Duration::ZERO);
    fill(dir.path(), &origin);
    let spots: Vec<usize> = (0..12).map(|index| (index * 70 + 1) * 4096 - 500).collect();
    for spot in &spots {
        flip(&file_of(dir.path(), &origin.digest, "data"), *spot, 1024);
    }
    let bench = Bench::new(config(dir.path()));
    let blob = bench.blob(&origin);
    let before = origin.asked().len();
    assert!(bench.read(&blob, 0, 4 * MIB).unwrap() == origin.content);
    bench.settle(&blob);
    let asked = origin.asked().split_off(before);
    let each: Vec<_> = spots
        .iter()
        .map(|spot| {
            let first = *spot as u64 / 4096 * 4096;
            ByteRange::between(first, first + 2 * 4096)
        })
        .collect();
    let bytes: u64 = asked.iter().map(|range| range.len()).sum();
    assert!(each.iter().all(|damaged| asked.iter().any(|range| range.contains(*damaged))), "{asked:?}");
    assert_eq!(asked.len(), spots.len(), "{asked:?}");
    assert!(bytes <= 12 * 2 * 4096, "{bytes} bytes for twelve spots of two grains");
    assert_eq!(bench.cache.metrics().damaged_grains.get(), 24);
    assert!(blob.is_complete());
}

#[test]
fn a_direct_read_of_what_was_left_by_another_life_waits_until_it_is_proven() {
    let dir = tempfile::tempdir().unwrap();
    let origin = TestOrigin::new(MIB, 93, Duration::ZERO);
    fill(dir.path(), &origin);
    let bench = Bench::new(config(dir.path()));
    let blob = bench.blob(&origin);
    let range = ByteRange::between(8192, 12_288);
    let direct = blob.begin_direct(range);
    // The cache's thread may have looked before, to hold the whole blob against its digest.
    assert!(direct.is_none() || blob.entry().ledger.presence().is_proven(&(2..3)));
    bench.read(&blob, 8192, 4096).unwrap();
    assert!(blob.begin_direct(range).is_some());
}

#[test]
fn maps_of_an_older_version_are_forgotten_with_the_room_of_their_data() {
    let dir = tempfile::tempdir().unwrap();
    let origin = TestOrigin::new(MIB, 94, Duration::ZERO);
    fill(dir.path(), &origin);
    for name in ["map", "durable"] {
        let map = std::fs::File::options()
            .read(true)
            .write(true)
            .open(file_of(dir.path(), &origin.digest, name))
            .unwrap();
        let mut header = [0; 512];
        map.read_exact_at(&mut header, 0).unwrap();
        header[8] = 1;
        let crc = crc32c::crc32c(&header[..508]).to_le_bytes();
        header[508..].copy_from_slice(&crc);
        map.write_all_at(&header, 0).unwrap();
    }
    let bench = Bench::new(config(dir.path()));
    let blob = bench.blob(&origin);
    assert_eq!((blob.present_bytes(), blob.entry().files.used_bytes().unwrap()), (0, 0));
    assert!(bench.read(&blob, 0, MIB).unwrap() == origin.content);
}

#[test]
fn a_data_file_cut_under_the_cache_costs_a_fetch_and_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 15, Duration::ZERO);
    let blob = bench.blob(&origin);
    bench.read(&blob, 0, MIB).unwrap();
    bench.settle(&blob);
    let data =
        std::fs::File::options().write(true).open(file_of(dir.path(), &origin.digest, "data")).unwrap();
    data.set_len(0).unwrap();
    assert!(bench.read(&blob, 10_000, 50_000).unwrap() == origin.content[10_000..60_000]);
    assert!(bench.cache.metrics().read_errors.get() >= 1);
}

#[test]
fn lost_data_and_overwritten_maps_are_noticed_at_open() {
    let origin = TestOrigin::new(MIB + 5, 16, Duration::ZERO);
    let damages: [fn(&Path, &str); 4] = [
        |dir, digest| std::fs::remove_file(file_of(dir, digest, "data")).unwrap(),
        |dir, digest| {
            let data = std::fs::File::options().write(true).open(file_of(dir, digest, "data")).unwrap();
            data.set_len(4096).unwrap();
        },
        |dir, digest| {
            for name in ["map", "durable"] {
                let map = std::fs::File::options().write(true).open(file_of(dir, digest, name)).unwrap();
                map.write_all_at(&[0xA5; 700], 100).unwrap();
            }
        },
        |dir, digest| {
            for name in ["map", "durable"] {
                std::fs::remove_file(file_of(dir, digest, name)).unwrap();
            }
        },
    ];
    for damage in damages {
        let dir = tempfile::tempdir().unwrap();
        {
            let bench = Bench::new(config(dir.path()));
            let blob = bench.blob(&origin);
            bench.read(&blob, 0, MIB + 5).unwrap();
            bench.settle(&blob);
            bench.sync();
        }
        damage(dir.path(), &origin.digest);
        let bench = Bench::new(config(dir.path()));
        let blob = bench.blob(&origin);
        assert_eq!(blob.present_bytes(), 0);
        assert!(bench.read(&blob, 0, MIB + 5).unwrap() == origin.content);
    }
}
