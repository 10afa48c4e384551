//! What a Merkle tree costs a lazy reader: attach and scattered reads with and without one, and the time of proving.
//!
//! A layer of 192 MiB, half of which compresses, lies behind an origin that takes 20 ms a request and any number at once. Once with its
//! tree and once without, a cache that is empty opens it, then reads what a walk through all folders reads, 4 KiB each in the last
//! eighth of the layer, and then files of 4 to 64 KiB all over it. Requests, bytes and time of each are printed, and what proving costs beside
//! the checksums that the cache computes anyway. Run as `cargo bench --bench verity`; figures of requests and bytes are the same in any profile.

use std::{
    error::Error,
    fs::{self, File},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use stratabd::{
    block::ByteRange,
    cache::{Cache, CacheConfig},
    format::{
        lsmt::{LayerIdentity, UserTag},
        oci::Layer as Described,
        zfile::{Algorithm, BlockFormat},
    },
    image::Layer,
    offline::{StreamedLayer, add_tree},
    reactor::{Reactor, ReactorConfig, ReactorThread},
    source::{
        BlobSource, BoxFuture, Origin, Proof, ProofMetrics, SourceError, Urgency, VerifiedOrigin, blocks_of,
    },
};

const DEVICE_BYTES: u64 = 192 << 20;
const LATENCY: Duration = Duration::from_millis(20);
const PART_BYTES: usize = 1 << 20;

type Failure = Box<dyn Error>;

#[derive(Debug)]
struct Far {
    clock: ReactorThread,
    content: Bytes,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Far {
    fn take(&self) -> (u64, u64) {
        (self.requests.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed))
    }
}

impl Origin for Far {
    fn size_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn name(&self) -> &str {
        "far"
    }

    fn read_range(&self, range: ByteRange, _: Urgency) -> BoxFuture<'static, Result<Bytes, SourceError>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(range.len(), Ordering::Relaxed);
        let [start, end] = [range.start(), range.end()].map(|end| usize::try_from(end).unwrap_or(usize::MAX));
        let bytes = self.content.slice(start..end);
        let waited = self.clock.handle().call(|reactor| async move { reactor.sleep(LATENCY).await });
        Box::pin(async move {
            // Where the thread has ended the bench has, too.
            let _ = waited.await;
            Ok(bytes)
        })
    }
}

/// The layer without and with its tree.
#[expect(clippy::disallowed_methods, reason = "the bench has made the file, and knows its size")]
fn layer(dir: &std::path::Path) -> Result<(Bytes, Bytes, Described), Failure> {
    let path = dir.join("layer");
    let file = Arc::new(File::options().create(true).truncate(true).read(true).write(true).open(&path)?);
    let identity = LayerIdentity {
        uuid: None,
        parent_uuid: None,
        virtual_size_bytes: DEVICE_BYTES,
        user_tag: UserTag::default(),
    };
    let format = BlockFormat::new(Algorithm::Lz4, 4096)?;
    let threads = NonZeroUsize::MIN.saturating_add(1);
    let mut layer = StreamedLayer::begin(Arc::clone(&file), path.clone(), &identity, format, threads)?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut page = [0; 4096];
    for offset in (0..DEVICE_BYTES).step_by(page.len()) {
        page.fill(random.u8(..));
        let (noise, _) = page.split_at_mut(2048);
        random.fill(noise);
        layer.write(offset, &page)?;
    }
    let size_bytes = layer.finish()?;
    let plain = fs::read(&path)?;
    let described = add_tree(&file, &path, size_bytes)?;
    Ok((plain.into(), fs::read(&path)?.into(), described))
}

/// Where a walk and then programs read, as offsets and lengths in the content.
fn reads(content_bytes: u64) -> [(&'static str, Vec<(u64, usize)>); 2] {
    let mut random = fastrand::Rng::with_seed(2);
    let last = content_bytes - content_bytes / 8;
    let walk = (0..2000).map(|_| (random.u64(last..content_bytes - 4096) / 4096 * 4096, 4096)).collect();
    let files = (0..300).map(|_| {
        let len = 4096 << random.u32(0..5);
        (random.u64(0..content_bytes - len) / 4096 * 4096, usize::try_from(len).unwrap_or(0))
    });
    [("walk, 2000 reads of 4 KiB", walk), ("300 files of 4 to 64 KiB", files.collect())]
}

fn measure(
    name: &str,
    content: &Bytes,
    described: Option<Described>,
    layer_bytes: u64,
) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let clock = ReactorThread::start("origin", ReactorConfig::default(), || Ok(()))?;
    let far = Arc::new(Far {
        clock,
        content: content.clone(),
        requests: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    });
    let size_bytes = content.len() as u64;
    let verity = described.and_then(|layer| layer.verity);
    let origin: Arc<dyn Origin> = match verity {
        Some(verity) => {
            let proof = Proof::new(verity, size_bytes)?;
            Arc::new(VerifiedOrigin::new(Arc::clone(&far) as _, proof, Arc::new(ProofMetrics::default())))
        }
        None => Arc::clone(&far) as _,
    };
    let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(()))?;
    let cache = Cache::open(CacheConfig::new(dir.path(), 4 << 30), thread.handle())?;
    let reactor = Reactor::new(&ReactorConfig::default())?;
    let digest = format!("sha256:{}", "0".repeat(64));
    let source = reactor.block_on(cache.blob(&digest, origin))??;
    let say = |what: &str, began: Instant| {
        let (requests, bytes) = far.take();
        println!("{name:>12}  {what:<26} {requests:>5} requests {bytes:>12} bytes {:>8.1?}", began.elapsed());
    };
    let began = Instant::now();
    let blob: Arc<dyn BlobSource> = source;
    reactor.block_on(Layer::open(&reactor, Arc::clone(&blob)))??;
    say("attach", began);
    for (what, reads) in reads(layer_bytes) {
        let began = Instant::now();
        for (offset, len) in reads {
            let mut dest = vec![0; len];
            reactor.block_on(blob.read(&reactor, offset, &mut dest))??;
        }
        say(what, began);
    }
    Ok(())
}

/// The time of proving all of a blob in parts of 1 MiB whose tree is known, and of the checksums that are computed anyway.
fn prove(content: &Bytes, described: Described) -> Result<(), Failure> {
    let verity = described.verity.ok_or("no tree")?;
    let proof = Proof::new(verity, content.len() as u64)?;
    let tree = usize::try_from(verity.tree_offset())?;
    let first = verity.tree_offset() / Proof::BLOCK_BYTES;
    let mut path = proof.path_of(&(0..first));
    let blocks = blocks_of(first, &content.slice(tree..content.len() - 1024));
    let verdicts = proof.judge(&path, &blocks);
    path.hold(blocks, &verdicts);
    let (mut proven, mut summed) = (Duration::ZERO, Duration::ZERO);
    let mut right = 0;
    for start in (0..tree).step_by(PART_BYTES) {
        let part = content.slice(start..tree.min(start + PART_BYTES));
        let began = Instant::now();
        let verdicts = proof.judge(&path, &blocks_of(start as u64 / Proof::BLOCK_BYTES, &part));
        proven += began.elapsed();
        right += verdicts.values().filter(|verdict| **verdict == stratabd::source::Verdict::Right).count();
        let began = Instant::now();
        std::hint::black_box(part.chunks(4096).map(crc32c::crc32c).fold(0, |sum, crc| sum ^ crc));
        summed += began.elapsed();
    }
    let mib = tree as f64 / f64::from(1 << 20);
    let of_mib = |time: Duration| time.as_secs_f64() * 1e6 / mib;
    println!(
        "proving: {:.0} us a MiB ({right} blocks of {first}), checksums: {:.0} us a MiB",
        of_mib(proven),
        of_mib(summed)
    );
    Ok(())
}

fn main() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let (plain, proven, described) = layer(dir.path())?;
    println!("{} bytes without a tree, {} with it", plain.len(), proven.len());
    let layer_bytes = plain.len() as u64;
    measure("without", &plain, None, layer_bytes)?;
    measure("with", &proven, Some(described), layer_bytes)?;
    prove(&proven, described)
}
