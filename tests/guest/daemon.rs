//! Daemon and command line tool with the real driver: a device's whole life, the file tree inside it, and the ways out.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::{
    frame::{in_guest, output_of, pause},
    registry::RANDOM,
    support::{
        daemon::{Daemon, plain_http},
        device::Attached,
        process::{ended, signal},
        registry::{Registry, Serving, push_image},
    },
    tree,
};

const STACK: [&str; 3] = ["ext4/L0.zt4k", "ext4/L1.z32kt", "ext4/L2.zt4k"];
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn fixtures() -> PathBuf {
    std::env::var("STRATABD_FIXTURES").unwrap_or_else(|_| "/fixtures".to_owned()).into()
}

/// A configuration of the first `count` layers in a folder of its own.
pub(crate) fn config(dir: &Path, count: usize) -> String {
    let lowers: Vec<Value> =
        STACK[..count].iter().map(|name| serde_json::json!({"file": fixtures().join(name)})).collect();
    let path = dir.join(format!("config-{count}.json"));
    fs::write(&path, serde_json::json!({"lowers": lowers}).to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Of a daemon that serves files.
pub(crate) const SETTINGS: [&str; 2] = ["cache.enabled=false", "daemon.private_mounts=true"];

/// A daemon that serves files.
pub(crate) fn start(dir: &Path) -> Daemon {
    Daemon::start(dir, &SETTINGS)
}

/// One that has no successor, so that its devices go with it.
fn start_the_last(dir: &Path) -> Daemon {
    Daemon::start(dir, &[&SETTINGS[..], &["daemon.reattach=false"]].concat())
}

#[test]
fn a_device_of_the_daemon_shows_upstreams_file_tree_and_goes_again() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path());
    let features = daemon.json(&["features"]);
    assert!(features["names"].to_string().contains("USER_COPY"), "{features}");
    let added = daemon.json(&["add", "--config", &config(dir.path(), 3), "--queues", "2"]);
    let path = added["path"].as_str().unwrap();
    tree::compare_device(Path::new(path), &fixtures().join("ext4/tree-0..2.jsonl"));
    let list = daemon.json(&["list"]);
    assert_eq!(list["devices"][0]["state"], "live", "{list}");
    let info = daemon.json(&["info", path]);
    assert_eq!(info["layers"].as_array().unwrap().len(), 3);
    assert_eq!((&info["read_only"], &info["logical_block_bytes"]), (&Value::Bool(true), &Value::from(4096)));
    assert_eq!(output_of("blockdev", &["--getro", path]).trim(), "1");
    assert!(info["features"].to_string().contains("USER_COPY"), "{info}");
    let bytes = |info: &Value| {
        info["reads"].as_array().unwrap().iter().map(|reads| reads["bytes"].as_u64().unwrap()).sum::<u64>()
    };
    assert!(bytes(&info) > 0, "{info}");
    let point = dir.path().join("mount");
    fs::create_dir(&point).unwrap();
    output_of("mount", &["-t", "ext4", "-o", "ro,noload", path, point.to_str().unwrap()]);
    let refused = daemon.ctl(&["del", path]);
    assert_eq!(refused.status.code(), Some(7), "a device that is mounted is left alone: {refused:?}");
    assert!(Path::new(path).exists());
    output_of("umount", &[point.to_str().unwrap()]);
    daemon.json(&["del", path]);
    assert!(!Path::new(path).exists());
    assert_eq!(daemon.json(&["ls"])["devices"].as_array().unwrap().len(), 0);
    assert_eq!(daemon.ctl(&["info", path]).status.code(), Some(3));
    daemon.finish();
}

#[test]
fn two_devices_of_one_image_share_it_and_sigterm_removes_both() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = start_the_last(dir.path());
    let config = config(dir.path(), 2);
    let paths = [0, 1].map(|_| daemon.add(&["--config", &config]));
    assert_ne!(paths[0], paths[1]);
    for path in &paths {
        tree::compare_device(path, &fixtures().join("ext4/tree-0..1.jsonl"));
    }
    let metrics = daemon.metrics();
    let images: Vec<_> = metrics.lines().filter(|line| line.starts_with("stratabd_device_image{")).collect();
    let image = |line: &str| line.split("image=").nth(1).map(str::to_owned);
    assert_eq!((images.len(), image(images[0])), (2, image(images[1])), "{images:?}");
    assert_eq!(daemon.end("-TERM"), Some(0));
    for path in &paths {
        assert!(!path.exists(), "{} is left", path.display());
    }
}

#[test]
fn threads_do_not_grow_with_devices() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path());
    let threads = || fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count();
    let before = threads();
    let config = config(dir.path(), 2);
    for _ in 0..24 {
        let mut file = fs::File::open(daemon.add(&["--config", &config, "--queues", "2"])).unwrap();
        file.read_exact(&mut [0; 1 << 16]).unwrap();
    }
    // A few of the runtime's and of the kernel's wait some seconds for more work.
    let deadline = Instant::now() + PATIENCE;
    while threads() > before + 4 {
        assert!(Instant::now() < deadline, "{before} threads without a device, {} with 24", threads());
        pause();
    }
    daemon.finish();
}

#[test]
fn sigterm_ends_a_daemon_whose_reads_and_adds_wait_for_a_registry() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path(), &Serving::default());
    let address = registry.address();
    push_image(address, "team/app", "v1", &RANDOM.blobs());
    let settings = [
        &plain_http(address),
        "cache.enabled=false",
        "daemon.drain_timeout_ms=8000",
        "daemon.reattach=false",
    ];
    let daemon = Daemon::start(dir.path(), &settings);
    let image = format!("{address}/team/app:v1");
    let added = daemon.json(&["add", &image]);
    let (path, size_bytes) =
        (added["path"].as_str().unwrap().to_owned(), added["size_bytes"].as_u64().unwrap());
    // From here on the registry takes requests and answers none.
    registry.signal("-STOP");
    let reader = {
        let path = path.clone();
        std::thread::spawn(move || std::io::copy(&mut fs::File::open(path)?, &mut std::io::sink()))
    };
    let mut adding = daemon.command(&["add", &image, "--id", "9"]).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let is_adding = || daemon.json(&["list"]).to_string().contains("attaching");
    let in_flight = format!("/sys/block/{}/inflight", path.trim_start_matches("/dev/"));
    let is_reading = || fs::read_to_string(&in_flight).unwrap().split_whitespace().any(|count| count != "0");
    while !is_adding() || !is_reading() {
        assert!(Instant::now() < deadline, "nothing waits for the registry");
    }
    assert!(!reader.is_finished());
    let began = Instant::now();
    assert_eq!(daemon.end("-TERM"), Some(0));
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    assert!(!Path::new(&path).exists());
    assert_ne!(ended(&mut adding), Some(0), "a daemon that is stopping has made a device");
    // A device that has gone ends early, with an error or without.
    assert!(
        reader.join().unwrap().map_or(true, |count| count < size_bytes),
        "where did the bytes come from?"
    );
}

#[test]
fn what_a_killed_daemon_leaves_is_attached_again_by_the_next_one() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path());
    let added = daemon.json(&["add", "--config", &config(dir.path(), 3), "--id", "11"]);
    assert_eq!(added["path"], "/dev/ublkb11");
    daemon.end("-KILL");
    let next = start(dir.path());
    let list = next.json(&["list"]);
    assert_eq!(
        (&list["devices"][0]["id"], &list["devices"][0]["state"]),
        (&Value::from(11), &Value::from("live"))
    );
    tree::compare_device(Path::new("/dev/ublkb11"), &fixtures().join("ext4/tree-0..2.jsonl"));
    next.finish();
}

#[test]
fn the_foreground_command_serves_until_it_is_told_to_end() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for signal in ["-INT", "-TERM"] {
        let mut device = Attached::add(&["--no-cache", "--config", &config(dir.path(), 3)]);
        tree::compare_device(device.path(), &fixtures().join("ext4/tree-0..2.jsonl"));
        device.signal(signal);
        assert_eq!(device.ended(), Some(0));
        assert!(!device.path().exists());
    }
}

#[test]
fn a_daemon_that_may_open_no_more_files_lists_and_removes_its_devices() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = start_the_last(dir.path());
    let config = config(dir.path(), 1);
    // A number that another process has is passed over.
    let mut foreign = daemon.command(&["add", "--foreground", "--id", "0", "--config", &config]);
    let mut foreign = foreign.stdout(Stdio::piped()).spawn().unwrap();
    let mut made = String::new();
    BufReader::new(foreign.stdout.take().unwrap()).read_line(&mut made).unwrap();
    assert!(made.contains("/dev/ublkb0"), "{made}");
    let paths = [1, 2].map(|id| {
        assert_eq!(daemon.add(&["--config", &config]), Path::new(&format!("/dev/ublkb{id}")));
        format!("/dev/ublkb{id}")
    });
    // Of what it has open now only what it keeps back is given out again.
    let kept = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let number: u64 = path.file_name()?.to_str()?.parse().ok()?;
        (fs::read_link(&path).ok()? == Path::new("/dev/null")).then_some(number + 1)
    });
    let limit = kept.max().unwrap();
    let limits = Rlimit { current: Some(limit), maximum: Some(limit) };
    prlimit(Pid::from_raw(i32::try_from(daemon.pid()).unwrap()), Resource::Nofile, limits).unwrap();
    let refused = daemon.ctl(&["add", "--config", &config]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("RLIMIT_NOFILE"), "{refused:?}");
    assert_eq!(daemon.json(&["list"])["devices"].as_array().unwrap().len(), 3);
    daemon.json(&["del", &paths[0]]);
    assert!(!Path::new(&paths[0]).exists());
    assert_eq!(daemon.end("-TERM"), Some(0));
    assert!(!Path::new(&paths[1]).exists());
    signal(&foreign, "-TERM");
    assert_eq!(ended(&mut foreign), Some(0));
}
