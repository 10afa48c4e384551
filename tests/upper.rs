//! The writable layer on a real file system: upstream's files, other openers, several threads, bounded space.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]
#![expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]

#[path = "support/fixtures.rs"]
#[expect(dead_code, reason = "one of several users of the support code")]
mod fixtures;

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use fixtures::{Fixture, sha256};
use stratabd::{
    block::{BlockDevice, BlockQueue, Geometry},
    device::MemoryDevice,
    format::lsmt::{LogReplay, SLOT_BYTES, Segment},
    image::{Image, ImageOptions},
    reactor::{Reactor, ReactorConfig, ReactorThread},
    source::{BlobSource, FileSource},
    upper::{Identity, LayerFile, LayerFiles, LogLimits, Overlay, UpperError},
};

const G0_G1: &str = "13202a5a7e9cf0d3ddcf694bea46f45987cef1f650c4562b8846ebf3a18bce01";

/// Sectors of a request of the tests.
const LONGEST: u64 = 256;

fn reactor() -> Reactor {
    Reactor::new(&ReactorConfig::default()).unwrap()
}

fn content(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// The paths of a layer in a folder of its own.
struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        // Beside the build, for the folder of temporary files may lie in memory.
        Self { folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn with_upstreams_layer() -> Self {
        let folder = Self::new();
        fs::write(folder.path("data"), Fixture::named("lsmt/g1.rw.d.xz").read()).unwrap();
        fs::write(folder.path("index"), Fixture::named("lsmt/g1.rw.i.xz").read()).unwrap();
        fs::write(folder.path("g0"), Fixture::named("lsmt/g0.lsmt.xz").read()).unwrap();
        folder
    }

    async fn with_layer(reactor: &Reactor, virtual_size_bytes: u64) -> Self {
        let folder = Self::new();
        let files = LayerFiles::create(&folder.path("data"), &folder.path("index")).unwrap();
        let uuid = "ABC00007-1111-2222-3333-000000000007".parse().unwrap();
        files
            .format(reactor, &Identity { uuid, parent_uuid: None, virtual_size_bytes, sparse: false })
            .await
            .unwrap();
        folder
    }

    fn files(&self) -> Result<LayerFiles, UpperError> {
        LayerFiles::open(&self.path("data"), &self.path("index"))
    }

    async fn image(&self, reactor: &Reactor) -> Image {
        let source: Arc<dyn BlobSource> = Arc::new(FileSource::open(&self.path("g0")).unwrap());
        Image::open(reactor, vec![source], ImageOptions::default()).await.unwrap()
    }

    async fn over_image(&self, reactor: &Reactor, limits: LogLimits) -> Overlay<Image> {
        let image = self.image(reactor).await;
        Overlay::open(reactor, self.files().unwrap(), Some(image), limits).await.unwrap()
    }

    async fn alone(&self, reactor: &Reactor, limits: LogLimits) -> Overlay<MemoryDevice> {
        Overlay::open(reactor, self.files().unwrap(), None, limits).await.unwrap()
    }

    /// The segments of the index file, as any reader of the format finds them.
    fn replay(&self) -> Vec<Segment> {
        let index = content(&self.path("index"));
        let data_bytes = fs::metadata(self.path("data")).unwrap().len();
        let mut replay = LogReplay::new(index.len() as u64, data_bytes).unwrap();
        replay.feed(&index[SLOT_BYTES..]).unwrap();
        let replayed = replay.finish();
        assert_eq!((replayed.end_offset, replayed.torn_entries), (index.len() as u64, 0));
        replayed.segments.into_segments()
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

/// Random changes of a device of whole 4096-byte blocks, and of a model of it.
async fn change(queue: &impl BlockQueue, model: &mut [u8], random: &mut fastrand::Rng, count: usize) {
    let sectors = model.len() as u64 / 512;
    for _ in 0..count {
        let start = random.u64(0..sectors / 8) * 8;
        let end = (start + random.u64(1..=LONGEST / 8) * 8).min(sectors);
        let target = &mut model[start as usize * 512..end as usize * 512];
        if random.u8(0..5) == 0 {
            target.fill(0);
            queue.write_zeroes(start * 512, target.len() as u64).await.unwrap();
        } else {
            target.fill(random.u8(1..));
            queue.write(start * 512, target).await.unwrap();
        }
    }
}

#[test]
fn the_writable_layer_of_upstream_reads_right_and_what_is_added_is_found_by_any_reader() {
    let reactor = reactor();
    let folder = Folder::with_upstreams_layer();
    let often =
        LogLimits { rewrite_entries: 100, rewrite_ratio: 2, dead_bytes: 4096, ..LogLimits::default() };
    let work = async {
        let mut random = fastrand::Rng::with_seed(11);
        let device = folder.over_image(&reactor, often).await;
        let mut model = read_all(&device, &reactor).await;
        assert_eq!(sha256(&model), G0_G1);
        let queue = device.open_queue(&reactor).unwrap();
        for _ in 0..10 {
            change(&queue, &mut model, &mut random, 60).await;
            queue.flush().await.unwrap();
        }
        assert!(read_all(&device, &reactor).await == model);
        drop(queue);
        device.close(&reactor).await.unwrap();
        let data = content(&folder.path("data"));
        let mut found = read_all(&folder.image(&reactor).await, &reactor).await;
        for segment in folder.replay() {
            let target = &mut found[segment.offset() as usize * 512..segment.end() as usize * 512];
            match segment.zeroed() {
                true => target.fill(0),
                false => {
                    let start = segment.moffset() as usize * 512;
                    target.copy_from_slice(&data[start..start + target.len()]);
                }
            }
        }
        assert!(found == model, "by the format's own reader");
        assert!(read_all(&folder.over_image(&reactor, often).await, &reactor).await == model, "opened again");
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn a_layer_is_opened_by_one_at_a_time() {
    let reactor = reactor();
    let folder = reactor.block_on(Folder::with_layer(&reactor, 1 << 20)).unwrap();
    let first = folder.files().unwrap();
    let error = folder.files().unwrap_err();
    assert!(matches!(&error, UpperError::Busy(_)), "{error}");
    assert!(error.to_string().contains("data"), "{error}");
    drop(first);
    folder.files().unwrap();
}

#[test]
fn a_layer_that_is_wrong_is_refused_by_file_and_rule() {
    let reactor = reactor();
    let refused = |breaks: fn(&Folder)| {
        let folder = reactor.block_on(Folder::with_layer(&reactor, 1 << 20)).unwrap();
        breaks(&folder);
        let opened =
            Overlay::<MemoryDevice>::open(&reactor, folder.files().unwrap(), None, LogLimits::default());
        let error = reactor.block_on(opened).unwrap().map(drop).unwrap_err();
        let cause = std::error::Error::source(&error).map_or(String::new(), ToString::to_string);
        format!("{error}: {cause}")
    };
    let index_is_data = refused(|folder| {
        fs::copy(folder.path("data"), folder.path("index")).unwrap();
    });
    assert!(
        index_is_data.contains("index: ") && index_is_data.contains("call it a data file"),
        "{index_is_data}"
    );
    let foreign = refused(|folder| {
        let mut index = content(&folder.path("index"));
        index[56] = b'F';
        fs::write(folder.path("index"), index).unwrap();
    });
    assert!(foreign.contains("is not that of the data file"), "{foreign}");
    let nonsense = refused(|folder| {
        let mut index = content(&folder.path("index"));
        index.extend([5, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
        fs::write(folder.path("index"), index).unwrap();
    });
    assert!(nonsense.contains("entry 0 at offset 4096: it covers no sector"), "{nonsense}");
    let empty = refused(|folder| fs::write(folder.path("data"), []).unwrap());
    assert!(empty.contains("cannot read the header"), "{empty}");
    let folder = reactor.block_on(Folder::with_layer(&reactor, 0)).unwrap();
    let opened = Overlay::<MemoryDevice>::open(&reactor, folder.files().unwrap(), None, LogLimits::default());
    let error = reactor.block_on(opened).unwrap().map(drop).unwrap_err();
    assert!(matches!(error, UpperError::Size { size_bytes: 0, .. }), "{error}");
}

#[test]
fn a_layer_without_a_size_takes_the_one_below() {
    let reactor = reactor();
    let work = async {
        let folder = Folder::with_layer(&reactor, 0).await;
        let below = MemoryDevice::with_bytes(Geometry::read_only(0, 4096), vec![7; 1 << 20]).unwrap();
        let files = folder.files().unwrap();
        let device = Overlay::open(&reactor, files, Some(below), LogLimits::default()).await.unwrap();
        assert_eq!((device.geometry().size_bytes, device.geometry().logical_block_bytes), (1 << 20, 4096));
        assert!(!device.geometry().read_only);
        let queue = device.open_queue(&reactor).unwrap();
        // Smaller than a block of the device below: the rest of the block still comes from there.
        queue.write(512, &[9; 512]).await.unwrap();
        let mut block = [0; 4096];
        queue.read(0, &mut block).await.unwrap();
        assert!(block[..512] == [7; 512] && block[512..1024] == [9; 512] && block[1024..] == [7; 3072]);
        let pooled = queue.read_pooled(0, 8192, reactor.request_buffers()).await.unwrap();
        assert!(pooled[..4096] == block && pooled[4096..] == [7; 4096]);
    };
    reactor.block_on(work).unwrap();
}

#[test]
fn what_is_overwritten_and_discarded_gives_its_room_back() {
    let reactor = reactor();
    let work = async {
        let folder = Folder::with_layer(&reactor, 8 << 20).await;
        let limits = LogLimits { rewrite_entries: 1000, dead_bytes: 1 << 20, ..LogLimits::default() };
        let device = folder.alone(&reactor, limits).await;
        let queue = device.open_queue(&reactor).unwrap();
        let mut random = fastrand::Rng::with_seed(5);
        let mut model = vec![0; 8 << 20];
        for _ in 0..40 {
            change(&queue, &mut model, &mut random, 100).await;
            queue.flush().await.unwrap();
        }
        // The last blocks are punched out by a task that the flush does not wait for.
        let kept = || fs::metadata(folder.path("data")).unwrap().blocks() * 512;
        for _ in 0..500 {
            if kept() < 14 << 20 {
                break;
            }
            reactor.sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(read_all(&device, &reactor).await == model);
        let data = fs::metadata(folder.path("data")).unwrap();
        let index = fs::metadata(folder.path("index")).unwrap();
        assert!(data.len() > 100 << 20, "{} bytes were written", data.len());
        assert!(kept() < 14 << 20, "{} bytes are kept", kept());
        assert!(index.len() < 4096 + 16 * 5000, "{} bytes of index", index.len());
        drop(queue);
        device.close(&reactor).await.unwrap();
        assert!(read_all(&folder.alone(&reactor, limits).await, &reactor).await == model);
    };
    reactor.block_on(work).unwrap();
}

/// Blocks of one thread in the shared device: each has its own, interleaved with the other's.
const BLOCKS: u64 = 512;

#[test]
fn queues_of_two_threads_write_and_flush_at_once() {
    let here = reactor();
    let folder = here.block_on(Folder::with_layer(&here, 2 * BLOCKS * 4096)).unwrap();
    let limits = LogLimits {
        rewrite_entries: 500,
        rewrite_ratio: 2,
        dead_bytes: 64 << 10,
        pending_entries: 100,
        ..LogLimits::default()
    };
    let device = here.block_on(folder.alone(&here, limits)).unwrap();
    let threads: Vec<_> =
        (0..2).map(|_| ReactorThread::start("test", ReactorConfig::default(), || Ok(())).unwrap()).collect();
    let answers: Vec<_> = threads
        .iter()
        .zip(0_u64..)
        .map(|(thread, which)| {
            let device = device.clone();
            thread.handle().call(move |reactor| async move {
                let queue = device.open_queue(&reactor).unwrap();
                let mut random = fastrand::Rng::with_seed(which);
                let mut last = vec![0_u8; BLOCKS as usize];
                for _ in 0..4000 {
                    let block = random.u64(0..BLOCKS);
                    let offset = (block * 2 + which) * 4096;
                    let value = &mut last[block as usize];
                    match random.u8(0..10) {
                        0 => queue.flush().await.unwrap(),
                        1..6 => {
                            *value = random.u8(1..);
                            queue.write(offset, &[*value; 4096]).await.unwrap();
                        }
                        _ => {
                            let mut found = [0; 4096];
                            queue.read(offset, &mut found).await.unwrap();
                            assert_eq!(found, [*value; 4096]);
                        }
                    }
                }
                queue.flush().await.unwrap();
                last
            })
        })
        .collect();
    let lasts: Vec<_> = answers.into_iter().map(|answer| here.block_on(answer).unwrap().unwrap()).collect();
    // Before the threads end: a hole that one of them was punching would hold the file until the kernel is done with it.
    here.block_on(device.close(&here)).unwrap().unwrap();
    threads.into_iter().for_each(|thread| thread.stop().unwrap());
    let device = here.block_on(folder.alone(&here, limits)).unwrap();
    let found = here.block_on(read_all(&device, &here)).unwrap();
    for (block, bytes) in found.chunks(4096).enumerate() {
        assert!(bytes.iter().all(|byte| *byte == lasts[block % 2][block / 2]), "block {block}");
    }
}

#[test]
fn a_torn_tail_is_cut_from_the_file() {
    let reactor = reactor();
    let work = async {
        let folder = Folder::with_layer(&reactor, 1 << 20).await;
        let device = folder.alone(&reactor, LogLimits::default()).await;
        let queue = device.open_queue(&reactor).unwrap();
        queue.write(0, &[5; 4096]).await.unwrap();
        queue.flush().await.unwrap();
        drop(queue);
        device.close(&reactor).await.unwrap();
        let whole = fs::metadata(folder.path("index")).unwrap().len();
        let mut index = File::options().append(true).open(folder.path("index")).unwrap();
        std::io::Write::write_all(&mut index, &[0; 37]).unwrap();
        index.seek(SeekFrom::Start(0)).unwrap();
        let device = folder.alone(&reactor, LogLimits::default()).await;
        assert_eq!(fs::metadata(folder.path("index")).unwrap().len(), whole);
        assert_eq!(read_all(&device, &reactor).await[..4096], [5; 4096]);
        assert!(matches!(LayerFile::open(&folder.path("none")), Err(UpperError::Io { .. })));
    };
    reactor.block_on(work).unwrap();
}
