//! What reading scattered files costs through the cache: requests, bytes and time, beside a fixed unit of 256 KiB.
//!
//! Fifteen megabytes of files, log-normal in size, lie scattered over a blob of 900 MB. Each file is read front to back, in
//! the requests that Linux makes of it (counted on ext4 with 128 KiB of readahead): for a program that reads with a large
//! buffer, as `cat` and most loaders do, one for up to 256 KiB; for one that reads 4 KiB at a time, windows from 16 KiB that
//! double up to 128 KiB. The origin takes 20 ms a request and any number at once. The peer fetches
//! aligned units of 256 KiB, one request at a time however many readers there are, as the engine does whose figures the
//! project compares itself with. For each number of readers it says whether two aims are met: at most 2.0 bytes fetched
//! for a byte read, and at most half of the peer's time. One reader alone cannot meet the second: nobody can foresee
//! where it reads next, so that it waits for one trip a file. What that costs at least is printed, too.
//! Run as `cargo bench --bench cache_workload [-- READERS...]`.

use std::{
    collections::{HashSet, VecDeque},
    error::Error,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{future::join_all, lock::Mutex};
use stratabd::{
    block::ByteRange,
    cache::{Cache, CacheConfig, CachedBlob},
    reactor::{Reactor, ReactorConfig, ReactorThread},
    source::{BlobSource, BoxFuture, Origin, Readiness, SourceError, Urgency},
};

const BLOB_BYTES: u64 = 900_000_000;
const WANTED_BYTES: u64 = 15_000_000;
const LATENCY: Duration = Duration::from_millis(20);
const PEER_UNIT_BYTES: u64 = 256 << 10;
const KIB: u64 = 1024;

/// Bytes fetched for a byte read, and our share of the peer's time, that are aimed at.
const MOST_FETCHED: f64 = 2.0;
const MOST_TIME: f64 = 0.5;

type Failure = Box<dyn Error>;

/// An origin whose byte at each offset follows from the offset.
#[derive(Debug)]
struct Far {
    clock: ReactorThread,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Far {
    fn new() -> Result<Arc<Self>, Failure> {
        let clock = ReactorThread::start("origin", ReactorConfig::default(), || Ok(()))?;
        Ok(Arc::new(Self { clock, requests: AtomicU64::new(0), bytes: AtomicU64::new(0) }))
    }

    fn counts(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

fn byte_at(offset: u64) -> u8 {
    let [first, ..] = (offset ^ (offset >> 9)).to_le_bytes();
    first
}

impl Origin for Far {
    fn size_bytes(&self) -> u64 {
        BLOB_BYTES
    }

    fn name(&self) -> &str {
        "far"
    }

    fn read_range(&self, range: ByteRange, _: Urgency) -> BoxFuture<'static, Result<Bytes, SourceError>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(range.len(), Ordering::Relaxed);
        let answer = self.clock.handle().call(move |reactor| async move {
            reactor.sleep(LATENCY).await;
            (range.start()..range.end()).map(byte_at).collect::<Bytes>()
        });
        Box::pin(async move { Ok(answer.await.unwrap_or_default()) })
    }
}

/// Files as (start, size), in the order in which they are read.
fn files(seed: u64) -> Vec<(u64, u64)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut files, mut total) = (Vec::new(), 0);
    while total < WANTED_BYTES {
        // The sum of twelve is normal enough; median 14 KiB, mean about 40 KiB.
        let normal: f64 = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
        let kib = (14.0 * (1.45 * normal).exp()).clamp(1.0, 2048.0);
        let size = (1..=2048_u32).find(|size| f64::from(*size) >= kib).map_or(1, u64::from) * KIB;
        files.push((0, size));
        total += size;
    }
    let slot = BLOB_BYTES / files.len() as u64;
    for ((start, size), index) in files.iter_mut().zip(0..) {
        // One in each slot, unless it is larger than that: files of a file system do not overlap.
        *start = (index * slot + random.u64(0..slot.saturating_sub(*size).max(1))) / 4096 * 4096;
    }
    random.shuffle(&mut files);
    files
}

/// How a program reads its files.
#[derive(Clone, Copy)]
struct Pattern {
    name: &'static str,
    /// Bytes of the first request of a file, and of the largest; they double in between.
    first: u64,
    largest: u64,
}

const PATTERNS: [Pattern; 2] = [
    Pattern { name: "large buffer", first: 256 * KIB, largest: 256 * KIB },
    Pattern { name: "4 KiB at a time", first: 16 * KIB, largest: 128 * KIB },
];

impl Pattern {
    /// The kernel's requests for one file.
    fn windows(self, start: u64, size: u64) -> Vec<ByteRange> {
        let (mut at, mut window, mut windows) = (0, self.first, Vec::new());
        while at < size {
            let end = (at + window).min(size).min(BLOB_BYTES - start);
            windows.push(ByteRange::between(start + at, start + end));
            at += window;
            window = (window * 2).min(self.largest);
        }
        windows
    }
}

struct Figures {
    requests: u64,
    fetched: u64,
    took: Duration,
}

/// Reads all files, `readers` at a time.
async fn run<F: Future<Output = Result<(), Failure>>>(
    files: &[(u64, u64)],
    pattern: Pattern,
    readers: usize,
    read: impl Fn(ByteRange) -> F,
) -> Result<Duration, Failure> {
    let queue = Rc::new(std::cell::RefCell::new(files.iter().copied().collect::<VecDeque<_>>()));
    let began = Instant::now();
    let workers = (0..readers).map(|_| async {
        loop {
            let next = queue.borrow_mut().pop_front();
            let Some((start, size)) = next else { return Ok(()) };
            for window in pattern.windows(start, size) {
                read(window).await?;
            }
        }
    });
    join_all(workers).await.into_iter().collect::<Result<(), Failure>>()?;
    Ok(began.elapsed())
}

fn peer(
    reactor: &Reactor,
    files: &[(u64, u64)],
    pattern: Pattern,
    readers: usize,
) -> Result<Figures, Failure> {
    let origin = Far::new()?;
    let units = Mutex::new(HashSet::new());
    let read = |range: ByteRange| {
        let (units, origin) = (&units, &origin);
        async move {
            for unit in range.start() / PEER_UNIT_BYTES..range.end().div_ceil(PEER_UNIT_BYTES) {
                // One request at a time: the lock is held while it is under way.
                let mut units = units.lock().await;
                if units.insert(unit) {
                    let start = unit * PEER_UNIT_BYTES;
                    let range = ByteRange::between(start, (start + PEER_UNIT_BYTES).min(BLOB_BYTES));
                    origin.read_range(range, Urgency::Demand).await?;
                }
            }
            Ok(())
        }
    };
    let took = reactor.block_on(run(files, pattern, readers, read))??;
    let (requests, fetched) = origin.counts();
    Ok(Figures { requests, fetched, took })
}

fn ours(
    reactor: &Reactor,
    files: &[(u64, u64)],
    pattern: Pattern,
    readers: usize,
) -> Result<Figures, Failure> {
    let origin = Far::new()?;
    let dir = tempfile::tempdir()?;
    let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(()))?;
    let cache = Cache::open(CacheConfig::new(dir.path(), 10 << 30), thread.handle())?;
    let digest = format!("sha256:{}", "ab".repeat(32));
    let blob: Arc<CachedBlob> = reactor.block_on(cache.blob(&digest, Arc::clone(&origin) as _))??;
    let read = |range: ByteRange| {
        let blob = &blob;
        async move {
            let mut dest = vec![0; usize::try_from(range.len())?];
            if blob.try_read(range.start(), &mut dest)? == Readiness::WouldWait {
                blob.read(reactor, range.start(), &mut dest).await?;
            }
            let right = dest.iter().zip(range.start()..).all(|(byte, offset)| *byte == byte_at(offset));
            if right { Ok(()) } else { Err(Failure::from("wrong bytes")) }
        }
    };
    let took = reactor.block_on(run(files, pattern, readers, read))??;
    let (requests, fetched) = origin.counts();
    drop(blob);
    Ok(Figures { requests, fetched, took })
}

fn main() -> Result<(), Failure> {
    let mut readers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    if readers.is_empty() {
        readers = vec![1, 2, 4, 8];
    }
    let files = files(1);
    let wanted: u64 = files.iter().map(|(_, size)| size).sum();
    println!(
        "{} files, {:.1} MB of {} MB, 20 ms a request; the peer sends one request at a time",
        files.len(),
        wanted as f64 / 1e6,
        BLOB_BYTES / 1_000_000
    );
    let trips = LATENCY * u32::try_from(files.len())?;
    println!("one trip a file, which one reader cannot do without: {:.2} s", trips.as_secs_f64());
    println!(
        "reads with      readers | unit 256 KiB: requests  MB  fetched/read  s | ours: requests  MB  fetched/read  s | time ratio, aims"
    );
    let reactor = Reactor::new(&ReactorConfig::default())?;
    for (pattern, readers) in
        PATTERNS.iter().flat_map(|pattern| readers.iter().map(move |count| (*pattern, *count)))
    {
        let peer = peer(&reactor, &files, pattern, readers)?;
        let ours = ours(&reactor, &files, pattern, readers)?;
        let row = |figures: &Figures| {
            let (mb, ratio) = (figures.fetched as f64 / 1e6, figures.fetched as f64 / wanted as f64);
            format!("{:5} {mb:6.1} {ratio:5.2} {:6.2}", figures.requests, figures.took.as_secs_f64())
        };
        let time = ours.took.as_secs_f64() / peer.took.as_secs_f64();
        let verdict = |value: f64, most: f64| if value <= most { "met" } else { "MISSED" };
        println!(
            "{:15} {readers:7} | {} | {} | {time:.2}, time <= {MOST_TIME} {}, fetched/read <= {MOST_FETCHED} {}",
            pattern.name,
            row(&peer),
            row(&ours),
            verdict(time, MOST_TIME),
            verdict(ours.fetched as f64 / wanted as f64, MOST_FETCHED),
        );
    }
    Ok(())
}
