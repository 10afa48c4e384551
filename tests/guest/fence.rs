//! The fence: what a dead daemon has begun on a disk that hangs ends before the next one has the layer.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
};

use rustix::fs::{Advice, fadvise};
use serde_json::Value;

use crate::{
    daemon::config,
    devices::{Direct, pattern},
    disk::{Disk, waits_for_disk},
    frame::{in_guest, wait_until},
    recovery::{SETTINGS, start},
    support::{
        daemon::{Daemon, program},
        process,
    },
    writable::{MIB, config_with_sparse, config_with_upper},
};

const BYTES: usize = 256 << 10;

/// How a device with a writable layer in a folder is configured.
type Configure = fn(&Daemon, &Path) -> String;

const LOG: Configure = |_, folder| config_with_upper(folder, None, 8 * MIB);
const SPARSE: Configure = |daemon, folder| config_with_sparse(daemon, folder, 8 * MIB);

/// A device on a disk that can be stopped, to which something was written, and others elsewhere.
struct Devices {
    /// Before the folder that it is mounted in, so that it goes on before that is removed.
    disk: Disk,
    dir: tempfile::TempDir,
    hung: PathBuf,
    near: PathBuf,
    image: PathBuf,
}

impl Devices {
    fn new(configure: Configure) -> (Self, Daemon) {
        let dir = tempfile::tempdir_in("/var").unwrap();
        let disk = Disk::new(dir.path());
        let daemon = start(dir.path());
        let folder = disk.point.join("upper");
        fs::create_dir(&folder).unwrap();
        let hung = daemon.add(&["--config", &configure(&daemon, &folder), "--id", "1"]);
        let near = daemon.add(&["--config", &config_with_upper(dir.path(), None, 8 * MIB), "--id", "2"]);
        let image = daemon.add(&["--config", &config(dir.path(), 1), "--id", "3"]);
        let node = Direct::open(&hung, true);
        node.write(0, &pattern(BYTES, 1)).unwrap();
        node.file().sync_all().unwrap();
        (Self { disk, dir, hung, near, image }, daemon)
    }

    /// What is said of the one on the disk.
    fn hung_one(daemon: &Daemon) -> Value {
        daemon.json(&["list"])["devices"][0].clone()
    }

    /// The others work.
    fn use_others(&self) {
        let node = Direct::open(&self.near, true);
        node.write(0, &pattern(BYTES, 3)).unwrap();
        node.file().sync_all().unwrap();
        assert!(node.read(0, BYTES).unwrap() == pattern(BYTES, 3));
        assert_eq!(Direct::open(&self.image, false).read(0, 4096).unwrap().len(), 4096);
    }
}

/// A daemon dies while a read of the layer hangs, which the process does not wait for: all devices come back but this one.
fn a_read_is_waited_for(configure: Configure) {
    let (devices, daemon) = Devices::new(configure);
    let data = File::open(devices.disk.point.join("upper/upper.data")).unwrap();
    fadvise(&data, 0, None, Advice::DontNeed).unwrap();
    devices.disk.stop();
    let hung = devices.hung.clone();
    let reader = thread::spawn(move || Direct::open(&hung, false).read(0, BYTES));
    wait_until("the read hangs", || {
        let in_flight = fs::read_to_string("/sys/block/ublkb1/inflight").unwrap();
        in_flight.split_whitespace().any(|count| count != "0")
    });
    assert_eq!(daemon.end("-KILL"), None);
    let daemon = start(devices.dir.path());
    devices.use_others();
    // It is tried, or waits to be tried again.
    let state = Devices::hung_one(&daemon)["state"].clone();
    assert!(["attaching", "waiting"].map(Value::from).contains(&state), "{state}");
    assert!(!reader.is_finished());
    devices.disk.go_on();
    wait_until("the device has come back", || Devices::hung_one(&daemon)["state"] == "live");
    assert!(reader.join().unwrap().unwrap() == pattern(BYTES, 1));
    daemon.finish();
}

/// A daemon dies while a flush hangs. The kernel's worker that flushes is a thread of the process, which ends with it and not before.
fn a_flush_is_waited_for(configure: Configure) {
    let (devices, daemon) = Devices::new(configure);
    devices.disk.stop();
    let node = Direct::open(&devices.hung, true);
    let writer = thread::spawn(move || {
        node.write(0, &pattern(BYTES, 2)).unwrap();
        node.file().sync_all()
    });
    wait_until("the flush hangs", || waits_for_disk(daemon.pid()));
    daemon.signal("-KILL");
    let mut refused = program(devices.dir.path(), &SETTINGS).stderr(Stdio::inherit()).spawn().unwrap();
    assert_eq!(process::ended(&mut refused), Some(7), "two daemons have one state directory");
    assert!(!writer.is_finished());
    devices.disk.go_on();
    assert_eq!(daemon.wait(), None);
    let daemon = start(devices.dir.path());
    writer.join().unwrap().expect("the flush fails");
    assert!(Direct::open(&devices.hung, false).read(0, BYTES).unwrap() == pattern(BYTES, 2));
    devices.use_others();
    daemon.finish();
}

#[test]
fn a_read_of_a_log_that_outlives_its_daemon_holds_up_this_device_alone() {
    if in_guest() {
        a_read_is_waited_for(LOG);
    }
}

#[test]
fn a_read_of_a_sparse_layer_that_outlives_its_daemon_holds_up_this_device_alone() {
    if in_guest() {
        a_read_is_waited_for(SPARSE);
    }
}

#[test]
fn a_flush_of_a_log_that_outlives_its_daemon_is_done_once_more_by_the_next() {
    if in_guest() {
        a_flush_is_waited_for(LOG);
    }
}

#[test]
fn a_flush_of_a_sparse_layer_that_outlives_its_daemon_is_done_once_more_by_the_next() {
    if in_guest() {
        a_flush_is_waited_for(SPARSE);
    }
}
