//! What one reader sees, and what it costs at the origin.

use super::*;
use crate::{block::ByteRange, source::Readiness};

const NONE: Duration = Duration::ZERO;

fn dirs() -> [tempfile::TempDir; 2] {
    [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()]
}

#[test]
fn random_reads_equal_the_blob_and_a_second_round_asks_nothing() {
    for dir in dirs() {
        let bench = Bench::new(config(dir.path()));
        let origin = TestOrigin::new(3 * MIB + 777, 1, NONE);
        let blob = bench.blob(&origin);
        let mut random = fastrand::Rng::with_seed(7);
        let mut ranges = vec![(0, 0), (3 * MIB + 776, 1), (0, 3 * MIB + 777), (4095, 2)];
        ranges.extend((0..300).map(|_| {
            let offset = random.usize(0..3 * MIB);
            (offset, random.usize(0..200_000).min(3 * MIB + 777 - offset))
        }));
        random.shuffle(&mut ranges);
        for (offset, len) in &ranges {
            assert!(bench.read(&blob, *offset, *len).unwrap() == origin.content[*offset..offset + len]);
        }
        bench.settle(&blob);
        let asked = origin.asked().len();
        assert!(blob.is_complete());
        for (offset, len) in &ranges {
            let mut dest = vec![0; *len];
            assert_eq!(blob.try_read(*offset as u64, &mut dest).unwrap(), Readiness::Done);
            assert!(dest == origin.content[*offset..offset + len]);
        }
        assert_eq!(origin.asked().len(), asked);
    }
}

#[test]
fn a_reopened_cache_needs_no_origin_for_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let origin = TestOrigin::new(2 * MIB, 2, NONE);
    {
        let bench = Bench::new(config(dir.path()));
        let blob = bench.blob(&origin);
        bench.read(&blob, 0, 2 * MIB).unwrap();
        bench.settle(&blob);
    }
    origin.set(origin::Mood::Fails);
    let bench = Bench::new(config(dir.path()));
    let known = bench.reactor.block_on(bench.cache.known_size(&origin.digest)).unwrap().unwrap();
    assert_eq!(known, Some(2 * MIB as u64));
    let blob = bench.blob(&origin);
    assert!(blob.is_complete());
    let asked = origin.asked().len();
    assert!(bench.read(&blob, 0, 2 * MIB).unwrap() == origin.content);
    assert_eq!(origin.asked().len(), asked);
}

#[test]
fn several_ranges_are_fetched_at_once_and_neighbours_together() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(64 * MIB, 3, Duration::from_millis(50));
    let blob = bench.blob(&origin);
    let range = |start: usize, len: usize| ByteRange::new(start as u64, len as u64).unwrap();
    let ranges: Vec<_> = (0..10).map(|index| range(index * 5 * MIB, 20_000)).collect();
    let began = std::time::Instant::now();
    bench.reactor.block_on(blob.fetch(&ranges)).unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_millis(250), "one round trip, not ten: {:?}", began.elapsed());
    assert!(origin.most_at_once.load(std::sync::atomic::Ordering::SeqCst) >= 10);
    bench.settle(&blob);
    let mut dest = vec![0; 20_000];
    assert_eq!(blob.try_read(5 * MIB as u64, &mut dest).unwrap(), Readiness::Done);

    let before = origin.asked().len();
    let near = [range(60 * MIB, 4096), range(60 * MIB + 12288, 4096), range(60 * MIB + 20480, 4096)];
    bench.reactor.block_on(blob.fetch(&near)).unwrap().unwrap();
    assert_eq!(origin.asked().len(), before + 1, "{:?}", &origin.asked()[before..]);
}

#[test]
fn a_large_read_goes_in_parts_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(16 * MIB, 4, Duration::from_millis(30));
    let blob = bench.blob(&origin);
    assert!(bench.read(&blob, 100, 8 * MIB).unwrap() == origin.content[100..100 + 8 * MIB]);
    assert!(origin.asked().iter().all(|range| range.len() <= MIB as u64));
    assert!(origin.most_at_once.load(std::sync::atomic::Ordering::SeqCst) >= 8);
}

#[test]
fn a_sequential_reader_soon_finds_its_bytes_there_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(16 * MIB, 5, Duration::from_millis(5));
    let blob = bench.blob(&origin);
    for offset in (0..16 * MIB).step_by(64 << 10) {
        assert!(bench.read(&blob, offset, 64 << 10).unwrap() == origin.content[offset..offset + (64 << 10)]);
        bench.reactor.block_on(bench.reactor.sleep(Duration::from_millis(2))).unwrap();
    }
    let metrics = bench.cache.metrics();
    assert!(metrics.hits.get() > 3 * metrics.misses.get(), "{metrics:?}");
    assert!(origin.asked().len() < 64, "{} requests for 16 MiB", origin.asked().len());
    bench.settle(&blob);
    assert_eq!(origin.bytes_asked(), 16 * MIB as u64, "nothing twice");
}

#[test]
fn a_cold_read_is_a_miss_and_no_hit() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 9, NONE);
    let blob = bench.blob(&origin);
    // As the engine reads: two runs that meet are brought near as one and read one after the other.
    bench.reactor.block_on(blob.fetch(&[ByteRange::between(100, 20_000)])).unwrap().unwrap();
    bench.settle(&blob);
    bench.read(&blob, 100, 5000).unwrap();
    bench.read(&blob, 5100, 14_900).unwrap();
    let counts = || (bench.cache.metrics().hits.get(), bench.cache.metrics().misses.get());
    assert_eq!(counts(), (0, 1));
    bench.read(&blob, 100, 5000).unwrap();
    assert_eq!(blob.try_read(100, &mut [0; 64]).unwrap(), Readiness::Done);
    assert_eq!(counts(), (2, 1));
}

#[test]
fn a_range_past_the_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(5000, 6, NONE);
    let blob = bench.blob(&origin);
    assert!(matches!(bench.read(&blob, 4999, 2), Err(SourceError::OutOfBounds { size_bytes: 5000, .. })));
    assert!(blob.try_read(u64::MAX, &mut [0; 2]).is_err());
    assert!(origin.asked().is_empty());
}

#[test]
fn one_digest_with_two_sizes_is_refused_while_open_and_begun_anew_after() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let right = TestOrigin::new(50_000, 7, NONE);
    let mut wrong = Arc::try_unwrap(TestOrigin::new(60_000, 8, NONE)).unwrap();
    wrong.digest = right.digest.clone();
    let wrong = Arc::new(wrong);
    let blob = bench.blob(&wrong);
    bench.read(&blob, 0, 60_000).unwrap();
    let open = |origin: &Arc<TestOrigin>| {
        bench.reactor.block_on(bench.cache.blob(&origin.digest, Arc::clone(origin) as _)).unwrap()
    };
    assert!(matches!(open(&right), Err(crate::cache::CacheError::SizeConflict { open_bytes: 60_000, .. })));
    bench.settle(&blob);
    drop(blob);
    bench.sync();
    bench.until("the old entry has gone", || open(&right).is_ok());
    let blob = bench.blob(&right);
    assert_eq!(blob.present_bytes(), 0);
    assert!(bench.read(&blob, 0, 50_000).unwrap() == right.content);
}
