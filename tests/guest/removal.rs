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
        device::Attached,
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

/// With little time for the driver, so that what hangs there is given up soon.
const HASTY: [&str; 3] =
    ["cache.enabled=false", "device.attach_timeout_ms=3000", "device.detach_timeout_ms=3000"];

#[test]
fn a_device_whose_take_over_hangs_in_the_driver_is_removed() {
    if !in_guest() {
        return;
    }
    for command in ["START_USER_RECOVERY", "END_USER_RECOVERY"] {
        let dir = tempfile::tempdir_in("/var").unwrap();
        let daemon = start(dir.path());
        let path = daemon.add(&["--config", &config_with_upper(dir.path(), None, 16 * MIB), "--id", "1"]);
        let node = Direct::open(&path, true);
        daemon.end("-KILL");
        let writer = thread::spawn(move || node.write(0, &pattern(4096, 1)));
        let daemon = Daemon::start_with(dir.path(), &HASTY, ("STRATABD_HANG_AT", command));
        wait_until("the take-over is under way", || state_of(&daemon, 1) == "attaching");
        refused(&daemon, &["2"], 3, "there is no device 2");
        let recovered = daemon.ctl(&["recover", "1"]);
        // It is busy with a try of its own, or tries at once.
        assert!(matches!(recovered.status.code(), Some(7 | 9)), "{command}: {recovered:?}");
        let removed = del(&daemon, &["1"]);
        assert!(removed.status.success(), "{command}: {removed:?}");
        assert!(writer.join().unwrap().is_err(), "{command}: the device has gone");
        assert_eq!(state_of(&daemon, 1), "", "{command}");
        wait_until("its number is free", || !Path::new("/dev/ublkc1").exists());
        daemon.end("-KILL");
    }
}

#[test]
fn a_device_whose_removal_hangs_in_the_driver_is_the_next_daemons_to_remove() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = Daemon::start_with(dir.path(), &HASTY, ("STRATABD_HANG_AT", "STOP_DEV"));
    let path = daemon.add(&["--config", &config_with_upper(dir.path(), None, 16 * MIB), "--id", "1"]);
    refused(&daemon, &["1"], 9, "STOP_DEV");
    assert!(path.exists());
    daemon.end("-KILL");
    let daemon = start(dir.path());
    wait_until("it has gone", || state_of(&daemon, 1).is_empty() && !path.exists());
    daemon.finish();
}

/// Whoever has the character device open keeps the daemon from taking it over.
#[test]
fn a_device_whose_take_over_another_program_holds_up_is_removed() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    daemon.add(&["--config", &config_with_upper(dir.path(), None, 16 * MIB), "--id", "1"]);
    daemon.end("-KILL");
    let mut options = File::options();
    let mut held = None;
    wait_until("the dead process has let go of it", || {
        held = options.read(true).write(true).open("/dev/ublkc1").ok();
        held.is_some()
    });
    let daemon = Daemon::start(dir.path(), &HASTY);
    wait_until("it cannot be had", || state_of(&daemon, 1) != "live");
    let removed = del(&daemon, &["1"]);
    assert!(removed.status.success(), "{removed:?}");
    drop(held);
    wait_until("its number is free", || !Path::new("/dev/ublkc1").exists());
    daemon.finish();
}

#[test]
fn a_foreground_server_that_is_stopped_holds_up_nobody_who_asks_for_its_device() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let config = config_with_upper(dir.path(), None, 16 * MIB);
    let state = format!("daemon.state_dir=\"{}\"", dir.path().join("state").display());
    let mut stopped = Attached::add(&["--no-cache", "--set", &state, "--config", &config, "--id", "1"]);
    stopped.signal("-STOP");
    let ends = |arguments: &[&str]| {
        let began = Instant::now();
        let output = daemon.ctl(arguments);
        assert!(began.elapsed() < BOUND, "{arguments:?} took {:?}", began.elapsed());
        output
    };
    let pid = format!("\"server_pid\":{}", stopped.pid());
    for arguments in [&["list", "--json"][..], &["info", "1", "--json"]] {
        let output = ends(arguments);
        let said = String::from_utf8_lossy(&output.stdout).replace(' ', "");
        assert!(output.status.success() && said.contains(&pid), "{arguments:?}: {output:?}");
    }
    let alone = ["recover", "1", "--foreground", "--set", "cache.enabled=false", "--set", &state];
    for arguments in [&["del", "1"][..], &["del", "1", "--force"], &["recover", "1"], &alone] {
        let output = ends(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(7) && said.contains("process"), "{arguments:?}: {output:?}");
    }
    assert!(ends(&["recover", "--all"]).status.success(), "there is nothing to be served on");
    stopped.signal("-CONT");
    Direct::open(stopped.path(), true).write(0, &pattern(4096, 1)).unwrap();
    stopped.signal("-TERM");
    assert_eq!(stopped.ended(), Some(0));
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
