//! A layer that is not compressed, read by the engine through the cache: from the registry once, then from the cached file.

use std::{fs::File, os::unix::fs::FileExt, path::Path, sync::Arc, time::Duration};

use sha2::{Digest as _, Sha256};
use stratabd::{
    block::{BlockDevice, BlockQueue, ByteRange},
    cache::{Cache, CacheConfig, CachedBlob},
    format::oci::Digest,
    image::{Image, ImageOptions, SourceClass},
    reactor::{Reactor, ReactorConfig, ReactorThread},
    registry::RemoteBlob,
    source::{BlobSource, RegistryOrigin},
};

use crate::{
    script::{Server, client, config, partial, pattern, range, repository},
    support::layer_writer::lsmt_of,
};

const MIB: usize = 1 << 20;
const SIZE: usize = 6 * MIB;

/// An image of one layer of a registry, cached in a folder.
struct Device {
    image: Image,
    blob: Arc<CachedBlob>,
    cache: Cache,
    reactor: Reactor,
    _thread: ReactorThread,
}

impl Device {
    fn open(dir: &Path, digest: Digest, remote: RemoteBlob) -> Self {
        let thread = ReactorThread::start("cache", ReactorConfig::default(), || Ok(())).unwrap();
        let cache = Cache::open(CacheConfig::new(dir, 1 << 30), thread.handle()).unwrap();
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        let origin = Arc::new(RegistryOrigin::new(remote));
        let blob = reactor.block_on(cache.blob(&digest.to_string(), origin)).unwrap().unwrap();
        let layers = vec![Arc::clone(&blob) as Arc<dyn BlobSource>];
        let image = reactor.block_on(Image::open(&reactor, layers, ImageOptions::default()));
        Self { image: image.unwrap().unwrap(), blob, cache, reactor, _thread: thread }
    }

    /// The whole device in requests of some sizes, none of which divides it.
    fn read_all(&self) -> Vec<u8> {
        let queue = self.image.open_queue(&self.reactor).unwrap();
        let mut flat = vec![0xaa; SIZE];
        let (mut rest, mut lens) = (&mut flat[..], [4096, 512, 99 * 512, 300 * 512].into_iter().cycle());
        while !rest.is_empty() {
            let offset = SIZE - rest.len();
            let (part, after) = rest.split_at_mut(rest.len().min(lens.next().unwrap()));
            self.reactor.block_on(queue.read(offset as u64, part)).unwrap().unwrap();
            rest = after;
        }
        flat
    }

    fn requests(&self, class: SourceClass) -> u64 {
        self.image.reads().of(class).requests.get()
    }

    fn wait_until_complete(&self) {
        for _ in 0..2000 {
            if self.blob.is_complete() {
                return;
            }
            self.reactor.block_on(self.reactor.sleep(Duration::from_millis(5))).unwrap();
        }
        panic!("{} of {} bytes are present", self.blob.present_bytes(), self.blob.size_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_layer_is_fetched_once_and_then_served_from_the_cached_file() {
    let mut flat = pattern(SIZE);
    flat[2 * MIB..3 * MIB].fill(0);
    let layer = Arc::new(lsmt_of(&flat));
    let digest = Digest::from_hash(Sha256::digest(&*layer).into());
    let served = Arc::clone(&layer);
    let server = Server::start(move |seen, _| partial(&served, seen)).await;
    let remote = || client(&config(&[server.address])).blob(&repository(&server), digest, layer.len() as u64);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // In the middle, so that opening the image has not brought it.
    let probe = range(4 * MIB as u64, 4 * MIB as u64 + 8192);

    let device = Device::open(dir.path(), digest, remote());
    assert!(device.blob.begin_direct(probe).is_none(), "the kernel is not let at what was not fetched");
    assert!(device.read_all() == flat, "from the registry");
    assert!(device.requests(SourceClass::Registry) > 0);
    device.wait_until_complete();
    let metrics = device.cache.metrics();
    assert_eq!(metrics.bytes_fetched.get(), layer.len() as u64, "nothing is fetched twice");

    let (asked, waited) = (server.count(), device.requests(SourceClass::Registry));
    let cached = device.requests(SourceClass::Cache);
    assert!(device.read_all() == flat, "from the cached file");
    assert_eq!((server.count(), device.requests(SourceClass::Registry)), (asked, waited));
    assert!(device.requests(SourceClass::Cache) > cached);
    device.reactor.block_on(device.cache.sync()).unwrap().unwrap();
    drop(device);

    // Without the registry, in another life of the cache.
    let late = remote();
    drop(server);
    let device = Device::open(dir.path(), digest, late);
    assert!(device.read_all() == flat, "from the cached file, later");
    assert_eq!(device.requests(SourceClass::Registry), 0);
    the_file_holds_what_the_kernel_would_read(&device.blob, &layer, probe);
}

/// A frontend with zero copy reads the cached file by itself between the two calls.
fn the_file_holds_what_the_kernel_would_read(blob: &CachedBlob, layer: &[u8], range: ByteRange) {
    let mark = blob.begin_direct(range).expect("the range is present");
    // A file system in memory has no file for the ring.
    if let Some(file) = blob.file() {
        let mut bytes = vec![0; range.len() as usize];
        File::from(file.try_clone().unwrap()).read_exact_at(&mut bytes, range.start()).unwrap();
        assert!(bytes == layer[range.start() as usize..range.end() as usize]);
    }
    assert!(blob.end_direct(range, mark), "nothing has changed meanwhile");
    assert!(blob.invalidate(range));
    assert!(!blob.end_direct(range, mark), "what was refuted meanwhile must not be served");
}
