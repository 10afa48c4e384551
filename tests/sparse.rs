//! The sparse writable layer on real file systems: opened again, sealed, committed, and as upstream leaves it.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]
#![expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]

#[path = "support/fixtures.rs"]
#[expect(dead_code, reason = "one of several users of the support code")]
mod fixtures;
#[path = "support/sparse_archive.rs"]
mod sparse_archive;

use std::{
    fs::{self, File},
    io::Read,
    num::NonZeroUsize,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use fixtures::{Fixture, sha256};
use rustix::fs::{FallocateFlags, fallocate};
use sparse_archive::unpack_sparse;
use stratabd::{
    block::{BlockDevice, BlockQueue},
    device::MemoryDevice,
    format::lsmt::{Header, Packing},
    image::{Image, ImageOptions},
    offline::{self, CreateOptions, Naming, PackOptions, Upper, Watch},
    reactor::{Reactor, ReactorConfig, ReactorThread},
    source::{BlobSource, FileSource},
    upper::{LayerFiles, LogLimits, Overlay, UpperError},
};

/// Size of the fixtures' devices in bytes.
const DEVICE: u64 = 64 << 20;

fn reactor() -> Reactor {
    Reactor::new(&ReactorConfig::default()).unwrap()
}

/// An image of upstream and the files of a layer over it.
struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        // Beside the build, for the folder of temporary files may lie in memory.
        Self::in_folder(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    fn in_folder(folder: &Path) -> Self {
        let site = Self(tempfile::tempdir_in(folder).unwrap());
        fs::write(site.path("g0"), Fixture::named("lsmt/g0.lsmt.xz").read()).unwrap();
        site.create("data", DEVICE);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn create(&self, name: &str, virtual_size_bytes: u64) {
        let options = CreateOptions {
            sparse: true,
            virtual_size_bytes,
            uuid: None,
            parent_uuid: None,
            ext4: false,
            overwrite: true,
        };
        offline::create(&Upper { data: self.path(name), index: None }, &options).unwrap();
    }

    /// There is no index file.
    fn files(&self, name: &str) -> LayerFiles {
        LayerFiles::open(&self.path(name), &self.path("none")).unwrap()
    }

    async fn image(&self, reactor: &Reactor, layers: &[&str]) -> Image {
        let source =
            |name: &&str| Arc::new(FileSource::open(&self.path(name)).unwrap()) as Arc<dyn BlobSource>;
        let layers = layers.iter().map(source).collect();
        Image::open(reactor, layers, ImageOptions::default()).await.unwrap()
    }

    async fn open(&self, reactor: &Reactor) -> Overlay<Image> {
        let image = self.image(reactor, &["g0"]).await;
        Overlay::open(reactor, self.files("data"), Some(image), LogLimits::default()).await.unwrap()
    }

    async fn hash(&self, reactor: &Reactor) -> String {
        sha256(&read_all(&self.open(reactor).await, reactor).await)
    }

    fn stored(&self) -> u64 {
        fs::metadata(self.path("data")).unwrap().blocks() * 512
    }
}

async fn read_all(device: &impl BlockDevice, reactor: &Reactor) -> Vec<u8> {
    let queue = device.open_queue(reactor).unwrap();
    let mut bytes = vec![0xaa; device.geometry().size_bytes as usize];
    for (piece, chunk) in bytes.chunks_mut(1 << 20).enumerate() {
        queue.read((piece as u64) << 20, chunk).await.unwrap();
    }
    bytes
}

/// Random changes of any sectors, and of a model of them.
async fn change(queue: &impl BlockQueue, model: &mut [u8], random: &mut fastrand::Rng, count: usize) {
    let sectors = model.len() as u64 / 512;
    for _ in 0..count {
        let start = random.u64(0..sectors);
        let longest = if random.u8(0..20) == 0 { 4000 } else { 40 };
        let end = (start + random.u64(1..=longest)).min(sectors);
        let target = &mut model[start as usize * 512..end as usize * 512];
        if random.u8(0..3) == 0 {
            target.fill(0);
            queue.write_zeroes(start * 512, target.len() as u64).await.unwrap();
        } else {
            target.fill(random.u8(1..));
            queue.write(start * 512, target).await.unwrap();
        }
    }
}

#[test]
fn the_sparse_layer_of_upstream_reads_right_and_can_be_written() {
    // Larger ones are not kept in the repository.
    let archives = ["lsmt/gs-sparse.tar.xz", "ext4/sparse-rw.tar.xz"];
    let fixtures: Vec<_> =
        Fixture::all().into_iter().filter(|fixture| archives.contains(&&*fixture.file)).collect();
    assert!(!fixtures.is_empty());
    fixtures.iter().for_each(open_and_write);
}

fn open_and_write(fixture: &Fixture) {
    let reactor = reactor();
    let site = Site::new();
    unpack_sparse(&fixture.read(), &site.path("data"));
    // Upstream's tools want the name of an index file, and leave it empty.
    File::create(site.path("none")).unwrap();
    let work = async {
        let open = async || {
            let files = site.files("data");
            Overlay::<MemoryDevice>::open(&reactor, files, None, LogLimits::default()).await.unwrap()
        };
        let device = open().await;
        let mut model = read_all(&device, &reactor).await;
        assert_eq!(Some(sha256(&model)), fixture.flat_sha256, "{}", fixture.file);
        let queue = device.open_queue(&reactor).unwrap();
        change(&queue, &mut model, &mut fastrand::Rng::with_seed(3), 200).await;
        drop(queue);
        device.close(&reactor).await.unwrap();
        assert!(read_all(&open().await, &reactor).await == model);
    };
    reactor.block_on(work).unwrap();
}

/// Works on a layer over an image, and reads it in all ways there are.
fn random_work_in(folder: &Path, seed: u64) {
    let reactor = reactor();
    let site = Site::in_folder(folder);
    let work = async {
        let mut random = fastrand::Rng::with_seed(seed);
        println!("seed {seed}");
        let mut model = read_all(&site.image(&reactor, &["g0"]).await, &reactor).await;
        for _ in 0..4 {
            let device = site.open(&reactor).await;
            assert!(read_all(&device, &reactor).await == model, "opened again");
            let queue = device.open_queue(&reactor).unwrap();
            change(&queue, &mut model, &mut random, 250).await;
            queue.flush().await.unwrap();
            assert!(read_all(&device, &reactor).await == model);
            drop(queue);
            device.close(&reactor).await.unwrap();
        }
        // What the file system keeps is all that upstream's reader looks at, and our own offline tools.
        let options = PackOptions {
            allow_torn: false,
            packing: Packing::AsUpstream,
            compression: None,
            tar: false,
            final_header: true,
            threads: NonZeroUsize::MIN,
            overwrite: false,
        };
        let quiet = Watch { progress: |_, _| {}, cancelled: false.into() };
        let (data, out) = (site.path("data"), site.path("out"));
        // As a crash leaves a file that was growing.
        File::options().write(true).open(&data).unwrap().set_len(DEVICE + 10_000).unwrap();
        offline::commit(&data, None, &out, &Naming::default(), &options, &quiet).unwrap();
        assert!(read_all(&site.image(&reactor, &["g0", "out"]).await, &reactor).await == model, "committed");

        let device = site.open(&reactor).await;
        site.create("next", 0x1000);
        let refused = device.seal(&reactor, site.files("next")).await.map(drop).unwrap_err();
        assert!(matches!(refused, UpperError::OtherSize { .. }), "{refused}");
        site.create("next", DEVICE);
        device.seal(&reactor, site.files("next")).await.unwrap().stack();
        assert!(read_all(&site.image(&reactor, &["g0", "data"]).await, &reactor).await == model, "sealed");
        let mut ends = vec![0; 4096];
        let file = File::open(site.path("data")).unwrap();
        file.read_exact_at(&mut ends, 0).unwrap();
        assert_eq!(ends[28..32], [0x13, 0, 0, 0]);
        file.read_exact_at(&mut ends, file.metadata().unwrap().len() - 4096).unwrap();
        assert_eq!(ends[28..32], [0x16, 0, 0, 0]);
        assert_eq!(Header::decode(&ends, 0).unwrap().index_offset, DEVICE + 4096);
        let queue = device.open_queue(&reactor).unwrap();
        change(&queue, &mut model, &mut random, 100).await;
        assert!(read_all(&device, &reactor).await == model, "over the sealed one");
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn random_work_is_there_again_however_it_is_read() {
    for seed in 1..3 {
        random_work_in(Path::new(env!("CARGO_TARGET_TMPDIR")), seed);
    }
    // A file system of another kind, where there is one.
    let memory = Path::new("/dev/shm");
    if memory.exists() {
        random_work_in(memory, 3);
    }
}

#[test]
fn a_discard_of_the_whole_device_writes_only_where_something_lies_below() {
    let reactor = reactor();
    let site = Site::new();
    let work = async {
        let device = site.open(&reactor).await;
        let queue = device.open_queue(&reactor).unwrap();
        let below = fs::metadata(site.path("g0")).unwrap().len();
        queue.write_zeroes(0, DEVICE).await.unwrap();
        queue.flush().await.unwrap();
        let zeroes = site.stored();
        // Each run of data below takes whole blocks.
        assert!(zeroes < 2 * below && below < DEVICE / 4, "{zeroes} bytes of zeroes over {below} of data");
        queue.write(0, &vec![7; 32 << 20]).await.unwrap();
        queue.write_zeroes(0, DEVICE).await.unwrap();
        queue.flush().await.unwrap();
        assert_eq!(site.stored(), zeroes, "what was written has given its room back");
        drop(queue);
        device.close(&reactor).await.unwrap();
        assert!(read_all(&site.open(&reactor).await, &reactor).await.iter().all(|byte| *byte == 0));
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn room_without_data_is_a_hole_also_where_somebody_has_read_it() {
    let reactor = reactor();
    let site = Site::new();
    let before = reactor.block_on(site.hash(&reactor)).unwrap();
    // As a crash leaves it between giving the room and writing the data.
    let data = File::options().read(true).write(true).open(site.path("data")).unwrap();
    fallocate(&data, FallocateFlags::KEEP_SIZE, 4096, DEVICE).unwrap();
    data.sync_all().unwrap();
    (&data).read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(reactor.block_on(site.hash(&reactor)).unwrap(), before);
}

#[test]
fn two_threads_write_the_sectors_of_the_same_blocks() {
    let here = reactor();
    let site = Site::new();
    let device = here.block_on(site.open(&here)).unwrap();
    let before = here.block_on(read_all(&device, &here)).unwrap();
    const SECTORS: u64 = 2000;
    let threads: Vec<_> =
        (0..2).map(|_| ReactorThread::start("test", ReactorConfig::default(), || Ok(())).unwrap()).collect();
    let answers: Vec<_> = threads
        .iter()
        .zip(0_u64..)
        .map(|(thread, which)| {
            let device = device.clone();
            thread.handle().call(move |reactor| async move {
                let queue = device.open_queue(&reactor).unwrap();
                // Each its own sectors, which alternate with the other's.
                for sector in (which..SECTORS).step_by(2) {
                    match sector % 6 / 2 {
                        0 => queue.write(sector * 512, &[which as u8 + 1; 512]).await.unwrap(),
                        1 => queue.write_zeroes(sector * 512, 512).await.unwrap(),
                        _ => {
                            let mut found = [0; 512];
                            queue.read(sector * 512, &mut found).await.unwrap();
                        }
                    }
                }
                queue.flush().await.unwrap();
            })
        })
        .collect();
    answers.into_iter().for_each(|answer| here.block_on(answer).unwrap().unwrap());
    here.block_on(device.close(&here)).unwrap().unwrap();
    threads.into_iter().for_each(|thread| thread.stop().unwrap());
    let found = here.block_on(async { read_all(&site.open(&here).await, &here).await }).unwrap();
    for (sector, bytes) in (0..).zip(found.chunks(512)) {
        let expected = match sector % 6 / 2 {
            0 if sector < SECTORS => vec![(sector % 2) as u8 + 1; 512],
            1 if sector < SECTORS => vec![0; 512],
            _ => before[sector as usize * 512..][..512].to_vec(),
        };
        assert!(bytes == expected, "sector {sector}");
    }
}

#[test]
fn only_a_log_needs_its_index_file_and_a_device_without_a_size_is_none() {
    let reactor = reactor();
    let site = Site::new();
    let log = CreateOptions {
        sparse: false,
        virtual_size_bytes: DEVICE,
        uuid: None,
        parent_uuid: None,
        ext4: false,
        overwrite: false,
    };
    offline::create(&Upper { data: site.path("log"), index: Some(site.path("index")) }, &log).unwrap();
    let refused = |name: &str| {
        let opened = Overlay::<MemoryDevice>::open(&reactor, site.files(name), None, LogLimits::default());
        reactor.block_on(opened).unwrap().map(drop).unwrap_err()
    };
    let error = refused("log");
    assert!(error.to_string().starts_with(&site.path("none").display().to_string()), "{error}");
    let header = Header { virtual_size_bytes: 0, ..header_of(&site.path("data")) };
    fs::write(site.path("data"), header.encode()).unwrap();
    assert!(matches!(refused("data"), UpperError::Size { size_bytes: 0, .. }));
    let odd = Header { virtual_size_bytes: 1 << 62 | 5, ..header };
    fs::write(site.path("data"), odd.encode()).unwrap();
    assert!(matches!(refused("data"), UpperError::Size { .. }));
}

fn header_of(path: &Path) -> Header {
    let mut slot = vec![0; 4096];
    File::open(path).unwrap().read_exact(&mut slot).unwrap();
    Header::decode(&slot, 0).unwrap()
}
