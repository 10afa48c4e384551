//! Blobs that are slow, damaged or false.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use super::blobs::{Asked, Behaviour, MemoryBlob};
use super::fixtures::{Fixture, tar_members};
use super::reactor;
use futures_util::{future::Either, pin_mut};
use stratabd::{
    block::{BlockDevice, BlockError, BlockQueue, ErrorKind},
    image::{Image, ImageOptions, SourceClass},
    reactor::{Reactor, ReactorConfig},
    source::BlobSource,
};

pub(crate) const LAYER: &str = "ext4/L2.z4k";

pub(crate) fn open(reactor: &Reactor, layers: Vec<Arc<dyn BlobSource>>, cache_bytes: u64) -> Image {
    let options = ImageOptions { decoded_cache_bytes: cache_bytes, ..ImageOptions::default() };
    reactor.block_on(Image::open(reactor, layers, options)).unwrap().unwrap()
}

/// A range of the device whose data is in the middle of the layer's file, away from what opening reads.
pub(crate) fn middle(reactor: &Reactor, image: &Image) -> u64 {
    let queue = image.open_queue(reactor).unwrap();
    let mut dest = vec![0; 4096];
    let mut data = Vec::new();
    for offset in (0..64 << 20).step_by(4096) {
        reactor.block_on(queue.read(offset, &mut dest)).unwrap().unwrap();
        if dest.iter().any(|byte| *byte != 0) {
            data.push(offset);
        }
    }
    data[data.len() / 2]
}

/// The good bytes of the device there, and the file with every block but the first and the last ones damaged.
fn good_and_damaged(reactor: &Reactor) -> (u64, Vec<u8>, Vec<u8>) {
    let file = Fixture::named(LAYER).read();
    let image = open(reactor, vec![MemoryBlob::new(LAYER, file.clone(), Behaviour::Warm)], 0);
    let at = middle(reactor, &image);
    let queue = image.open_queue(reactor).unwrap();
    let mut good = vec![0; 4096];
    reactor.block_on(queue.read(at, &mut good)).unwrap().unwrap();
    let mut damaged = file;
    let end = damaged.len() - 40_000;
    damaged[5000..end].iter_mut().step_by(64).for_each(|byte| *byte ^= 1);
    (at, good, damaged)
}

pub(crate) fn read(reactor: &Reactor, image: &Image, at: u64) -> Result<Vec<u8>, BlockError> {
    let queue = image.open_queue(reactor).unwrap();
    let mut dest = vec![0xaa; 4096];
    reactor.block_on(queue.read(at, &mut dest)).unwrap().map(|()| dest)
}

#[test]
fn damaged_blocks_that_heal_when_forgotten_are_read_again() {
    let reactor = reactor();
    let (at, good, damaged) = good_and_damaged(&reactor);
    for behaviour in [Behaviour::Warm, Behaviour::Cold] {
        for times in [1, 2] {
            let source = MemoryBlob::new(LAYER, Fixture::named(LAYER).read(), behaviour);
            let image = open(&reactor, vec![source.clone()], 1 << 20);
            (0..times).for_each(|_| source.damage(damaged.clone()));
            assert!(read(&reactor, &image, at).unwrap() == good, "{behaviour:?}, damaged {times} times");
            assert!(image.metrics().damaged_blocks.get() >= times);
        }
    }
}

#[test]
fn damage_that_comes_back_fails_the_read_after_three_attempts() {
    let reactor = reactor();
    let (at, _, damaged) = good_and_damaged(&reactor);
    for behaviour in [Behaviour::Warm, Behaviour::Cold] {
        let source = MemoryBlob::new(LAYER, Fixture::named(LAYER).read(), behaviour);
        let image = open(&reactor, vec![source.clone()], 0);
        (0..10).for_each(|_| source.damage(damaged.clone()));
        let error = read(&reactor, &image, at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains(LAYER), "{error}");
        assert!(source.invalidations.load(Ordering::Relaxed) <= 3);
        assert_eq!(image.reads().errors.get(), 1);
    }
}

#[test]
fn a_source_that_always_lies_fails_the_read_in_bounded_time() {
    let reactor = reactor();
    let (at, _, damaged) = good_and_damaged(&reactor);
    let source = MemoryBlob::new(LAYER, damaged, Behaviour::Liar);
    let image = open(&reactor, vec![source.clone()], 0);
    let before = source.log.lock().unwrap().len();
    assert_eq!(read(&reactor, &image, at).unwrap_err().kind(), ErrorKind::Io);
    let asked = source.log.lock().unwrap().len() - before;
    assert!(asked <= 8, "{asked} requests for one block or two");
}

#[test]
fn a_block_that_is_damaged_at_its_origin_costs_a_request_three_attempts_and_the_others_one() {
    const LEN: usize = 64 << 10;
    let reactor = reactor();
    let mut damaged = Fixture::named(LAYER).read();
    let somewhere = damaged.len() / 2;
    damaged[somewhere] ^= 1;
    let source = MemoryBlob::new(LAYER, damaged, Behaviour::FarLiar);
    let image = open(&reactor, vec![source.clone()], 0);
    // The request that has the damaged block.
    let queue = image.open_queue(&reactor).unwrap();
    let mut dest = vec![0; LEN];
    let at = (0..64_u64 << 20)
        .step_by(LEN)
        .find(|at| reactor.block_on(queue.read(*at, &mut dest)).unwrap().is_err());
    let fetches =
        || source.log.lock().unwrap().iter().filter(|asked| matches!(asked, Asked::Fetch(_))).count();
    let metrics = || (image.metrics().damaged_blocks.get(), image.metrics().decoded_blocks.get());
    for pooled in [true, false] {
        source.bring_near();
        let (fetches_before, (damaged_before, decoded_before)) = (fetches(), metrics());
        let outcome = match pooled {
            true => {
                let read = queue.read_pooled(at.unwrap(), LEN, reactor.request_buffers());
                reactor.block_on(read).unwrap().map(drop)
            }
            false => reactor.block_on(queue.read(at.unwrap(), &mut dest)).unwrap(),
        };
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Io);
        let (damaged, decoded) = metrics();
        assert_eq!(damaged - damaged_before, 3, "pooled: {pooled}");
        assert_eq!(fetches() - fetches_before, 2, "pooled: {pooled}");
        assert!(decoded - decoded_before <= 3 * LEN as u64 / 4096, "pooled: {pooled}");
    }
}

#[test]
fn opening_heals_too_and_gives_up_after_three_attempts() {
    let reactor = reactor();
    let good = Fixture::named(LAYER).read();
    let mut damaged = good.clone();
    let last = damaged.len() - 600;
    damaged[last] ^= 1;
    let source = MemoryBlob::new(LAYER, good.clone(), Behaviour::Warm);
    source.damage(damaged.clone());
    open(&reactor, vec![source], 0);
    let source = MemoryBlob::new(LAYER, damaged, Behaviour::Liar);
    let options = ImageOptions::default();
    let layers: Vec<Arc<dyn BlobSource>> = vec![source.clone()];
    assert!(reactor.block_on(Image::open(&reactor, layers, options)).unwrap().is_err());
    let reads = source.log.lock().unwrap().iter().filter(|asked| matches!(asked, Asked::Read(_))).count();
    assert!(reads <= 9, "{reads} reads");
}

#[test]
fn a_hung_layer_holds_up_only_those_who_need_it() {
    let reactor = reactor();
    let archive = Fixture::named("lsmt/stack256.tar.xz").read();
    let members = tar_members(&archive);
    let lower = MemoryBlob::new("lower", members[0].to_vec(), Behaviour::Cold);
    let upper = MemoryBlob::new("upper", members[1].to_vec(), Behaviour::Cold);
    let only_lower = open(&reactor, vec![lower.clone()], 0);
    let only_upper = open(&reactor, vec![upper.clone()], 0);
    let image = open(&reactor, vec![lower.clone(), upper], 0);
    let data = |image: &Image| -> Vec<u64> {
        let blocks = (0..image.geometry().size_bytes).step_by(4096);
        blocks.filter(|at| read(&reactor, image, *at).unwrap().iter().any(|byte| *byte != 0)).collect()
    };
    let (of_lower, of_upper) = (data(&only_lower), data(&only_upper));
    let needs_lower = *of_lower.iter().find(|at| !of_upper.contains(at)).unwrap();
    let needs_upper = *of_upper.iter().find(|at| !of_lower.contains(at)).unwrap();
    lower.hanging.store(true, Ordering::Relaxed);
    let queue = image.open_queue(&reactor).unwrap();
    reactor
        .block_on(async {
            let (mut stuck_dest, mut dest) = (vec![0; 4096], vec![0; 4096]);
            let stuck = queue.read(needs_lower, &mut stuck_dest);
            pin_mut!(stuck);
            assert!(futures_util::poll!(stuck.as_mut()).is_pending());
            for _ in 0..20 {
                queue.read(needs_upper, &mut dest).await.unwrap();
            }
            let late = reactor.sleep(Duration::from_millis(20));
            pin_mut!(late);
            assert!(matches!(futures_util::future::select(stuck, late).await, Either::Right(_)));
        })
        .unwrap();
}

#[test]
fn reads_that_wait_for_a_fetch_hold_no_buffer_that_others_need() {
    let config = ReactorConfig { request_buffer_bytes: 64 << 10, ..ReactorConfig::default() };
    let reactor = Reactor::new(&config).unwrap();
    let file = Fixture::named(LAYER).read();
    let source = MemoryBlob::new("far", file.clone(), Behaviour::Cold);
    let far = open(&reactor, vec![source.clone()], 0);
    let near = open(&reactor, vec![MemoryBlob::new("near", file, Behaviour::Warm)], 0);
    let at = middle(&reactor, &near);
    let good = read(&reactor, &near, at).unwrap();
    source.hanging.store(true, Ordering::Relaxed);
    let (far_queue, near_queue) = (far.open_queue(&reactor).unwrap(), near.open_queue(&reactor).unwrap());
    let pool = reactor.request_buffers();
    reactor
        .block_on(async {
            // More than the pool has room for.
            let mut stuck: Vec<_> =
                (0..40).map(|_| Box::pin(far_queue.read_pooled(at, 4096, pool))).collect();
            for read in &mut stuck {
                assert!(futures_util::poll!(read.as_mut()).is_pending());
            }
            let mut other = Box::pin(near_queue.read_pooled(at, 4096, pool));
            let served = futures_util::poll!(other.as_mut());
            assert!(matches!(served, Poll::Ready(Ok(bytes)) if bytes[..] == good[..]), "it had to wait");
            source.hanging.store(false, Ordering::Relaxed);
            for read in stuck {
                assert!(read.await.unwrap()[..] == good[..]);
            }
        })
        .unwrap();
    assert_eq!(pool.out_bytes(), 0);
    assert_eq!(far.reads().of(SourceClass::Registry).requests.get(), 40);
}

#[test]
fn a_miss_fetches_every_layer_once_and_before_it_reads() {
    let reactor = reactor();
    let files = ["ext4/L0.z4k", "ext4/L1.z4k", "ext4/L2.z4k"];
    let sources: Vec<Arc<MemoryBlob>> = files
        .iter()
        .map(|file| MemoryBlob::new(file, Fixture::named(file).read(), Behaviour::Cold))
        .collect();
    let image =
        open(&reactor, sources.iter().map(|source| source.clone() as Arc<dyn BlobSource>).collect(), 0);
    sources.iter().for_each(|source| source.log.lock().unwrap().clear());
    let queue = image.open_queue(&reactor).unwrap();
    let mut dest = vec![0; 256 << 10];
    let before = image.metrics().decoded_blocks.get();
    reactor.block_on(queue.read(0, &mut dest)).unwrap().unwrap();
    let mut fetched = 0;
    for source in &sources {
        let log = source.log.lock().unwrap();
        let fetches = log.iter().filter(|asked| matches!(asked, Asked::Fetch(_))).count();
        assert!(fetches <= 1, "{log:?}");
        if let Some(first) = log.first() {
            assert!(matches!(first, Asked::Fetch(_)), "{log:?}");
            fetched += 1;
        }
    }
    assert!(fetched >= 1);
    // A second request decodes the same number again, since there is no cache, and none of them twice.
    let decoded = image.metrics().decoded_blocks.get() - before;
    reactor.block_on(queue.read(0, &mut dest)).unwrap().unwrap();
    assert_eq!(image.metrics().decoded_blocks.get() - before, 2 * decoded);
    assert!(decoded <= 70 * 3, "{decoded} blocks for 64 blocks of the device");
}

#[test]
fn a_second_read_comes_from_the_decoded_blocks() {
    let reactor = reactor();
    let image =
        open(&reactor, vec![MemoryBlob::new(LAYER, Fixture::named(LAYER).read(), Behaviour::Warm)], 8 << 20);
    let at = middle(&reactor, &image);
    let first = read(&reactor, &image, at).unwrap();
    let (blocks, before) =
        (image.metrics().decoded_blocks.get(), image.reads().of(SourceClass::Decoded).requests.get());
    assert_eq!(read(&reactor, &image, at).unwrap(), first);
    assert_eq!(image.metrics().decoded_blocks.get(), blocks);
    assert_eq!(image.reads().of(SourceClass::Decoded).requests.get(), before + 1);
}

#[expect(clippy::disallowed_methods, reason = "what the test waits outside of is the reactor")]
#[test]
fn the_time_of_a_read_begins_after_whatever_the_reactor_waited_for_before() {
    const PAUSE: Duration = Duration::from_millis(300);
    let reactor = reactor();
    let source = MemoryBlob::new(LAYER, Fixture::named(LAYER).read(), Behaviour::Warm);
    let image = open(&reactor, vec![source], 0);
    let queue = image.open_queue(&reactor).unwrap();
    let mut dest = vec![0; 4096];
    for _ in 0..2 {
        let reading = async {
            queue.read(0, &mut dest).await.unwrap();
            reactor.sleep(PAUSE).await;
            queue.read(0, &mut dest).await.unwrap();
        };
        reactor.block_on(reading).unwrap();
        std::thread::sleep(PAUSE);
    }
    let counted = SourceClass::ALL.map(|class| image.reads().of(class).latency.snapshot());
    assert_eq!(counted.iter().flat_map(|class| &class.buckets).sum::<u64>(), 4);
    assert!(u128::from(counted.iter().map(|class| class.sum_ns).sum::<u64>()) < PAUSE.as_nanos());
}
