//! The limit on disk, and that what is read is never taken wrongly.

use super::*;
use crate::cache::key::BlobKey;

fn small(dir: &Path, limit_bytes: usize) -> CacheConfig {
    CacheConfig { limit_bytes: limit_bytes as u64, sync_interval: Duration::from_millis(20), ..config(dir) }
}

pub(super) fn on_disk(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => on_disk(&entry.path()),
        Ok(found) if entry.file_name() == "data" => found.blocks() * 512,
        _ => 0,
    };
    entries.flatten().map(size).sum()
}

#[test]
fn the_blob_unused_for_longest_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(small(dir.path(), 5 * MIB));
    let origins: Vec<_> = (0..3).map(|seed| TestOrigin::new(2 * MIB, 30 + seed, Duration::ZERO)).collect();
    for origin in &origins {
        let blob = bench.blob(origin);
        // A count that is under way may take what is written meanwhile twice, and the cache to be full for a moment.
        bench.until("all of it is kept", || {
            bench.read(&blob, 0, 2 * MIB).unwrap();
            bench.settle(&blob);
            blob.is_complete()
        });
        drop(blob);
        // The cache's thread may still hold all of it against its digest; what is in use is passed over.
        let key = BlobKey::parse(&origin.digest).unwrap();
        bench.until("the blob is closed", || bench.cache.shared.is_unused_here(&key));
        bench.reactor.block_on(bench.reactor.sleep(Duration::from_millis(60))).unwrap();
    }
    bench.until("the limit is kept", || on_disk(dir.path()) <= 5 * MIB as u64);
    let known = |origin: &TestOrigin| {
        bench.reactor.block_on(bench.cache.known_size(&origin.digest)).unwrap().unwrap().is_some()
    };
    bench.until("the first blob has gone", || !known(&origins[0]));
    assert!(known(&origins[1]) && known(&origins[2]));
    assert!(bench.cache.metrics().evicted_bytes.get() >= 2 * MIB as u64);
    let blob = bench.blob(&origins[0]);
    assert!(bench.read(&blob, 0, 2 * MIB).unwrap() == origins[0].content);
}

#[test]
fn one_blob_larger_than_the_limit_is_read_right_and_loses_its_cold_regions() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(small(dir.path(), 4 * MIB));
    let origin = TestOrigin::new(16 * MIB, 40, Duration::ZERO);
    let blob = bench.blob(&origin);
    let mut random = fastrand::Rng::with_seed(4);
    let evicted = || bench.cache.metrics().evicted_bytes.get();
    // How much is evicted in a round depends on how the evictor keeps pace; what is read must be right in any case.
    let mut rounds = 0;
    while rounds < 3 || evicted() < 4 * MIB as u64 {
        rounds += 1;
        assert!(rounds < 60, "only {} bytes evicted", evicted());
        for offset in (0..16 * MIB).step_by(256 << 10) {
            assert!(
                bench.read(&blob, offset, 256 << 10).unwrap() == origin.content[offset..offset + (256 << 10)]
            );
            bench.reactor.block_on(bench.reactor.sleep(Duration::from_millis(random.u64(0..6)))).unwrap();
        }
    }
    bench.settle(&blob);
    bench.until("the limit is kept", || on_disk(dir.path()) <= 5 * MIB as u64);
}

#[test]
fn two_processes_keep_one_limit_together() {
    let dir = tempfile::tempdir().unwrap();
    // No ticks: what is written makes the process count.
    let limited = || CacheConfig { limit_bytes: 4 * MIB as u64, ..config(dir.path()) };
    let benches = [Bench::new(limited()), Bench::new(limited())];
    let first_count = |bench: &Bench| !bench.cache.shared.evicting.load(std::sync::atomic::Ordering::Acquire);
    for (bench, seed) in benches.iter().zip(42..) {
        bench.until("the first count is over", || first_count(bench));
        let origin = TestOrigin::new(3 * MIB, seed, Duration::ZERO);
        let blob = bench.blob(&origin);
        for offset in (0..3 * MIB).step_by(64 << 10) {
            bench.read(&blob, offset, 64 << 10).unwrap();
        }
        bench.settle(&blob);
    }
    // A pass may have come while the other process still held its blob; what a tick would do is done here.
    let shared = &benches[1].cache.shared;
    benches[1].until("the limit is kept", || {
        if shared.is_full() {
            super::super::evict::start(shared);
        }
        on_disk(dir.path()) <= 4 * MIB as u64
    });
}

#[test]
fn what_another_process_has_open_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    // Locks belong to an open file, so a second cache in this process is to the first as another process is.
    let other = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(3 * MIB, 50, Duration::ZERO);
    let theirs = other.blob(&origin);
    other.read(&theirs, 0, 3 * MIB).unwrap();
    other.settle(&theirs);
    let bench = Bench::new(small(dir.path(), MIB));
    let ours = bench.blob(&origin);
    let entry = ours.entry();
    let punched = bench
        .reactor
        .block_on(async { super::super::evict::punch(entry, &bench.reactor, &[0..64, 100..101]).await })
        .unwrap();
    assert_eq!(punched, 0);
    bench.reactor.block_on(bench.reactor.sleep(Duration::from_millis(200))).unwrap();
    assert!(theirs.is_complete() && on_disk(dir.path()) >= 3 * MIB as u64);
    assert!(other.read(&theirs, 0, 3 * MIB).unwrap() == origin.content);
}

#[test]
fn while_the_cache_is_full_a_read_is_fetched_once_and_nothing_ahead_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(4 * MIB, 41, Duration::ZERO);
    let blob = bench.blob(&origin);
    bench.cache.shared.used_bytes.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
    // As the engine reads: it brings near what it lacks, and then reads that.
    let range = crate::block::ByteRange::between(0, 4096);
    bench.reactor.block_on(blob.fetch(&[range])).unwrap().unwrap();
    assert!(bench.read(&blob, 0, 4096).unwrap() == origin.content[..4096]);
    bench.settle(&blob);
    assert_eq!(origin.asked(), [range]);
}
