//! Many readers on several reactors, with and without somebody who takes grains away under them.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;

use super::*;
use crate::{block::ByteRange, source::Readiness};

const SIZE: usize = 4 * MIB + 321;

/// Starts `tasks` readers of random ranges on a reactor of their own; the future gives what went wrong, if anything.
fn readers(
    thread: &ReactorThread,
    blob: &Arc<CachedBlob>,
    origin: &Arc<TestOrigin>,
    (tasks, rounds): (u64, usize),
    stop: &Arc<AtomicBool>,
) -> futures_channel::oneshot::Receiver<Vec<Result<(), String>>> {
    let (blob, origin, stop) = (Arc::clone(blob), Arc::clone(origin), Arc::clone(stop));
    thread.handle().call(move |reactor| async move {
        let read = |seed| {
            let (reactor, blob, origin, stop) = (&reactor, &blob, &origin, &stop);
            async move {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..rounds {
                    let offset = random.usize(0..SIZE);
                    let len = random.usize(1..100_000).min(SIZE - offset);
                    let mut dest = vec![0; len];
                    let ready = blob.try_read(offset as u64, &mut dest).map_err(|error| error.to_string())?;
                    if ready == Readiness::WouldWait {
                        let read = blob.read(reactor, offset as u64, &mut dest).await;
                        read.map_err(|error| error.to_string())?;
                    }
                    if dest != origin.content[offset..offset + len] {
                        return Err(format!("wrong bytes in {len} at {offset}"));
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    reactor.sleep(Duration::ZERO).await;
                }
                Ok(())
            }
        };
        join_all((0..tasks).map(read)).await
    })
}

#[test]
fn readers_on_two_reactors_share_each_fetch() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(SIZE, 60, Duration::from_millis(3));
    // Two devices of one image.
    let blobs = [bench.blob(&origin), bench.blob(&origin)];
    let never = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> =
        (0..2).map(|_| ReactorThread::start("io", ReactorConfig::default(), || Ok(())).unwrap()).collect();
    let running: Vec<_> = (threads.iter().zip(&blobs))
        .map(|(thread, blob)| readers(thread, blob, &origin, (8, 60), &never))
        .collect();
    for results in bench.reactor.block_on(join_all(running)).unwrap() {
        results.unwrap().into_iter().collect::<Result<Vec<()>, _>>().unwrap();
    }
    bench.settle(&blobs[0]);
    let asked = origin.bytes_asked();
    // Small present gaps between misses are fetched with them.
    assert!(asked <= SIZE as u64 * 23 / 20, "{asked} bytes for a blob of {SIZE}");
    assert!(bench.cache.metrics().joined.get() > 0);
}

#[test]
fn readers_never_see_the_holes_that_eviction_makes_under_them() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(SIZE, 61, Duration::from_millis(1));
    let blob = bench.blob(&origin);
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> =
        (0..2).map(|_| ReactorThread::start("io", ReactorConfig::default(), || Ok(())).unwrap()).collect();
    let running: Vec<_> =
        threads.iter().map(|thread| readers(thread, &blob, &origin, (4, usize::MAX), &stop)).collect();
    let mut random = fastrand::Rng::with_seed(9);
    for _ in 0..400 {
        let start = random.u64(0..1000);
        let middle = start + random.u64(1..30);
        let holes = [start..middle, middle..middle + random.u64(1..30)];
        // On the cache's thread, as eviction is.
        let entry = Arc::clone(blob.entry());
        let punched =
            bench.cache.shared.handle.call(move |reactor| async move {
                super::super::evict::punch(&entry, &reactor, &holes).await
            });
        bench.reactor.block_on(punched).unwrap().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for results in bench.reactor.block_on(join_all(running)).unwrap() {
        results.unwrap().into_iter().collect::<Result<Vec<()>, _>>().unwrap();
    }
    assert!(bench.cache.metrics().evicted_bytes.get() > 0);
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_fetch_that_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 62, Duration::from_millis(40));
    let blob = bench.blob(&origin);
    bench
        .reactor
        .block_on(async {
            let mut dest = [0; 8192];
            let mut read = std::pin::pin!(blob.read(&bench.reactor, 0, &mut dest));
            assert!(futures_util::poll!(read.as_mut()).is_pending());
        })
        .unwrap();
    bench.settle(&blob);
    let mut dest = [0; 8192];
    assert_eq!(blob.try_read(0, &mut dest).unwrap(), Readiness::Done);
    assert!(dest == origin.content[..8192]);
    assert_eq!(origin.asked().len(), 1);
}

#[test]
fn memory_between_origin_and_disk_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(CacheConfig { flight_bytes: 4 << 20, fetches: 100, ..config(dir.path()) });
    let origin = TestOrigin::new(32 * MIB, 63, Duration::from_millis(5));
    let blob = bench.blob(&origin);
    bench.reactor.block_on(blob.fetch(&[ByteRange::between(0, 32 << 20)])).unwrap().unwrap();
    bench.settle(&blob);
    assert!(blob.is_complete());
    assert!(origin.most_at_once.load(Ordering::SeqCst) <= 4, "four parts of 1 MiB");
}

#[test]
fn a_read_that_waits_for_the_disk_notices_that_its_grains_were_taken_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(config(dir.path()));
    let origin = TestOrigin::new(MIB, 64, Duration::ZERO);
    let blob = bench.blob(&origin);
    bench.read(&blob, 0, MIB).unwrap();
    bench.settle(&blob);
    bench.sync();
    let entry = blob.entry();
    rustix::fs::fadvise(&**entry.files.data.file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let range = ByteRange::between(65_536, 69_632);
    let noticed = bench.reactor.block_on(async {
        let mut dest = [0; 4096];
        let mut hit = Box::pin(entry.hit(&bench.reactor, range, &mut dest));
        if futures_util::poll!(hit.as_mut()).is_ready() {
            skipped(&format!("in part: {} lies in memory, so no read of it waits", dir.path().display()));
            return true;
        }
        // The read is not submitted before this thread's next turn: the hole and the return of the grains come first.
        let (sender, receiver) = std::sync::mpsc::channel();
        let (blob, held) = (Arc::clone(&blob), origin.content.slice(65_536..69_632));
        bench.cache.shared.handle.spawn(move |reactor| {
            let reactor = reactor.clone();
            async move {
                let entry = blob.entry();
                let run = 16..17;
                let punched = super::super::evict::punch(entry, &reactor, std::slice::from_ref(&run)).await;
                assert_eq!(punched, 4096);
                // As a refetch does, last of all; the bytes in the file are not there yet.
                entry.ledger.presence().set(&(16..17));
                sender.send(held).unwrap();
            }
        });
        let held = receiver.recv().unwrap();
        let trusted = hit.as_mut().await;
        drop(hit);
        entry.ledger.refute(&(16..17));
        !trusted || dest[..] == held[..]
    });
    assert!(noticed.unwrap(), "zeroes of a hole were taken for data");
    assert!(bench.read(&blob, 65_536, 4096).unwrap() == origin.content[65_536..69_632]);
}
