//! A cache put through all that it asks of a file system, in a folder that the caller chooses.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "support code of tests panics where a test would"
)]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sha2::{Digest, Sha256, Sha512};
use stratabd::{
    block::ByteRange,
    cache::{Cache, CacheConfig, CachedBlob},
    reactor::{Reactor, ReactorConfig, ReactorThread},
    source::{BlobSource, BoxFuture, Origin, Readiness, SourceError, Urgency},
};

const SIZE: usize = (12 << 20) + 1234;

#[derive(Debug)]
struct Memory {
    content: Bytes,
    asked_bytes: AtomicU64,
}

impl Origin for Memory {
    fn size_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn name(&self) -> &str {
        "memory"
    }

    fn read_range(&self, range: ByteRange, _: Urgency) -> BoxFuture<'static, Result<Bytes, SourceError>> {
        self.asked_bytes.fetch_add(range.len(), Ordering::SeqCst);
        let [start, end] = [range.start(), range.end()].map(|offset| usize::try_from(offset).unwrap());
        Box::pin(std::future::ready(Ok(self.content.slice(start..end))))
    }
}

struct Life {
    cache: Cache,
    reactor: Reactor,
    blob: Arc<CachedBlob>,
    _thread: ReactorThread,
}

fn open(dir: &Path, origin: &Arc<Memory>, digest: &str, limit_bytes: u64) -> Life {
    let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(())).unwrap();
    let config =
        CacheConfig { sync_interval: Duration::from_millis(20), ..CacheConfig::new(dir, limit_bytes) };
    let cache = Cache::open(config, thread.handle()).unwrap();
    let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
    let blob = reactor.block_on(cache.blob(digest, Arc::clone(origin) as _)).unwrap().unwrap();
    Life { cache, reactor, blob, _thread: thread }
}

impl Life {
    fn read(&self, origin: &Memory, offset: usize, len: usize) {
        let mut dest = vec![0; len];
        if self.blob.try_read(offset as u64, &mut dest).unwrap() == Readiness::WouldWait {
            self.reactor.block_on(self.blob.read(&self.reactor, offset as u64, &mut dest)).unwrap().unwrap();
        }
        assert!(dest == origin.content[offset..offset + len], "wrong bytes in {len} at {offset}");
    }

    fn read_all(&self, origin: &Memory, pause: Duration) {
        for offset in (0..SIZE).step_by(100_000) {
            self.read(origin, offset, 100_000.min(SIZE - offset));
            self.reactor.block_on(self.reactor.sleep(pause)).unwrap();
        }
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..2000 {
            if done() {
                return;
            }
            self.reactor.block_on(self.reactor.sleep(Duration::from_millis(5))).unwrap();
        }
        panic!("never came to be: {what}");
    }
}

/// Reads a blob through a cache in `dir`, cold, warm and reopened; syncs it, refutes a part, and shrinks it by holes and
/// by removal. Needs 32 MiB of room.
///
/// # Panics
/// Where a byte is wrong, or the file system lacks what a cache needs.
pub(crate) fn exercise_cache(dir: &Path) {
    let mut random = fastrand::Rng::with_seed(1);
    let content: Bytes = (0..SIZE).map(|_| random.u8(1..)).collect();
    // Two names of one content, which is held against its digest when it is whole.
    let name = |algorithm: &str, hash: &[u8]| {
        let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{algorithm}:{digits}")
    };
    let [one, other] = [name("sha256", &Sha256::digest(&content)), name("sha512", &Sha512::digest(&content))];
    let origin = Arc::new(Memory { content, asked_bytes: AtomicU64::new(0) });
    let roomy = 1 << 30;
    {
        let life = open(dir, &origin, &one, roomy);
        life.read_all(&origin, Duration::ZERO);
        life.until("all is present", || life.blob.is_complete());
        for _ in 0..200 {
            let offset = random.usize(0..SIZE);
            life.read(&origin, offset, random.usize(1..50_000).min(SIZE - offset));
        }
        life.reactor.block_on(life.cache.sync()).unwrap().unwrap();
        assert_eq!(life.cache.metrics().write_errors.get(), 0);
        assert_eq!(origin.asked_bytes.load(Ordering::SeqCst), SIZE as u64, "nothing is fetched twice");
    }
    {
        let life = open(dir, &origin, &one, roomy);
        assert!(life.blob.is_complete(), "what was fetched is there again");
        life.read_all(&origin, Duration::ZERO);
        assert_eq!(origin.asked_bytes.load(Ordering::SeqCst), SIZE as u64);
        assert!(life.blob.invalidate(ByteRange::between(1 << 20, (1 << 20) + 8192)));
        assert!(!life.blob.is_complete());
        life.read(&origin, (1 << 20) - 100, 20_000);
        life.until("the refuted part has come back", || life.blob.is_complete());
    }
    {
        // Holes: the blob is open and larger than the limit.
        let life = open(dir, &origin, &one, 6 << 20);
        life.read_all(&origin, Duration::from_millis(3));
        life.until("cold regions have gone", || life.cache.metrics().evicted_bytes.get() >= 4 << 20);
        life.read_all(&origin, Duration::ZERO);
    }
    // Removal: another blob is open, and this one is not.
    let life = open(dir, &origin, &other, 6 << 20);
    life.read_all(&origin, Duration::from_millis(3));
    life.until("the other blob has gone", || {
        life.reactor.block_on(life.cache.known_size(&one)).unwrap().unwrap().is_none()
    });
}
