//! A registry of whose answers now and then one is wrong, read by many at once through the cache.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use sha2::{Digest, Sha256};
use stratabd::{
    block::{BlockDevice, BlockQueue, ByteRange},
    cache::{Cache, CacheConfig},
    reactor::{Reactor, ReactorConfig, ReactorThread},
    source::{BlobSource, BoxFuture, Origin, SourceError, Urgency},
};

use super::{
    layer_writer::{Algorithm, lsmt_of, zfile},
    reactor,
    trouble::open,
};

const SIZE: usize = 4 << 20;

/// One answer in so many is wrong, all of it.
const WRONG_ONE_IN: u64 = 29;

/// Reads under way.
const READERS: u64 = 32;

/// A blob of a registry that is as far away as one on the same machine.
#[derive(Debug)]
struct Flaky {
    content: Bytes,
    clock: ReactorThread,
    answers: AtomicU64,
    /// The number of the first wrong answer.
    first: AtomicU64,
}

impl Flaky {
    fn new(content: Vec<u8>) -> Arc<Self> {
        let clock = ReactorThread::start("origin", ReactorConfig::default(), || Ok(())).unwrap();
        let (answers, first) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        Arc::new(Self { content: content.into(), clock, answers, first })
    }
}

impl Origin for Flaky {
    fn size_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn name(&self) -> &'static str {
        "flaky"
    }

    fn read_range(&self, range: ByteRange, _: Urgency) -> BoxFuture<'static, Result<Bytes, SourceError>> {
        let number = self.answers.fetch_add(1, Ordering::SeqCst);
        let right = self.content.slice(range.start() as usize..range.end() as usize);
        let since_first = number.checked_sub(self.first.load(Ordering::SeqCst));
        let bytes = match since_first.is_some_and(|since| since % WRONG_ONE_IN == 0) {
            true => right.iter().map(|byte| byte ^ 0x40).collect(),
            false => right,
        };
        let answer = self.clock.handle().call(move |reactor| async move {
            reactor.sleep(Duration::from_micros(200)).await;
            bytes
        });
        Box::pin(async move { Ok(answer.await.unwrap_or_default()) })
    }
}

/// Reads all of the device four times over, and says how many reads failed.
fn read_all(reactor: &Reactor, origin: &Arc<Flaky>, flat: &[u8], seed: u64) -> usize {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(())).unwrap();
    let cache = Cache::open(CacheConfig::new(dir.path(), 1 << 30), thread.handle()).unwrap();
    let hex: String = Sha256::digest(&origin.content).iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = format!("sha256:{hex}");
    let blob = reactor.block_on(cache.blob(&digest, Arc::clone(origin) as _)).unwrap().unwrap();
    let image = open(reactor, vec![blob as Arc<dyn BlobSource>], 0);
    let before = origin.answers.load(Ordering::SeqCst);
    origin.first.store(before + seed % WRONG_ONE_IN, Ordering::SeqCst);
    let queue = image.open_queue(reactor).unwrap();
    let failed = reactor.block_on(join_all((0..READERS).map(|reader| {
        let queue = &queue;
        async move {
            let mut random = fastrand::Rng::with_seed(seed * READERS + reader);
            let (mut failed, mut left) = (0, 4 * SIZE as u64 / READERS);
            while left > 0 {
                let len = random.u64(1..=8) * 4096;
                let at = random.u64(0..=(SIZE as u64 - len) / 4096) * 4096;
                match queue.read_pooled(at, len as usize, reactor.request_buffers()).await {
                    Ok(found) => assert!(found[..] == flat[at as usize..(at + len) as usize], "wrong bytes"),
                    Err(_) => failed += 1,
                }
                left = left.saturating_sub(len);
            }
            failed
        }
    })));
    origin.first.store(u64::MAX, Ordering::SeqCst);
    failed.unwrap().iter().sum()
}

/// Many requests find the same wrong answer at once: that one of them is the first to forget a block is no failure of the others.
#[test]
fn a_block_that_another_request_has_forgotten_is_asked_for_again() {
    let reactor = reactor();
    let mut random = fastrand::Rng::with_seed(1);
    let flat: Vec<u8> = (0..SIZE).map(|_| random.u8(0..16)).collect();
    let origin = Flaky::new(zfile(&lsmt_of(&flat), Algorithm::Lz4, 4096));
    let failed: usize = (0..8).map(|seed| read_all(&reactor, &origin, &flat, seed)).sum();
    // Three answers in a row may be wrong by chance: one read in thirty thousand was seen to fail.
    assert!(failed <= 2, "{failed} reads failed");
}
