//! A machine that loses its power, again and again: `ci/vm/power-cut` kills the guest that this runs in, and boots it anew.
//!
//! A writable layer lies on an ext4 of `/dev/vdc`, a disk with a volatile write cache that outlives the guest, and the
//! file system under test lies on a device with that layer. Each boot looks for what the one before was told is durable,
//! and then makes files durable and says so until it is killed.
#![expect(clippy::unwrap_used, reason = "what fails while a test is set up fails the test")]

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use support::{
    daemon::Daemon,
    file_system::{BTRFS, EXT4, FileSystem, XFS, unmount},
    records::{self, Durable},
};

#[expect(dead_code, reason = "each test binary uses a part of the support")]
mod support;

/// Writers, each of which has files of its own, so that flushes meet.
const WRITERS: u64 = 3;
/// The file system of the disk below the layer.
const BELOW: FileSystem = EXT4;
const DISK: &str = "/dev/vdc";
/// Where the disk is mounted: always the same, since the configuration on it names files on it.
const PLACE: &str = "/var/disk";

/// What the boot before has said: lines of `durable FILE VERSION`, the last of which may be cut.
fn durable_before() -> Durable {
    let said = fs::File::open("/run/said").and_then(io::read_to_string).unwrap();
    let whole = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    whole
        .filter_map(|line| {
            let (file, version) = line.strip_prefix("durable ")?.split_once(' ')?;
            Some((file.parse().unwrap(), version.parse().unwrap()))
        })
        .collect()
}

/// Mounts the disk, and starts a daemon with a device whose layer is on it; makes all that in the first boot.
fn device(dir: &Path, file_system: FileSystem, is_first: bool) -> (Daemon, PathBuf) {
    let disk = Path::new(DISK);
    if is_first {
        BELOW.make(disk);
    }
    let point = BELOW.mount(disk, Path::new(PLACE));
    let [data, index, config] = ["upper.data", "upper.index", "config.json"].map(|name| point.join(name));
    if is_first {
        let size = file_system.size_bytes.to_string();
        let create = Command::new("ublk-ctl")
            .args(["layer", "create", "--size", &size])
            .args([&data, &index])
            .status();
        assert!(create.unwrap().success());
        let upper = serde_json::json!({"upper": {"data": data, "index": index}});
        fs::write(&config, upper.to_string()).unwrap();
        rustix::fs::sync();
    }
    let daemon = Daemon::start(dir, &["cache.enabled=false"]);
    let path = daemon.add(&["--config", config.to_str().unwrap(), "--queues", "2"]);
    (daemon, path)
}

#[test]
fn what_was_durable_when_the_power_went_is_there() {
    let Ok(round) = env::var("STRATABD_POWER_CUT_ROUND") else {
        eprintln!("skipped: it needs a guest that is killed, run ci/vm/power-cut");
        return;
    };
    let round: u32 = round.parse().unwrap();
    let name = env::var("STRATABD_POWER_CUT_FILE_SYSTEM").unwrap();
    let file_system = [EXT4, XFS, BTRFS].into_iter().find(|known| known.name == name).unwrap();
    let dir = tempfile::tempdir_in("/var").unwrap();
    let (daemon, path) = device(dir.path(), file_system, round == 0);
    let folder = |point: &Path, round: u32| point.join(format!("round-{round}"));
    if round == 0 {
        file_system.make(&path);
    } else {
        let durable = durable_before();
        let point = file_system.mount(&path, dir.path());
        let ahead = records::check(&folder(&point, round - 1), &durable).unwrap();
        println!("{} files were durable, {ahead} of them have more", durable.len());
        unmount(&point);
        file_system.check(&path);
    }
    if env::var_os("STRATABD_POWER_CUT_LAST").is_some() {
        daemon.finish();
        return;
    }
    let point = file_system.mount(&path, dir.path());
    fs::create_dir(folder(&point, round)).unwrap();
    rustix::fs::sync();
    std::thread::scope(|scope| {
        for turn in 0..WRITERS {
            let folder = folder(&point, round);
            scope.spawn(move || {
                records::work(&folder, (turn, WRITERS), |file, version| {
                    let line = format!("durable {file} {version}\n");
                    io::stdout().lock().write_all(line.as_bytes()).is_ok()
                })
                .unwrap();
            });
        }
    });
}

#[test]
fn a_lost_version_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let durable = Mutex::new(Durable::new());
    records::work(dir.path(), (0, 1), |file, version| {
        let mut durable = durable.lock().unwrap();
        durable.insert(file, version);
        durable.values().sum::<u64>() < 150
    })
    .unwrap();
    let durable = durable.into_inner().unwrap();
    assert_eq!(records::check(dir.path(), &durable), Ok(0));
    for (file, version) in durable.iter().filter(|(_, version)| **version > 2) {
        let tell = |version: u64| {
            let mut told = durable.clone();
            told.insert(*file, version);
            records::check(dir.path(), &told)
        };
        assert_eq!(tell(version - 1), Ok(1), "the last one was not told");
        assert!(tell(version + 1).is_err(), "file {file} lacks version {}", version + 1);
        assert!(tell(version - 2).is_err(), "file {file} is two versions ahead");
    }
}
