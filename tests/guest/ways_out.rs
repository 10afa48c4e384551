//! The ways out of a device that is in use: by force, by signals, and by the failure of a thread that serves it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use crate::{
    daemon::{config, start},
    devices::{Direct, pattern},
    frame::{in_guest, output_of, wait_until},
    support::{
        daemon::{Daemon, plain_http},
        device::Attached,
        fault_proxy::{Behaviour, FaultProxy},
        layer_writer::lsmt,
        process::ended,
        registry::{Registry, Serving, push_image},
    },
};

/// The file system of a device, until it is dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(device: &Path, dir: &Path) -> Self {
        let point = dir.join("mount");
        fs::create_dir_all(&point).unwrap();
        let arguments = ["-t", "ext4", "-o", "ro,noload"];
        output_of("mount", &[&arguments[..], &[device.to_str().unwrap(), point.to_str().unwrap()]].concat());
        Self(point)
    }

    /// Whether all files can be read.
    fn is_readable(&self) -> bool {
        let mut find = Command::new("find");
        find.arg(&self.0).args(["-type", "f", "-exec", "cat", "{}", "+"]);
        find.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        output_of("umount", &[self.0.to_str().unwrap()]);
    }
}

#[test]
fn force_removes_a_mounted_device_and_its_number_is_free_after_the_unmount() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path());
    let config = config(dir.path(), 3);
    let path = daemon.add(&["--config", &config, "--id", "3"]);
    let name = path.to_str().unwrap();
    let mount = Mount::new(&path, dir.path());
    assert_eq!(daemon.ctl(&["del", name]).status.code(), Some(7), "it is mounted");
    let removed = daemon.json(&["del", "--force", name]);
    assert_eq!(removed["held_open"], serde_json::json!([3]), "{removed}");
    assert!(!path.exists());
    assert!(!mount.is_readable(), "the device has gone");
    assert_eq!(daemon.json(&["list"])["devices"].as_array().unwrap().len(), 0);
    drop(mount);
    wait_until("its number is free", || {
        daemon.ctl(&["add", "--config", &config, "--id", "3"]).status.success()
    });
    assert!(Mount::new(&path, dir.path()).is_readable());
    daemon.finish();
}

#[test]
fn the_foreground_waits_for_an_unmount_and_a_second_signal_does_not() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 3);
    let attach = || {
        let device = Attached::add(&["--no-cache", "--config", &config]);
        let mount = Mount::new(device.path(), dir.path());
        device.signal("-TERM");
        device.said().wait_for("the device is in use by");
        assert!(mount.is_readable(), "who has it mounted may go on");
        (device, mount)
    };
    let (mut device, mount) = attach();
    drop(mount);
    assert_eq!(device.ended(), Some(0));
    assert!(!device.path().exists());

    let (mut device, mount) = attach();
    device.signal("-TERM");
    assert_eq!(device.ended(), Some(0));
    assert!(!device.path().exists());
    drop(mount);
}

#[test]
fn reads_in_flight_at_sigterm_are_answered() {
    if !in_guest() {
        return;
    }
    // Of a registry that takes so long little is asked at once: more reads would take longer than a removal waits for them.
    const READS: usize = 4;
    const STRIDE: usize = 1 << 19;
    let dir = tempfile::tempdir().unwrap();
    // The ends of the device and of the blob are read when it is attached.
    let bytes = pattern((READS + 2) * STRIDE, 1);
    let registry = Registry::start(dir.path(), &Serving::default());
    push_image(registry.address(), "test", "latest", &[lsmt(bytes.len() as u64, &[(0, Ok(&bytes))])]);
    let proxy = FaultProxy::start(&registry.address().to_string());
    let host = proxy.address();
    let daemon = Daemon::start(dir.path(), &[&plain_http(&host), "daemon.reattach=false"]);
    let path = daemon.add(&[&format!("{host}/test:latest")]);
    // Longer than all that is to happen before the first answer comes.
    proxy.behave(Behaviour { delay: Duration::from_secs(4), ..Behaviour::healthy() });
    let node = Arc::new(Direct::open(&path, false));
    let readers: Vec<_> = (1..=READS)
        .map(|index| {
            let node = Arc::clone(&node);
            std::thread::spawn(move || (index, node.read((index * STRIDE) as u64, 4096)))
        })
        .collect();
    let in_flight = format!("/sys/block/{}/inflight", path.file_name().unwrap().to_str().unwrap());
    let count = || fs::read_to_string(&in_flight).unwrap().split_whitespace().next().unwrap().parse();
    wait_until("all reads are in flight", || count() == Ok(READS));
    assert_eq!(daemon.end("-TERM"), Some(0));
    for reader in readers {
        let (index, read) = reader.join().unwrap();
        assert!(read.unwrap() == bytes[index * STRIDE..][..4096], "read {index}");
    }
    assert!(!path.exists());
}

#[test]
fn a_foreground_device_whose_thread_has_failed_ends_with_an_error() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut device = Attached::add(&["--no-cache", "--config", &config(dir.path(), 1)]);
    let tasks = fs::read_dir(format!("/proc/{}/task", device.pid())).unwrap();
    let serves = |task: &PathBuf| fs::read_to_string(task.join("comm")).unwrap().trim() == "reactor-0";
    let task = tasks.map(|task| task.unwrap().path()).find(serves).expect("a thread serves the device");
    // From here on its ring fails.
    let mut strace = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "-e", "inject=io_uring_enter:error=EIO", "-p"])
        .arg(task.file_name().unwrap())
        .spawn()
        .unwrap();
    device.said().wait_for("a thread that serves devices has failed");
    assert_eq!(device.ended(), Some(1));
    assert!(!device.path().exists());
    ended(&mut strace);
}
