//! A device whose registry misbehaves in every way we know: no wrong byte, no hang, bounded requests.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    frame::in_guest,
    support::{
        device::Attached,
        fault_proxy::{Behaviour, Fault, FaultProxy},
        layer_writer::{Algorithm, lsmt, tar, zfile},
        registry::{Registry, Serving, push_image},
    },
};

const SIZE: usize = 6 << 20;
const BLOCK: usize = 4096;

/// Bytes that fio can verify by themselves: each block of 4 KiB says where it belongs and has a checksum.
fn verifiable_bytes() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new("fio")
        .args([
            "--name=write",
            "--rw=write",
            "--bs=4k",
            "--verify=crc32c",
            "--do_verify=0",
            "--refill_buffers",
        ])
        .args(["--buffer_compress_percentage=50", &format!("--size={SIZE}"), "--filename"])
        .arg(file.path())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let mut bytes = Vec::new();
    fs::File::open(file.path()).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Three compressed layers, each of which has every third run of 64 blocks.
fn layers() -> Vec<Vec<u8>> {
    let flat = verifiable_bytes();
    let run = 64 * BLOCK;
    let pack = |layer: usize| {
        let mappings: Vec<_> = flat
            .chunks(run)
            .enumerate()
            .filter(|(number, _)| number % 3 == layer)
            .map(|(number, bytes)| ((number * run / 512) as u64, Ok(bytes)))
            .collect();
        lsmt(SIZE as u64, &mappings)
    };
    vec![
        tar(&zfile(&pack(0), Algorithm::Lz4, 4096)),
        zfile(&pack(1), Algorithm::Zstd, 16_384),
        tar(&zfile(&pack(2), Algorithm::Lz4, 65_536)),
    ]
}

struct Bench {
    root: tempfile::TempDir,
    registry: Registry,
    proxy: FaultProxy,
    round: u32,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::start(root.path(), &Serving::default());
        push_image(registry.address(), "test", "latest", &layers());
        let proxy = FaultProxy::start(&registry.address().to_string());
        Self { root, registry, proxy, round: 0 }
    }

    /// Attaches the image through the proxy with a cache that has nothing.
    fn attach(&mut self) -> Attached {
        self.round += 1;
        let cache = self.root.path().join(format!("cache-{}", self.round));
        let host = self.proxy.address();
        let image = format!("{host}/test:latest");
        Attached::add(&[&image, "--plain-http", &host, "--cache-dir", cache.to_str().unwrap()])
    }

    /// Eight jobs that read all of the device in random order, directly, and verify each block.
    fn start_fio(device: &Path) -> Child {
        Command::new("timeout")
            .args(["120", "fio", "--name=verify", "--rw=randread", "--bs=4k", "--direct=1", "--readonly"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--ioengine=libaio", "--iodepth=4", "--numjobs=8"])
            .args(["--group_reporting", &format!("--size={SIZE}"), "--filename"])
            .arg(device)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }
}

/// Reads all of the device eight times over under each of the faults; every block must be right, and requests bounded.
fn assert_survives(faults: Vec<(&str, Vec<(u64, Fault)>)>) {
    let mut bench = Bench::new();
    let healthy = {
        let device = bench.attach();
        assert!(Bench::start_fio(device.path()).wait().unwrap().success(), "healthy");
        bench.proxy.requests()
    };
    println!("healthy: {healthy} requests");
    for (name, faults) in faults {
        bench.proxy.behave(Behaviour { login: true, ..Behaviour::healthy() });
        let before = bench.proxy.requests();
        let began = Instant::now();
        let device = bench.attach();
        bench.proxy.behave(Behaviour { faults, login: true, ..Behaviour::healthy() });
        assert!(Bench::start_fio(device.path()).wait().unwrap().success(), "{name}");
        let requests = bench.proxy.requests() - before;
        println!("{name}: {requests} requests, {:?}", began.elapsed());
        assert!(requests <= healthy * 3 + 30, "{name}: {requests} requests, {healthy} when healthy");
    }
}

#[test]
fn refused_requests_are_made_again() {
    if !in_guest() {
        return;
    }
    assert_survives(vec![
        ("500", vec![(4, Fault::Status(500))]),
        ("429", vec![(6, Fault::Status(429))]),
        ("expired token", vec![(3, Fault::Status(401))]),
    ]);
}

#[test]
fn answers_of_the_wrong_length_or_range_are_asked_for_again() {
    if !in_guest() {
        return;
    }
    assert_survives(vec![
        ("cut", vec![(4, Fault::CutBody)]),
        ("short", vec![(4, Fault::ShortBody)]),
        ("long", vec![(4, Fault::LongBody)]),
        ("wrong range", vec![(4, Fault::WrongRange)]),
    ]);
}

#[test]
fn wrong_bytes_and_whole_blobs_are_never_read_as_the_range() {
    if !in_guest() {
        return;
    }
    let cut_and_short = [(7, Fault::CutBody), (9, Fault::ShortBody), (61, Fault::WrongBody)];
    assert_survives(vec![
        ("wrong bytes", vec![(61, Fault::WrongBody)]),
        ("whole blob", vec![(4, Fault::Full)]),
        ("all", [(11, Fault::Status(503))].into_iter().chain(cut_and_short).collect()),
    ]);
}

#[test]
fn a_slow_or_restarting_registry_delays_and_does_not_fail() {
    if !in_guest() {
        return;
    }
    let mut bench = Bench::new();
    let device = bench.attach();
    bench.proxy.behave(Behaviour { delay: Duration::from_millis(100), ..Behaviour::healthy() });
    let mut fio = Bench::start_fio(device.path());
    pause(Duration::from_millis(500));
    let address = bench.registry.address();
    bench.registry.stop();
    pause(Duration::from_secs(2));
    bench.registry = Registry::start_at(bench.root.path(), &Serving::default(), address);
    assert!(fio.wait().unwrap().success());
}

#[test]
fn a_registry_that_is_gone_ends_in_an_error_before_the_deadline_and_heals_later() {
    if !in_guest() {
        return;
    }
    let mut bench = Bench::new();
    let device = bench.attach();
    for outage in [
        Behaviour { down: true, ..Behaviour::healthy() },
        Behaviour { faults: vec![(1, Fault::Stall)], ..Behaviour::healthy() },
    ] {
        bench.proxy.behave(outage);
        let before = bench.proxy.requests();
        let began = Instant::now();
        assert!(!Bench::start_fio(device.path()).wait().unwrap().success(), "the bytes cannot be had");
        assert!(began.elapsed() < Duration::from_secs(100), "hung for {:?}", began.elapsed());
        println!("outage: {} requests, {:?}", bench.proxy.requests() - before, began.elapsed());
    }
    bench.proxy.behave(Behaviour::healthy());
    assert!(Bench::start_fio(device.path()).wait().unwrap().success(), "healed");
}

#[test]
fn a_cold_attach_of_ten_layers_takes_few_ranged_requests_and_a_constant_number_of_round_trips() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let proxy = FaultProxy::start(&registry.address().to_string());
    let host = proxy.address();
    let delay = Duration::from_millis(50);
    let mut random = fastrand::Rng::with_seed(5);
    let mut trips = Vec::new();
    for count in [1_usize, 10] {
        let layers: Vec<_> = (0..count)
            .map(|layer| {
                let bytes: Vec<u8> = (0..1 << 20).map(|_| random.u8(..)).collect();
                tar(&zfile(&lsmt(64 << 20, &[((layer * 2048) as u64, Ok(&bytes))]), Algorithm::Lz4, 4096))
            })
            .collect();
        push_image(registry.address(), &format!("cold{count}"), "latest", &layers);
        proxy.behave(Behaviour { delay, ..Behaviour::healthy() });
        let cache = root.path().join(format!("cache-{count}"));
        let before = proxy.requests();
        let began = Instant::now();
        let image = format!("{host}/cold{count}:latest");
        let device = Attached::add(&[&image, "--plain-http", &host, "--cache-dir", cache.to_str().unwrap()]);
        let requests = proxy.requests() - before;
        trips.push(proxy.counts().round_trips(began));
        println!("{count} layers: {requests} requests in {trips:?} round trips, {:?}", began.elapsed());
        // The manifest and perhaps a challenge before it; then at most three for each layer.
        assert!(requests <= 3 + 3 * count as u64, "{count} layers took {requests} requests");
        assert_eq!(proxy.counts().unranged.load(std::sync::atomic::Ordering::SeqCst), 0);
        drop(device);
    }
    // Ten layers are asked for side by side; a slow machine may spread them over one or two trips more.
    assert!(trips[1] <= trips[0] + 3, "round trips for one and for ten layers: {trips:?}");
}

#[expect(clippy::disallowed_methods, reason = "the test waits for other processes")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
