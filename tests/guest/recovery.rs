//! Programs notice nothing of the death of their daemon: kills at any moment under load, two in a row, and restarts.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    daemon::config,
    devices::{Direct, pattern},
    frame::{in_guest, pause},
    holdings::Holdings,
    pauses::Pauses,
    support::{
        daemon::{Daemon, program},
        file_system::{EXT4, unmount},
        process,
    },
    writable::{MIB, config_with_sparse, config_with_upper, text},
};

/// Of the daemon. It has no mount namespace of its own: nothing that is unmounted in this guest is unmounted in others, and one that
/// starts later than a mount would keep it.
pub(crate) const SETTINGS: [&str; 1] = ["cache.enabled=false"];
const PATIENCE: Duration = Duration::from_secs(120);
const CHUNK: usize = 64 << 10;
/// Of the device that is only read: all of it takes an emulated machine a minute.
const READ_BYTES: usize = 32 * CHUNK;

pub(crate) fn start(dir: &Path) -> Daemon {
    Daemon::start(dir, &SETTINGS)
}

/// How often the daemon is killed in one test.
pub(crate) fn kills() -> u64 {
    env::var("STRATABD_KILLS").map_or(6, |text| text.parse().unwrap())
}

/// Programs that use devices until they are told to end. Each counts what it has done, and fails at the first error or wrong byte.
#[derive(Default)]
pub(crate) struct Load {
    is_over: AtomicBool,
    done: [AtomicU64; 3],
    /// When each has done something last, and the longest that it took since somebody asked.
    pauses: Mutex<[(Option<Instant>, Duration); 3]>,
}

impl Load {
    fn goes_on(&self, program: usize) -> bool {
        self.done[program].fetch_add(1, Ordering::Relaxed);
        let (last, longest) = &mut self.pauses.lock().unwrap_or_else(PoisonError::into_inner)[program];
        let now = Instant::now();
        *longest = last.replace(now).map_or(Duration::ZERO, |last| now - last).max(*longest);
        !self.is_over.load(Ordering::Relaxed)
    }

    /// Waits until each of the first `programs` has done so much more, of what it counts.
    pub(crate) fn wait_for(&self, programs: usize, more: u64) {
        let now = || self.done.iter().take(programs).map(|done| done.load(Ordering::Relaxed)).collect();
        let (before, began): (Vec<u64>, _) = (now(), Instant::now());
        while now().iter().zip(&before).any(|(now, before)| *now < before + more) {
            assert!(began.elapsed() < PATIENCE, "a program has stopped: {before:?} {:?}", now());
            pause();
        }
    }

    /// The longest that the first two programs were kept waiting since the last call.
    fn take_pauses(&self) -> [Duration; 2] {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        [0, 1].map(|program| std::mem::take(&mut pauses[program].1))
    }

    /// Reads the beginning of a device again and again.
    fn read(&self, device: &Path) {
        let node = Direct::open(device, false);
        let expected = node.read(0, READ_BYTES).expect("the first read fails");
        let pieces = expected.chunks(CHUNK).enumerate().cycle();
        for (index, piece) in pieces.take_while(|_| self.goes_on(0)) {
            let read = node.read((index * CHUNK) as u64, piece.len());
            assert!(read.expect("a read fails") == piece, "wrong bytes in piece {index}");
        }
    }

    /// Writes files, each of which is durable before the next, and reads what the device has of them.
    fn write_files(&self, point: &Path) {
        let bytes = |number: u64| pattern(4096 * (1 + usize::try_from(number % 16).unwrap()), number);
        let name = |number: u64| point.join(format!("file-{}", number % 64));
        for number in (0..).take_while(|_| self.goes_on(1)) {
            let path = name(number);
            fs::write(&path, bytes(number)).expect("a write fails");
            fs::File::open(&path).and_then(|file| file.sync_all()).expect("a sync fails");
            let earlier = number.saturating_sub(number % 37);
            let read = Direct::open(&name(earlier), false).read(0, bytes(earlier).len());
            assert!(read.expect("a read fails") == bytes(earlier), "wrong bytes in file {earlier}");
        }
    }

    /// Has fio write at random and verify what it has written.
    fn verify(&self, device: &Path) {
        let mut seed = 1;
        while self.goes_on(2) {
            let output = Command::new("fio")
                .args(["--name=verify", "--rw=randwrite", "--bsrange=4k-64k", "--direct=1", "--iodepth=16"])
                .args(["--ioengine=libaio", "--size=8m", "--io_size=1m", "--verify=crc32c"])
                .args(["--verify_fatal=1", "--verify_backlog=64", "--output-format=terse"])
                .args([format!("--randseed={seed}"), format!("--filename={}", text(device))])
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
            seed += 1;
        }
    }
}

/// Three devices, and what the daemon that serves them is started with.
pub(crate) struct Devices {
    dir: PathBuf,
    read_only: PathBuf,
    /// A file system is mounted from it there.
    mounted: PathBuf,
    point: PathBuf,
    raw: PathBuf,
}

impl Devices {
    pub(crate) fn new(daemon: &Daemon, dir: &Path) -> Self {
        let read_only = daemon.add(&["--config", &config(dir, 3), "--id", "1", "--queues", "2"]);
        let [sparse, log] = ["sparse", "log"].map(|name| dir.join(name));
        fs::create_dir(&sparse).unwrap();
        fs::create_dir(&log).unwrap();
        let config_of_sparse = config_with_sparse(daemon, &sparse, 64 * MIB);
        let mounted = daemon.add(&["--config", &config_of_sparse, "--id", "2"]);
        EXT4.make(&mounted);
        let point = EXT4.mount(&mounted, dir);
        let raw =
            daemon.add(&["--config", &config_with_upper(&log, None, 16 * MIB), "--id", "3", "--queues", "2"]);
        Self { dir: dir.to_owned(), read_only, mounted, point, raw }
    }

    /// Has programs use all devices while `work` is done, to which the daemon is given and which gives back another.
    pub(crate) fn under_load(&self, daemon: Daemon, work: impl FnOnce(Daemon, &Load) -> Daemon) -> Daemon {
        let load = Load::default();
        std::thread::scope(|scope| {
            let programs = [
                scope.spawn(|| load.read(&self.read_only)),
                scope.spawn(|| load.write_files(&self.point)),
                scope.spawn(|| load.verify(&self.raw)),
            ];
            load.wait_for(3, 1);
            let daemon = work(daemon, &load);
            load.wait_for(2, 8);
            load.is_over.store(true, Ordering::Relaxed);
            programs.into_iter().for_each(|program| program.join().unwrap());
            daemon
        })
    }

    /// Nothing is wrong, and nothing is left when they have been removed.
    pub(crate) fn end(self, daemon: Daemon) {
        let list = daemon.json(&["list"]);
        let states = list["devices"].as_array().unwrap().iter().map(|device| device["state"].clone());
        assert!(states.collect::<Vec<_>>() == ["live"; 3], "{list}");
        unmount(&self.point);
        EXT4.check(&self.mounted);
        daemon.json(&["del", "--all"]);
        for device in [&self.read_only, &self.mounted, &self.raw] {
            assert!(!device.exists(), "{} is left", device.display());
        }
        assert_eq!(daemon.end("-TERM"), Some(0));
        let records = fs::read_dir(self.dir.join("state/devices")).unwrap();
        assert_eq!(records.count(), 0, "records are left");
    }
}

/// Starts a daemon and kills it after as many milliseconds.
fn start_and_kill(dir: &Path, after_ms: u64) {
    let mut daemon = program(dir, &SETTINGS).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(after_ms) {
        pause();
    }
    process::signal(&daemon, "-KILL");
    process::ended(&mut daemon);
}

#[test]
fn programs_see_a_pause_and_nothing_else_when_their_daemon_is_killed() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let devices = Devices::new(&daemon, dir.path());
    let mut random = fastrand::Rng::with_seed(3);
    let (mut held, mut pauses) = (None, <[Pauses; 3]>::default());
    let daemon = devices.under_load(daemon, |mut daemon, load| {
        for _ in 0..kills() {
            load.wait_for(2, random.u64(1..40));
            load.take_pauses();
            let began = Instant::now();
            daemon.end("-KILL");
            daemon = start(dir.path());
            let ready = began.elapsed();
            load.wait_for(2, 1);
            let [reader, writer] = load.take_pauses();
            pauses.iter_mut().zip([ready, reader, writer]).for_each(|(pauses, pause)| pauses.add(pause));
            held.get_or_insert_with(|| Holdings::of(&daemon, dir.path())).check(&daemon, dir.path());
        }
        daemon
    });
    let [ready, reader, writer] = pauses;
    println!("kill to ready: {ready}\nseen by a reader: {reader}\nseen by a writer: {writer}");
    devices.end(daemon);
}

#[test]
fn a_daemon_that_is_killed_while_it_takes_over_hinders_the_next_one_as_little() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let devices = Devices::new(&daemon, dir.path());
    let mut random = fastrand::Rng::with_seed(5);
    let mut held = None;
    let daemon = devices.under_load(daemon, |mut daemon, load| {
        for _ in 0..kills().div_ceil(2) {
            load.wait_for(2, random.u64(1..40));
            daemon.end("-KILL");
            for _ in 0..2 {
                start_and_kill(dir.path(), random.u64(..1000));
            }
            daemon = start(dir.path());
            held.get_or_insert_with(|| Holdings::of(&daemon, dir.path())).check(&daemon, dir.path());
        }
        daemon
    });
    devices.end(daemon);
}

#[test]
fn a_restart_of_the_daemon_is_a_pause_as_well() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let devices = Devices::new(&daemon, dir.path());
    let mut held = None;
    let daemon = devices.under_load(daemon, |mut daemon, load| {
        for round in 1..=kills().div_ceil(2) {
            load.wait_for(2, 1 + round * 7 % 40);
            assert_eq!(daemon.end("-TERM"), Some(0));
            daemon = start(dir.path());
            held.get_or_insert_with(|| Holdings::of(&daemon, dir.path())).check(&daemon, dir.path());
        }
        daemon
    });
    devices.end(daemon);
}

/// A device with a log over it that keeps what is written, and a folder for what is made beside it.
struct Kept {
    dir: tempfile::TempDir,
    device: PathBuf,
}

impl Kept {
    const BYTES: usize = CHUNK;

    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var").unwrap();
        let config = config_with_upper(dir.path(), None, 16 * MIB);
        let daemon = start(dir.path());
        let device = daemon.add(&["--config", &config, "--id", "1", "--queues", "2"]);
        Direct::open(&device, true).write(0, &pattern(Self::BYTES, 1)).unwrap();
        daemon.end("-KILL");
        Self { dir, device }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Has a daemon die at `point` while it does what `arguments` say, and returns the next one, of which all devices are live and
    /// all that was written is there.
    fn die_at(&self, point: &str, arguments: &[&str]) -> Daemon {
        let doomed = Daemon::start_doomed(self.path(), &SETTINGS, point);
        let refused = doomed.ctl(arguments);
        assert!(!refused.status.success(), "{point} is not reached by {arguments:?}");
        assert_eq!(doomed.wait(), None, "{point}");
        let next = start(self.path());
        self.check(&next, point);
        next
    }

    fn check(&self, daemon: &Daemon, point: &str) {
        let list = daemon.json(&["list"]);
        let devices = list["devices"].as_array().unwrap();
        assert!(devices.iter().all(|device| device["state"] == "live"), "{point}: {list}");
        let read = Direct::open(&self.device, false).read(0, Self::BYTES).unwrap();
        assert!(read == pattern(Self::BYTES, 1), "what was written before {point} is not there");
    }

    /// Whether device 7 is there.
    fn has_seventh(daemon: &Daemon) -> bool {
        daemon.json(&["list"])["devices"].as_array().unwrap().iter().any(|device| device["id"] == 7)
    }

    /// Nothing is left when all devices have been removed.
    fn end(self, daemon: Daemon) {
        daemon.finish();
        let nodes = fs::read_dir("/dev").unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = nodes.filter(|name| name.to_string_lossy().starts_with("ublkc")).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(fs::read_dir(self.path().join("state/devices")).unwrap().count(), 0, "records are left");
    }
}

#[test]
fn a_daemon_that_dies_while_it_adds_or_removes_a_device_leaves_all_of_it_or_nothing() {
    if !in_guest() {
        return;
    }
    let kept = Kept::new();
    let config = config(kept.path(), 1);
    let add = ["add", "--config", &config, "--id", "7"];
    // What a take-over passes as well the daemon would reach before it is ready.
    for point in ["QueuesOpen", "QueueFetches", "QueuesFetched", "AddUnnoted"] {
        let dir = tempfile::tempdir().unwrap();
        let doomed = Daemon::start_doomed(dir.path(), &SETTINGS, point);
        assert!(!doomed.ctl(&add).status.success(), "{point}");
        assert_eq!(doomed.wait(), None, "{point}");
        let daemon = start(dir.path());
        let info = daemon.ctl(&["info", "7"]);
        let said = String::from_utf8_lossy(&info.stdout);
        assert!(info.status.code() == Some(3) || said.contains("live"), "{point}: {info:?}");
        daemon.finish();
        assert!(!Path::new("/dev/ublkc7").exists(), "{point}");
    }
    for point in ["AddRecorded", "AddMade", "AddShaped", "AddStarted"] {
        let daemon = kept.die_at(point, &add);
        if Kept::has_seventh(&daemon) {
            daemon.json(&["del", "7"]);
        }
        assert!(!Path::new("/dev/ublkc7").exists(), "{point}");
        daemon.end("-KILL");
    }
    for point in ["RemovalStopped", "RemovalDeleted"] {
        let daemon = start(kept.path());
        daemon.add(&add[1..]);
        daemon.end("-KILL");
        let daemon = kept.die_at(point, &["del", "7"]);
        assert!(!Kept::has_seventh(&daemon), "{point}: a removal that has begun goes on");
        daemon.end("-KILL");
    }
    let daemon = start(kept.path());
    kept.end(daemon);
}

#[test]
fn a_daemon_that_dies_while_it_changes_layers_leaves_the_old_ones_or_the_new_ones() {
    if !in_guest() {
        return;
    }
    let kept = Kept::new();
    let next = kept.path().join("next");
    for point in ["SnapshotSealed", "SnapshotNamed"] {
        kept.die_at(point, &["snapshot", "1", "--to", text(&next.join(point))]).end("-KILL");
    }
    let fork = ["fork", "1", "--name", "forked", "--id", "7"];
    let daemon = kept.die_at("ForkPrepared", &fork);
    assert!(!Kept::has_seventh(&daemon) && !kept.path().join("forked").exists(), "a fork that nobody knows");
    let grows = daemon.json(&["features"])["names"].to_string().contains("UPDATE_SIZE");
    daemon.end("-KILL");
    for (point, size) in [("ResizeGrown", 24 * MIB), ("ResizeTold", 32 * MIB)] {
        if !grows {
            continue;
        }
        let daemon = kept.die_at(point, &["resize", "1", "--size", &size.to_string()]);
        let sectors = fs::read_to_string("/sys/block/ublkb1/size").unwrap();
        assert_eq!(sectors.trim().parse(), Ok(size / 512), "{point}");
        daemon.end("-KILL");
    }
    let daemon = start(kept.path());
    kept.end(daemon);
}

#[test]
fn a_daemon_that_dies_while_it_takes_a_device_over_leaves_it_to_the_next_one() {
    if !in_guest() {
        return;
    }
    let kept = Kept::new();
    let points = [
        "TakeOverOpened",
        "TakeOverBegun",
        "QueuesOpen",
        "QueueFetches",
        "QueuesFetched",
        "TakeOverFetching",
        "TakeOverEnded",
        "AddUnnoted",
    ];
    for point in points {
        // Twice in a row, as under a service manager.
        for _ in 0..2 {
            let mut doomed = program(kept.path(), &SETTINGS);
            let mut doomed = doomed.env("STRATABD_DIE_AT", point).spawn().unwrap();
            assert_eq!(process::ended(&mut doomed), None, "{point} is not reached");
        }
        let daemon = start(kept.path());
        kept.check(&daemon, point);
        daemon.end("-KILL");
    }
    let daemon = start(kept.path());
    kept.end(daemon);
}
