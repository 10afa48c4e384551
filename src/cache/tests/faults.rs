//! Origins and disks that fail, and bytes that a checksum refutes.

use std::{rc::Rc, time::Instant};

use futures_util::poll;

use super::{origin::Mood, *};
use crate::{
    block::ByteRange,
    reactor::WaitsFor,
    source::{Origin, Refutation},
};

#[test]
fn a_failed_or_mislabelled_answer_fails_the_read_and_is_not_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 11, Duration::ZERO);
    let blob = bench.blob(&origin);
    for mood in [Mood::Fails, Mood::Short, Mood::Long] {
        origin.set(mood);
        let error = bench.read(&blob, 5000, 10_000).unwrap_err();
        assert!(matches!(error, SourceError::Remote { timed_out: false, .. }), "{error}");
        assert_eq!(blob.present_bytes(), 0);
    }
    origin.set(Mood::Good);
    assert!(bench.read(&blob, 5000, 10_000).unwrap() == origin.content[5000..15_000]);
    assert!(bench.cache.metrics().failed_fetches.get() >= 3);
}

#[test]
fn an_origin_that_hangs_ends_by_the_deadline_and_does_not_hold_the_next_read() {
    let dir = tempfile::tempdir().unwrap();
    let deadline = Duration::from_millis(150);
    let bench = Bench::new(CacheConfig { fetch_deadline: deadline, ..config(dir.path()) });
    let origin = TestOrigin::new(MIB, 12, Duration::ZERO);
    let blob = bench.blob(&origin);
    origin.set(Mood::Hangs);
    let began = Instant::now();
    let error = bench.read(&blob, 0, 4096).unwrap_err();
    assert!(matches!(error, SourceError::Remote { timed_out: true, .. }), "{error}");
    assert!(began.elapsed() >= deadline);
    origin.set(Mood::Good);
    assert!(bench.read(&blob, 0, 4096).unwrap() == origin.content[..4096]);
}

#[test]
fn a_registry_that_hangs_does_not_hold_up_reads_from_another() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(CacheConfig { fetches: 4, ..config(dir.path()) });
    let hanging = TestOrigin::new(64 * MIB, 18, Duration::ZERO);
    let healthy = TestOrigin::new(MIB, 19, Duration::ZERO);
    let blobs = [bench.blob(&hanging), bench.blob(&healthy)];
    hanging.set(Mood::Hangs);
    let read = bench.reactor.block_on(async {
        let reads = [(); 20].iter().zip(0_u64..).map(|(_, index)| {
            let (blob, start) = (&blobs[0], (index * 3) << 20);
            async move { blob.fetch(&[ByteRange::between(start, start + 4096)]).await }
        });
        let mut stuck = Box::pin(futures_util::future::join_all(reads));
        assert!(futures_util::poll!(stuck.as_mut()).is_pending());
        bench.until_asked(&hanging, 3).await;
        let mut dest = [0; 4096];
        let mut read = std::pin::pin!(blobs[1].read(&bench.reactor, 0, &mut dest));
        let late = std::pin::pin!(bench.reactor.sleep(Duration::from_secs(20)));
        matches!(
            futures_util::future::select(&mut read, late).await,
            futures_util::future::Either::Left((Ok(()), _))
        )
    });
    assert!(read.unwrap(), "the healthy registry's blob waits for the hanging one's");
}

#[test]
fn the_wait_for_room_ends_by_the_deadline_too() {
    let dir = tempfile::tempdir().unwrap();
    let deadline = Duration::from_millis(200);
    let bench = Bench::new(CacheConfig { fetches: 1, fetch_deadline: deadline, ..config(dir.path()) });
    let origin = TestOrigin::new(64 * MIB, 20, Duration::ZERO);
    let blob = bench.blob(&origin);
    origin.set(Mood::Hangs);
    let began = Instant::now();
    bench
        .reactor
        .block_on(async {
            let reads = [0_u64, 8, 16, 24, 32, 40, 48, 56].map(|start| {
                let blob = &blob;
                async move { blob.fetch(&[ByteRange::between(start << 20, (start << 20) + 4096)]).await }
            });
            for read in futures_util::future::join_all(reads).await {
                assert!(matches!(read, Err(SourceError::Remote { timed_out: true, .. })));
            }
        })
        .unwrap();
    assert!(began.elapsed() < 6 * deadline, "eight in a row by one place: {:?}", began.elapsed());
}

#[test]
fn those_who_wait_behind_fetches_that_hang_give_up_before_all_time_is_up() {
    let dir = tempfile::tempdir().unwrap();
    let patience = Duration::from_millis(50);
    let bench = Bench::new(CacheConfig { fetches: 1, lane_patience: patience, ..config(dir.path()) });
    let origin = TestOrigin::new(64 * MIB, 22, Duration::ZERO);
    let blob = bench.blob(&origin);
    origin.set(Mood::Hangs);
    let [stuck, behind] = [[ByteRange::between(0, 4096)], [ByteRange::between(8 << 20, (8 << 20) + 4096)]];
    let read = bench.reactor.block_on(async {
        let mut stuck = Box::pin(blob.fetch(&stuck));
        assert!(futures_util::poll!(stuck.as_mut()).is_pending());
        bench.until_asked(&origin, 1).await;
        blob.fetch(&behind).await
    });
    let error = read.unwrap().unwrap_err();
    assert!(matches!(error, SourceError::Remote { timed_out: true, .. }), "{error}");
}

#[test]
fn who_joins_a_fetch_that_fails_gets_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 21, Duration::from_millis(50));
    let blob = bench.blob(&origin);
    let range = [ByteRange::between(0, 4096)];
    origin.set(Mood::Fails);
    let [first, joined] = bench
        .reactor
        .block_on(async {
            let mut first = Box::pin(blob.fetch(&range));
            assert!(futures_util::poll!(first.as_mut()).is_pending());
            bench.until_asked(&origin, 1).await;
            origin.set(Mood::Good);
            let (first, joined) = futures_util::future::join(first, blob.fetch(&range)).await;
            [first, joined]
        })
        .unwrap();
    assert!(first.is_err() && joined.is_ok(), "{first:?} {joined:?}");
    assert_eq!(origin.asked().len(), 2);
}

#[test]
fn a_blob_that_is_whole_and_not_that_of_its_digest_is_forgotten_and_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let origin = TestOrigin::new(MIB + 5, 24, Duration::ZERO);
    let bench = Bench::new(config(dir.path()));
    let blob = bench.blob(&origin);
    let [before, after] = [(), ()].map(|()| Arc::new(Refutation::default()));
    blob.watch(&before);
    origin.set(Mood::Lies);
    bench.read(&blob, 0, 4096).unwrap();
    bench.settle(&blob);
    origin.set(Mood::Good);
    bench.read(&blob, 4096, MIB + 5 - 4096).unwrap();
    bench.until("all of it is forgotten", || blob.present_bytes() == 0 && before.blob().is_some());
    assert_eq!(before.blob(), Some(&*origin.digest), "who has read of it hears of it");
    blob.watch(&after);
    assert!(bench.read(&blob, 0, MIB + 5).unwrap() == origin.content);
    bench.until("it was verified", || blob.entry().ledger.is_verified());
    assert!(blob.is_complete());
    assert_eq!(after.blob(), None);
    assert_eq!(before.generation(), 1);
    // Whoever stayed hears of the next time too.
    origin.set(Mood::Lies);
    assert!(blob.invalidate(ByteRange::between(0, 4096)));
    bench.read(&blob, 0, 4096).unwrap();
    bench.until("it is forgotten again", || blob.present_bytes() == 0 && after.generation() == 1);
    assert_eq!(before.generation(), 2);
}

#[test]
fn a_blob_that_was_verified_is_not_hashed_again_until_something_of_it_was_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let origin = TestOrigin::new(MIB, 25, Duration::ZERO);
    {
        let bench = Bench::new(config(dir.path()));
        let blob = bench.blob(&origin);
        bench.read(&blob, 0, MIB).unwrap();
        bench.until("it was verified", || blob.entry().ledger.is_verified());
        bench.until("that is on disk", || !blob.entry().verifying.load(std::sync::atomic::Ordering::Acquire));
    }
    let bench = Bench::new(config(dir.path()));
    let blob = bench.blob(&origin);
    assert!(blob.entry().ledger.is_verified(), "remembered");
    // What comes back is looked at together with the rest.
    assert!(blob.invalidate(ByteRange::between(0, 4096)));
    assert!(!blob.entry().ledger.is_verified());
    origin.set(Mood::Lies);
    bench.read(&blob, 0, 4096).unwrap();
    bench.until("the lie is found", || blob.present_bytes() == 0);
}

#[test]
fn a_fetch_that_panics_leaves_nothing_for_others_to_wait_for() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 22, Duration::ZERO);
    let blob = bench.blob(&origin);
    origin.set(Mood::Panics);
    bench.reactor.block_on(blob.fetch(&[ByteRange::between(0, 4096)])).unwrap().unwrap();
    bench.settle(&blob);
    origin.set(Mood::Good);
    assert!(bench.read(&blob, 0, 4096).unwrap() == origin.content[..4096]);
    bench.settle(&blob);
    assert!(blob.present_bytes() > 0, "what is fetched now is kept");
}

#[test]
fn a_sync_that_cannot_reach_the_disk_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 23, Duration::ZERO);
    let blob = bench.blob(&origin);
    bench.read(&blob, 0, 4096).unwrap();
    bench.settle(&blob);
    // As a peer that is stopped while it holds the maps: no mark can become durable.
    let other = Bench::new(config(dir.path()));
    let held = other.cache.shared.locks(&blob.entry().key).maps().unwrap().unwrap();
    assert!(bench.reactor.block_on(bench.cache.sync()).unwrap().is_err());
    drop(held);
    bench.sync();
}

#[test]
fn wrong_bytes_are_forgotten_in_memory_and_on_disk_and_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let origin = TestOrigin::new(MIB, 13, Duration::ZERO);
    {
        let bench = Bench::new(config(dir.path()));
        let blob = bench.blob(&origin);
        origin.set(Mood::Lies);
        assert_eq!(bench.read(&blob, 8192, 4096).unwrap(), [0x55; 4096]);
        bench.settle(&blob);
        bench.sync();
        assert!(blob.invalidate(ByteRange::between(8192, 12_288)));
        assert!(
            blob.invalidate(ByteRange::between(8192, 12_288)),
            "whoever was not the first may read again"
        );
        bench.sync();
    }
    origin.set(Mood::Good);
    let bench = Bench::new(config(dir.path()));
    let blob = bench.blob(&origin);
    assert!(bench.read(&blob, 8192, 4096).unwrap() == origin.content[8192..12_288]);
}

#[test]
fn wrong_bytes_still_in_flight_are_not_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 14, Duration::from_millis(50));
    let blob = bench.blob(&origin);
    origin.set(Mood::Lies);
    bench
        .reactor
        .block_on(async {
            let mut dest = [0; 4096];
            let mut read = std::pin::pin!(blob.read(&bench.reactor, 0, &mut dest));
            assert!(futures_util::poll!(read.as_mut()).is_pending());
            assert!(blob.invalidate(ByteRange::between(0, 4096)));
        })
        .unwrap();
    origin.set(Mood::Good);
    assert!(bench.read(&blob, 0, 4096).unwrap() == origin.content[..4096]);
    bench.reactor.block_on(bench.reactor.sleep(Duration::from_millis(150))).unwrap();
    assert!(bench.read(&blob, 0, 4096).unwrap() == origin.content[..4096]);
}

#[test]
fn a_direct_read_counts_only_where_its_bytes_were_there_all_the_while() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 15, Duration::ZERO);
    let blob = bench.blob(&origin);
    let range = ByteRange::between(8192, 12_288);
    assert_eq!(blob.begin_direct(range), None, "nothing is there yet");
    assert!(bench.read(&blob, 0, MIB).unwrap() == origin.content);
    // A read may be answered before its bytes are on disk.
    let there = || async {
        loop {
            match blob.begin_direct(range) {
                Some(mark) => return mark,
                None => bench.reactor.sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let mark = bench.reactor.block_on(there()).unwrap();
    if let Some(file) = blob.file() {
        let mut direct = [0; 4096];
        rustix::io::pread(file, &mut direct, range.start()).unwrap();
        assert!(direct == origin.content[8192..12_288]);
    }
    assert!(blob.end_direct(range, mark));
    let mark = blob.begin_direct(range).unwrap();
    assert!(blob.invalidate(range));
    assert!(!blob.end_direct(range, mark));
    assert_eq!(blob.begin_direct(range), None);
}

/// A memory file system of its own, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &std::ffi::CStr) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount(c"tmpfs", dir.path(), c"tmpfs", flags, size) {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                skipped(&format!("mounting a small tmpfs needs root ({error})"));
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_makes_reads_uncached_and_room_makes_them_cached_again() {
    let Some(disk) = SmallDisk::new(c"size=2m,mode=700") else { return };
    let bench = Bench::new(config(disk.0.path()));
    let origin = TestOrigin::new(4 * MIB, 17, Duration::ZERO);
    let blob = bench.blob(&origin);
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![1; MIB]).unwrap();
    for offset in (0..4 * MIB).step_by(100_000) {
        let len = 100_000.min(4 * MIB - offset);
        assert!(bench.read(&blob, offset, len).unwrap() == origin.content[offset..offset + len]);
    }
    bench.settle(&blob);
    assert!(bench.cache.metrics().write_errors.get() >= 1);
    assert!(!blob.is_complete());
    let before = blob.present_bytes();
    std::fs::remove_file(&filler).unwrap();
    bench.until("the disk is written again", || {
        bench.read(&blob, 3 * MIB, MIB / 4).unwrap();
        blob.present_bytes() > before
    });
    assert!(bench.read(&blob, 0, 4 * MIB).unwrap() == origin.content);
}

#[test]
fn a_read_that_waits_for_a_registry_says_for_which_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 20, Duration::ZERO);
    let blob = bench.blob(&origin);
    origin.set(Mood::Hangs);
    let told = Rc::new(WaitsFor::default());
    let mut dest = [0; 4096];
    let mut read = Box::pin(blob.read(&bench.reactor, 0, &mut dest));
    let mut driven = Box::pin(told.drive(read.as_mut()));
    let text = bench.reactor.block_on(async {
        assert!(poll!(driven.as_mut()).is_pending());
        told.text()
    });
    let text = text.unwrap().unwrap();
    assert!(text.starts_with("the registry: ") && text.ends_with(origin.name()), "{text}");
}
