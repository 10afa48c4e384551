//! Reads that the kernel moves from a layer's file to the request by itself: right bytes, and every way past them.

use std::{
    fs::{self, OpenOptions},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use stratabd::{
    frontend::{
        AttachRequest, Attachment, Detached, Frontend,
        ublk::{CopyMode, Ublk, prepare_serving_thread},
    },
    image::{Image, ImageOptions},
    reactor::{Reactor, ReactorConfig, ReactorThread},
    source::{BlobSource, FileSource},
};

use crate::{
    devices::{Direct, pattern},
    frame::in_guest,
    support::{
        daemon::{Daemon, plain_http},
        layer_writer::{Algorithm, lsmt, lsmt_of, zfile},
        registry::{Registry, Serving, push_image},
    },
};

const MIB: usize = 1 << 20;
const SIZE: usize = 8 * MIB;
const DEADLINE: Duration = Duration::from_secs(20);

/// An image, what it must read as, and where its layers lie.
struct Sample {
    image: Arc<Image>,
    flat: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Sample {
    /// A raw layer with a hole, a raw one above it with short pieces, and a compressed one above both.
    fn in_dir(parent: &str) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let mut flat = pattern(SIZE, 1);
        flat[2 * MIB..3 * MIB].fill(0);
        let low = lsmt_of(&flat);
        let piece = pattern(5 * 512, 2);
        let pieces: Vec<_> = (0..64).map(|number| (8192 + number * 33, Ok(&piece[..]))).collect();
        let middle = lsmt(SIZE as u64, &pieces);
        let packed = pattern(256 << 10, 3);
        let high = zfile(&lsmt(SIZE as u64, &[(12_288, Ok(&packed))]), Algorithm::Lz4, 4096);
        for (sector, _) in pieces {
            flat[usize::try_from(sector).unwrap() * 512..][..piece.len()].copy_from_slice(&piece);
        }
        flat[12_288 * 512..][..packed.len()].copy_from_slice(&packed);
        let sources = [("low", low), ("middle", middle), ("high", high)].map(|(name, bytes)| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            Arc::new(FileSource::open(&path).unwrap()) as Arc<dyn BlobSource>
        });
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        let opened = reactor.block_on(Image::open(&reactor, sources.into(), ImageOptions::default()));
        Self { image: Arc::new(opened.unwrap().unwrap()), flat, dir }
    }

    fn attach(&self, thread: &ReactorThread) -> Box<dyn Attachment> {
        Ublk::new().attach(&self.image, &few_tags(), &[thread.handle()]).unwrap()
    }

    /// Reads `count` ranges of any place and length, aligned as sectors are, and compares them.
    fn check(&self, node: &Path, count: usize, seed: u64) {
        let node = Direct::open(node, false);
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..count {
            let len = 512 << random.usize(0..12);
            let offset = random.usize(0..=(SIZE - len) / 512) * 512;
            assert!(
                node.read(offset as u64, len).unwrap() == self.flat[offset..offset + len],
                "{len} at {offset}"
            );
        }
    }

    fn direct(&self) -> u64 {
        self.image.reads().direct.get()
    }
}

/// So few that a test uses them all.
fn few_tags() -> AttachRequest {
    AttachRequest { depth: 8, ..AttachRequest::default() }
}

#[expect(clippy::disallowed_methods, reason = "the test lets others work for a while")]
fn pause(duration: Duration) {
    thread::sleep(duration);
}

fn serving(buffer_slots: u16) -> ReactorThread {
    let config = ReactorConfig { buffer_slots, ..ReactorConfig::default() };
    ReactorThread::start("serving", config, prepare_serving_thread).unwrap()
}

/// Whether this driver can register the pages of requests; the kernels before 6.16 cannot.
fn driver_registers() -> bool {
    Ublk::new().features().unwrap().names().contains(&"AUTO_BUF_REG".to_owned())
}

#[test]
fn raw_layers_are_read_by_the_kernel_alone_and_all_bytes_are_right() {
    if !in_guest() {
        return;
    }
    let sample = Sample::in_dir("/var/tmp");
    let thread = serving(ReactorConfig::default().buffer_slots);
    let attachment = sample.attach(&thread);
    thread::scope(|scope| {
        for seed in 0..4 {
            let (sample, path) = (&sample, attachment.path());
            scope.spawn(move || sample.check(path, 300, seed));
        }
    });
    // A range that crosses an extent's border, lies in the hole or in the compressed layer takes the other way.
    let (direct, served) = (sample.direct(), 4 * 300);
    if driver_registers() {
        assert!((served / 4..served).contains(&direct), "{direct} of {served}");
    } else {
        assert_eq!(direct, 0);
    }
    assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete);
}

#[test]
fn a_raw_layer_of_a_registry_is_read_by_the_kernel_alone_once_it_is_cached() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let flat = pattern(SIZE, 4);
    let registry = Registry::start(dir.path(), &Serving::default());
    let host = registry.address();
    push_image(host, "team/app", "v1", &[lsmt_of(&flat)]);
    let daemon = Daemon::start(dir.path(), &[&plain_http(host)]);
    let path = daemon.add(&[&format!("{host}/team/app:v1")]);
    let node = Direct::open(&path, false);
    let piece = 64 << 10;
    let [(cold_bytes, cold_reads), (warm_bytes, warm_reads)] = ["cold", "warm"].map(|state| {
        for offset in (0..SIZE).step_by(piece) {
            assert!(
                node.read(offset as u64, piece).unwrap() == flat[offset..offset + piece],
                "{state}, {offset}"
            );
        }
        let count = |name| daemon.metric(&format!("stratabd_{name}_total"));
        (count("cache_fetched_bytes"), count("direct_reads"))
    });
    assert!(cold_bytes >= SIZE as u64, "{cold_bytes} bytes fetched");
    assert_eq!(warm_bytes, cold_bytes, "nothing is fetched twice");
    let pieces = (SIZE / piece) as u64;
    let direct = warm_reads - cold_reads;
    // A piece that lies in two segments of the layer takes the other way.
    assert_eq!(direct > pieces / 2, driver_registers(), "{direct} of {pieces}");
}

#[test]
fn tags_without_a_place_in_the_table_and_devices_that_reuse_places_are_served() {
    if !in_guest() {
        return;
    }
    let sample = Sample::in_dir("/var/tmp");
    let full = Sample::in_dir("/var/tmp");
    let thread = serving(3);
    let first = sample.attach(&thread);
    let second = full.attach(&thread);
    thread::scope(|scope| {
        for seed in 0..8 {
            let (sample, full) = ((&sample, first.path()), (&full, second.path()));
            scope.spawn(move || {
                sample.0.check(sample.1, 100, seed);
                full.0.check(full.1, 20, seed);
            });
        }
    });
    assert!(sample.direct() < 600 && full.direct() == 0, "{} {}", sample.direct(), full.direct());
    assert_eq!(sample.direct() > 0, driver_registers());
    assert_eq!(first.detach(DEADLINE).unwrap(), Detached::Complete);
    assert_eq!(second.detach(DEADLINE).unwrap(), Detached::Complete);
    // The places are free again.
    let third = full.attach(&thread);
    thread::scope(|scope| {
        for seed in 0..8 {
            let (full, path) = (&full, third.path());
            scope.spawn(move || full.check(path, 100, seed));
        }
    });
    assert_eq!(full.direct() > 0, driver_registers());
    assert_eq!(third.detach(DEADLINE).unwrap(), Detached::Complete);
}

#[test]
fn a_layer_that_shrinks_under_the_device_fails_the_reads_of_what_is_lost_and_no_others() {
    if !in_guest() {
        return;
    }
    let sample = Sample::in_dir("/var/tmp");
    let thread = serving(ReactorConfig::default().buffer_slots);
    let attachment = sample.attach(&thread);
    let low = OpenOptions::new().write(true).open(sample.dir.path().join("low")).unwrap();
    low.set_len(MIB as u64).unwrap();
    let node = Direct::open(attachment.path(), false);
    // The header comes first, so that the last page is lost; the middle layer has none of either.
    assert!(node.read(0, MIB - 4096).unwrap() == sample.flat[..MIB - 4096]);
    for (offset, len) in [(MIB - 4096, 4096), (MIB - 65_536, 65_536), (7 * MIB, 4096)] {
        let read = node.read(offset as u64, len);
        assert_eq!(read.map_err(|error| error.raw_os_error()), Err(Some(5)), "{len} at {offset}");
    }
    drop(node);
    assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete);
}

#[test]
fn layers_in_memory_and_buffers_of_tags_take_the_other_way() {
    if !in_guest() {
        return;
    }
    let thread = serving(ReactorConfig::default().buffer_slots);
    // The ring would give every read of tmpfs to a helper thread.
    let sample = Sample::in_dir("/dev/shm");
    let attachment = sample.attach(&thread);
    sample.check(attachment.path(), 200, 1);
    assert_eq!(sample.direct(), 0);
    assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete);

    let sample = Sample::in_dir("/var/tmp");
    let ublk = Ublk::with_copy(CopyMode::TagBuffer);
    let attachment = ublk.attach(&sample.image, &few_tags(), &[thread.handle()]).unwrap();
    sample.check(attachment.path(), 200, 1);
    assert_eq!(sample.direct(), 0);
    assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete);
}

#[test]
fn a_device_that_is_removed_under_direct_reads_is_gone_and_its_places_are_usable() {
    if !in_guest() {
        return;
    }
    let sample = Sample::in_dir("/var/tmp");
    let thread = serving(8);
    for round in 0..5 {
        let attachment = sample.attach(&thread);
        let path = attachment.path().to_owned();
        thread::scope(|scope| {
            for seed in 0..4 {
                let (sample, path) = (&sample, &path);
                scope.spawn(move || {
                    let node = Direct::open(path, false);
                    let mut random = fastrand::Rng::with_seed(seed);
                    loop {
                        let offset = random.usize(0..MIB / 4096) * 4096;
                        match node.read(offset as u64, 4096) {
                            // The end of a device that is going.
                            Ok(data) if data.is_empty() => return,
                            Ok(data) => assert!(data == sample.flat[offset..offset + 4096]),
                            Err(_) => return,
                        }
                    }
                });
            }
            pause(Duration::from_millis(100));
            attachment.detach(DEADLINE).unwrap();
        });
        assert!(!path.exists(), "round {round}");
    }
    let attachment = sample.attach(&thread);
    sample.check(attachment.path(), 200, 9);
    assert_eq!(attachment.detach(DEADLINE).unwrap(), Detached::Complete);
}
