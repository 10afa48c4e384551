//! A removal always ends, and says what it could not do: while the daemon hangs, while a device waits for it or cannot come back, while
//! another removal is under way, and while a program holds the device.

use std::{
    fs::{self, File},
    path::Path,
    process::Output,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    devices::{Direct, pattern},
    disk::{Disk, waits_for_disk},
    frame::{in_guest, wait_until},
    recovery::start,
    support::{
        daemon::Daemon,
        file_system::{EXT4, unmount},
    },
    writable::{MIB, config_with_upper},
};

/// The longest that a removal may take: twice the time that it has by itself, on a busy machine.
const BOUND: Duration = Duration::from_secs(50);

/// What the tool says of a removal, which has ended in time.
fn del(daemon: &Daemon, arguments: &[&str]) -> Output {
    let began = Instant::now();
    let output = daemon.ctl(&[&["del"], arguments].concat());
    println!("del {arguments:?} took {} ms: {output:?}", began.elapsed().as_millis());
    assert!(began.elapsed() < BOUND, "{arguments:?}");
    output
}

/// A removal that is refused with this status, and says these words.
fn refused(daemon: &Daemon, arguments: &[&str], status: i32, words: &str) {
    let output = del(daemon, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(status) && said.contains(words), "{arguments:?}: {output:?}");
}

fn state_of(daemon: &Daemon, id: u32) -> String {
    let list = daemon.json(&["list"]);
    let devices = list["devices"].as_array().unwrap();
    devices
        .iter()
        .find(|device| device["id"] == id)
        .map_or("", |device| device["state"].as_str().unwrap())
        .to_owned()
}

#[test]
fn a_removal_from_a_daemon_that_is_stopped_ends_and_says_so() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let path = daemon.add(&["--config", &config_with_upper(dir.path(), None, MIB), "--id", "1"]);
    daemon.signal("-STOP");
    refused(&daemon, &["1"], 8, "it hangs, or is stopped");
    daemon.signal("-CONT");
    assert!(path.exists(), "it was not asked to go");
    assert!(del(&daemon, &["1"]).status.success());
    daemon.finish();
}

/// A device whose daemon has died, and a next daemon that cannot have its layer; to be dropped for to have it.
fn waiting(dir: &Path, use_it: impl FnOnce(&Path)) -> (Daemon, File) {
    let daemon = start(dir);
    let path = daemon.add(&["--config", &config_with_upper(dir, None, 16 * MIB), "--id", "1"]);
    EXT4.make(&path);
    use_it(&path);
    daemon.end("-KILL");
    let lock = File::open(dir.join("upper.data")).unwrap();
    wait_until("the lock is free", || flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok());
    let daemon = start(dir);
    assert_ne!(state_of(&daemon, 1), "live");
    (daemon, lock)
}

#[test]
fn a_device_that_waits_is_removed_when_nobody_has_it_mounted_or_by_force() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let (daemon, lock) = waiting(dir.path(), |path| drop(EXT4.mount(path, dir.path())));
    refused(&daemon, &["1"], 7, "is in use");
    let point = dir.path().join("mount");
    let writer = thread::spawn(move || {
        let file = point.join("file");
        fs::write(&file, b"x").and_then(|()| File::open(&file)?.sync_all())
    });
    assert_ne!(state_of(&daemon, 1), "live");
    assert!(del(&daemon, &["1", "--force"]).status.success());
    assert!(writer.join().unwrap().is_err(), "the device has gone");
    assert_eq!(state_of(&daemon, 1), "");
    unmount(&dir.path().join("mount"));
    drop(lock);
    daemon.finish();
}

#[test]
fn a_device_that_waits_is_removed_while_a_program_reads_it() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let mut node = None;
    let (daemon, lock) = waiting(dir.path(), |path| node = Some(Direct::open(path, false)));
    let node = node.unwrap();
    let reader = thread::spawn(move || node.read(0, 4096).map_err(|error| (error, node)));
    let removed = del(&daemon, &["1"]);
    assert!(removed.status.success(), "{removed:?}");
    assert!(reader.join().unwrap().is_err(), "the device has gone");
    wait_until("its number is free", || !Path::new("/dev/ublkc1").exists());
    drop(lock);
    daemon.finish();
}

#[test]
fn removals_of_a_device_on_a_disk_that_hangs_end_and_the_last_one_loses_nothing() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let disk = Disk::new(dir.path());
    let daemon = start(dir.path());
    let config = config_with_upper(&disk.point, None, 16 * MIB);
    let path = daemon.add(&["--config", &config, "--id", "1"]);
    let node = Direct::open(&path, true);
    node.write(0, &pattern(64 << 10, 1)).unwrap();
    disk.stop();
    let flush = thread::spawn(move || node.file().sync_all());
    wait_until("the flush hangs", || waits_for_disk(daemon.pid()));
    thread::scope(|scope| {
        let first = scope.spawn(|| refused(&daemon, &["1"], 9, "not durable yet"));
        wait_until("the removal has begun", || state_of(&daemon, 1).contains("detaching"));
        refused(&daemon, &["1"], 7, "is being removed");
        first.join().unwrap();
    });
    assert!(flush.join().unwrap().is_err(), "nobody has made it durable");
    disk.go_on();
    assert!(del(&daemon, &["1"]).status.success());
    let path = daemon.add(&["--config", &config]);
    assert!(Direct::open(&path, false).read(0, 64 << 10).unwrap() == pattern(64 << 10, 1));
    daemon.finish();
}
