//! What reads of a cached blob cost: the first of a process, which holds the bytes against their checksums, and later ones.
//!
//! A blob of 256 MiB is cached, and read by a new opening of the cache in requests of 4 KiB in random order, and in a second
//! one of 256 KiB in order. Everything lies in the page cache, so that what is told is what the processor does.
//! Run as `cargo bench --bench cache_warm`.

use std::{
    error::Error,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use stratabd::{
    block::ByteRange,
    cache::{Cache, CacheConfig},
    reactor::{Reactor, ReactorConfig, ReactorThread},
    source::{BlobSource, BoxFuture, Origin, Readiness, SourceError, Urgency},
};

const BLOB_BYTES: usize = 256 << 20;

type Failure = Box<dyn Error>;

#[derive(Debug)]
struct Memory(Bytes);

impl Origin for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn name(&self) -> &str {
        "memory"
    }

    fn read_range(&self, range: ByteRange, _: Urgency) -> BoxFuture<'static, Result<Bytes, SourceError>> {
        let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.0.slice(at(range.start())..at(range.end()));
        Box::pin(async move { Ok(bytes) })
    }
}

/// Opens the cache anew and reads all of the blob as often as `rounds` says, in the given order; how long each took.
fn read_all(
    dir: &Path,
    (digest, origin): (&str, &Arc<Memory>),
    size: usize,
    offsets: &[u64],
    rounds: usize,
) -> Result<Vec<Duration>, Failure> {
    let reactor = Reactor::new(&ReactorConfig::default())?;
    let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(()))?;
    let cache = Cache::open(CacheConfig::new(dir, 10 << 30), thread.handle())?;
    let blob = reactor.block_on(cache.blob(digest, Arc::clone(origin) as _))??;
    let mut dest = vec![0; size];
    let mut took = Vec::new();
    for _ in 0..rounds {
        let began = Instant::now();
        reactor.block_on(async {
            for offset in offsets {
                if blob.try_read(*offset, &mut dest)? == Readiness::WouldWait {
                    blob.read(&reactor, *offset, &mut dest).await?;
                }
            }
            Ok::<_, SourceError>(())
        })??;
        took.push(began.elapsed());
    }
    // Also until it has been held against its digest, which later openings need not do again.
    while !blob.is_complete() {
        reactor.block_on(reactor.sleep(Duration::from_millis(10)))?;
    }
    reactor.block_on(cache.sync())??;
    drop(blob);
    Ok(took)
}

fn main() -> Result<(), Failure> {
    let mut random = fastrand::Rng::with_seed(1);
    let content: Bytes = (0..BLOB_BYTES / 8).flat_map(|_| random.u64(..).to_le_bytes()).collect();
    let origin = Arc::new(Memory(content));
    let dir = tempfile::tempdir()?;
    let hex: String = Sha256::digest(&origin.0).iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = format!("sha256:{hex}");
    let blob = (digest.as_str(), &origin);
    let offsets =
        |size: usize| -> Vec<u64> { (0..BLOB_BYTES / size).map(|index| (index * size) as u64).collect() };
    read_all(dir.path(), blob, 256 << 10, &offsets(256 << 10), 1)?;
    for (name, size) in [("4 KiB at random", 4 << 10), ("256 KiB in order", 256 << 10)] {
        let mut order = offsets(size);
        if size == 4 << 10 {
            random.shuffle(&mut order);
        }
        let took = read_all(dir.path(), blob, size, &order, 4)?;
        let each = |took: &Duration| took.as_secs_f64() * 1e6 / order.len() as f64;
        let [first, warm @ ..] = took.as_slice() else { continue };
        let warm = warm.iter().map(each).fold(f64::MAX, f64::min);
        println!("{name:17}: first {:6.2} us a read, later {warm:6.2} us", each(first));
    }
    Ok(())
}
