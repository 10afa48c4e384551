//! A device whose registry misbehaves in every way we know: no wrong byte, no hang, bounded requests.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use crate::{
    frame::{in_guest, wait_until},
    support::{
        daemon::{Daemon, plain_http},
        device::Attached,
        fault_proxy::{Behaviour, Fault, FaultProxy},
        layer_writer::{Algorithm, lsmt, tar, zfile},
        registry::{Registry, Serving, push_image},
    },
};

const SIZE: usize = 3 << 20;
const BLOCK: usize = 4096;
/// Requests that a healthy run needs at most: about 60, of which the adaptive sizes of fetches make some more or less.
const HEALTHY_REQUESTS_MAX: u64 = 100;
/// Tries of one fetch, as the settings have it by default.
const TRIES: u64 = 8;
/// Jobs of fio, and the reads that each has in flight.
const JOBS: u64 = 2;
const DEPTH: u64 = 16;
/// Requests in an outage at most: all tries of all reads in flight, each of which may lie in two fetches.
const OUTAGE_REQUESTS_MAX: u64 = TRIES * JOBS * DEPTH * 2;

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

    /// Attaches the image through the proxy by a daemon with a cache that has nothing.
    fn serve(&mut self, set: &[&str]) -> (Daemon, PathBuf) {
        self.round += 1;
        let host = self.proxy.address();
        let plain = plain_http(&host);
        let settings = [&[plain.as_str()], set].concat();
        let daemon = Daemon::start(&self.root.path().join(format!("daemon-{}", self.round)), &settings);
        let device = daemon.add(&[&format!("{host}/test:latest")]);
        (daemon, device)
    }

    fn unanswered(&self) -> u64 {
        self.proxy.counts().unanswered.load(Ordering::SeqCst)
    }

    /// Jobs that each read all of the device in random order, directly, in requests of up to eight blocks, and verify each block.
    fn start_fio(device: &Path) -> Child {
        Self::start_fio_with(device, "4k-32k")
    }

    /// The same in requests of these sizes, as fio writes them.
    fn start_fio_with(device: &Path, sizes: &str) -> Child {
        Command::new("timeout")
            .args(["120", "fio", "--name=verify", "--rw=randread", "--direct=1"])
            .arg(format!("--bsrange={sizes}"))
            .args(["--verify=crc32c", "--verify_interval=4k", "--verify_fatal=1", "--readonly"])
            .args(["--ioengine=libaio", "--group_reporting"])
            .args([format!("--iodepth={DEPTH}"), format!("--numjobs={JOBS}"), format!("--size={SIZE}")])
            .arg("--filename")
            .arg(device)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Reads all of a device whose registry has these faults.
    fn assert_survives(&mut self, name: &str, faults: &[(u64, Fault)], healthy: u64) {
        let kinds: Vec<Fault> = faults.iter().map(|(_, fault)| *fault).collect();
        let struck = |bench: &Self| -> Vec<u64> {
            kinds.iter().map(|fault| bench.proxy.counts().struck(*fault)).collect()
        };
        self.proxy.behave(Behaviour { login: true, ..Behaviour::healthy() });
        let (requests_before, struck_before) = (self.proxy.requests(), struck(self));
        let began = Instant::now();
        let (daemon, device) = self.serve(&[]);
        self.proxy.behave(Behaviour { faults: faults.to_vec(), login: true, ..Behaviour::healthy() });
        // A wrong answer has many blocks wrong, each of which a request asks for three times at most: many at once may fail.
        let sizes = if kinds.contains(&Fault::WrongBody) { "4k-4k" } else { "4k-32k" };
        assert!(Self::start_fio_with(&device, sizes).wait().unwrap().success(), "{name}");
        let requests = self.proxy.requests() - requests_before;
        let strikes: Vec<_> =
            struck(self).iter().zip(&struck_before).map(|(after, before)| after - before).collect();
        let refuted = daemon.metric("stratabd_cache_invalidations_total");
        println!("{name}: {requests} requests, struck {strikes:?}, {refuted} refuted, {:?}", began.elapsed());
        assert!(strikes.iter().all(|count| *count > 0), "{name}: {kinds:?} struck {strikes:?} times");
        assert!(requests <= healthy * 3 + 30, "{name}: {requests} requests, {healthy} when healthy");
        // Checksums are the only thing that sees right lengths of wrong bytes.
        assert_eq!(refuted > 0, kinds.contains(&Fault::WrongBody), "{name}: {refuted} ranges refuted");
    }
}

/// What a round is called, and how many answers each of its faults befalls one of.
type Round = (&'static str, &'static [(u64, Fault)]);

/// Every kind of fault must strike, every block must be right, and requests bounded.
fn assert_survives(rounds: [Round; 5]) {
    let mut bench = Bench::new();
    let healthy = {
        let (_daemon, device) = bench.serve(&[]);
        assert!(Bench::start_fio(&device).wait().unwrap().success(), "healthy");
        bench.proxy.requests()
    };
    println!("healthy: {healthy} requests");
    assert!(healthy <= HEALTHY_REQUESTS_MAX, "{healthy} requests when healthy");
    for (name, faults) in rounds {
        bench.assert_survives(name, faults, healthy);
    }
}

#[test]
fn refused_requests_and_cut_answers_are_asked_for_again() {
    if !in_guest() {
        return;
    }
    assert_survives([
        ("500", &[(4, Fault::Status(500))]),
        ("429", &[(6, Fault::Status(429))]),
        ("expired token", &[(3, Fault::Status(401))]),
        ("cut", &[(4, Fault::CutBody)]),
        ("short", &[(4, Fault::ShortBody)]),
    ]);
}

#[test]
fn wrong_bytes_ranges_and_whole_blobs_are_never_read_as_the_range() {
    if !in_guest() {
        return;
    }
    assert_survives([
        ("long", &[(4, Fault::LongBody)]),
        ("wrong range", &[(4, Fault::WrongRange)]),
        ("wrong bytes", &[(29, Fault::WrongBody)]),
        ("whole blob", &[(4, Fault::Full)]),
        (
            "all",
            &[(11, Fault::Status(503)), (7, Fault::CutBody), (9, Fault::ShortBody), (29, Fault::WrongBody)],
        ),
    ]);
}

#[test]
fn a_slow_or_restarting_registry_delays_and_does_not_fail() {
    if !in_guest() {
        return;
    }
    let mut bench = Bench::new();
    let (_daemon, device) = bench.serve(&[]);
    bench.proxy.behave(Behaviour { delay: Duration::from_millis(100), ..Behaviour::healthy() });
    let before = bench.proxy.requests();
    let mut fio = Bench::start_fio(&device);
    wait_until("fio makes a request", || bench.proxy.requests() > before);
    let address = bench.registry.address();
    bench.registry.stop();
    wait_until("a request meets the outage", || bench.unanswered() > 0);
    pause(Duration::from_secs(1));
    bench.registry = Registry::start_at(bench.root.path(), &Serving::default(), address);
    assert!(fio.wait().unwrap().success());
    let requests = bench.proxy.requests() - before;
    println!("restart: {requests} requests, {} met the outage", bench.unanswered());
    // At worst every read in flight is one that has to be tried again and again.
    assert!(requests <= HEALTHY_REQUESTS_MAX + OUTAGE_REQUESTS_MAX, "{requests} requests");
}

#[test]
fn a_registry_that_is_gone_ends_in_an_error_before_the_deadline_and_heals_later() {
    if !in_guest() {
        return;
    }
    let mut bench = Bench::new();
    let (_daemon, device) = bench.serve(&["registry.limits.request_deadline_ms=8000"]);
    for outage in [
        Behaviour { down: true, ..Behaviour::healthy() },
        Behaviour { faults: vec![(1, Fault::Stall)], ..Behaviour::healthy() },
    ] {
        let down = outage.down;
        bench.proxy.behave(outage);
        let before = bench.proxy.requests();
        let began = Instant::now();
        assert!(!Bench::start_fio(&device).wait().unwrap().success(), "the bytes cannot be had");
        assert!(began.elapsed() < Duration::from_secs(60), "hung for {:?}", began.elapsed());
        let requests = bench.proxy.requests() - before;
        let met = if down { bench.unanswered() } else { bench.proxy.counts().struck(Fault::Stall) };
        println!("outage: {requests} requests, {met} met it, {:?}", began.elapsed());
        assert!(met > 0, "no request met the outage");
        // A job of fio ends at its first error, so that each of its reads fails once.
        assert!(requests <= OUTAGE_REQUESTS_MAX, "{requests} requests in an outage");
    }
    bench.proxy.behave(Behaviour::healthy());
    assert!(Bench::start_fio(&device).wait().unwrap().success(), "healed");
}

#[test]
fn a_cold_attach_of_ten_layers_takes_few_ranged_requests_and_at_most_three_round_trips_more_than_one() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::start(root.path(), &Serving::default());
    let proxy = FaultProxy::start(&registry.address().to_string());
    let host = proxy.address();
    // Long, so that what a slow machine sends a little later still overlaps.
    let delay = Duration::from_millis(250);
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
        assert_eq!(proxy.counts().unranged.load(Ordering::SeqCst), 0);
        drop(device);
    }
    // The number is the same for any count of layers, since they are asked for side by side: one after the other, nine more
    // layers would be nine trips more at the least. A slow machine may answer some late and so spread one trip over two.
    assert!(trips[1] <= trips[0] + 3, "round trips for one and for ten layers: {trips:?}");
}

#[expect(clippy::disallowed_methods, reason = "the test waits for other processes")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
