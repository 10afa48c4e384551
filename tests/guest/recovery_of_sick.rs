//! What cannot be taken over holds up no other device, says why, and comes back when what was missing is there again, or has its
//! requests fail when its time is over; and what a process that served one device has left is served on, or removed.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    daemon::{SETTINGS, config, fixtures},
    devices::{Direct, pattern},
    frame::{in_guest, pause},
    registry::RANDOM,
    support::{
        daemon::{Daemon, plain_http},
        device::Attached,
        registry::{Registry, Serving, push_image},
    },
    writable::{MIB, config_with_upper, text},
};

const PATIENCE: Duration = Duration::from_secs(120);
const BYTES: usize = 64 << 10;

/// State of device `id`, and what becomes of it; nothing where there is none.
fn shown(daemon: &Daemon, id: u32) -> (String, String) {
    let list = daemon.json(&["list"]);
    let device = list["devices"].as_array().unwrap().iter().find(|device| device["id"] == id).cloned();
    let device = device.unwrap_or(Value::Null);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&device["state"]), text(&device["unserved"]["why"]))
}

/// Waits until device `id` has this state, with a reason that contains `why`.
fn wait_for(daemon: &Daemon, id: u32, state: &str, why: &str) {
    let began = Instant::now();
    loop {
        let now = shown(daemon, id);
        if now.0 == state && now.1.contains(why) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "device {id} is {now:?}, and never {state} with {why}");
        pause();
    }
}

fn beginning(device: &Path) -> Vec<u8> {
    Direct::open(device, false).read(0, BYTES).unwrap()
}

/// A configuration of one layer, which is in a folder of its own and may be taken away.
fn movable(dir: &Path) -> (String, PathBuf) {
    let layer = dir.join("layer");
    fs::copy(fixtures().join("ext4/L0.zt4k"), &layer).unwrap();
    let path = dir.join("movable.json");
    fs::write(&path, serde_json::json!({"lowers": [{"file": layer}]}).to_string()).unwrap();
    (text(&path).to_owned(), layer)
}

#[test]
fn the_sick_wait_with_their_reasons_while_the_healthy_come_back_at_once() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir_in("/var").unwrap();
    let dir = root.path();
    let mut registry = Registry::start(dir, &Serving::default());
    let address = registry.address();
    push_image(address, "team/app", "v1", &RANDOM.blobs());
    let start = || Daemon::start(dir, &[&plain_http(address)]);
    let daemon = start();
    let (movable, layer) = movable(dir);
    let written = daemon.add(&["--config", &config_with_upper(dir, None, 16 * MIB), "--id", "2"]);
    Direct::open(&written, true).write(0, &pattern(BYTES, 7)).unwrap();
    let devices = [
        daemon.add(&["--config", &config(dir, 1), "--id", "1"]),
        written,
        daemon.add(&["--config", &movable, "--id", "3"]),
        daemon.add(&["--config", &config(dir, 1), "--id", "4"]),
        daemon.add(&[&format!("{address}/team/app:v1"), "--id", "5"]),
    ];
    let late = daemon.add(&["--config", &movable, "--id", "6", "--recovery-timeout", "2"]);
    let expected = devices.each_ref().map(|device| beginning(device));
    daemon.end("-KILL");
    let away = dir.join("away");
    fs::rename(&layer, &away).unwrap();
    let record = dir.join("state/devices/4.json");
    let healthy = fs::read_to_string(&record).unwrap();
    fs::write(&record, &healthy[..healthy.len() / 2]).unwrap();
    registry.stop();
    fs::remove_dir_all(dir.join("cache")).unwrap();
    let reader = thread::spawn(move || Direct::open(&late, false).read(0, BYTES));

    let daemon = start();
    for (id, device) in [(1, &devices[0]), (2, &devices[1])] {
        assert_eq!(shown(&daemon, id).0, "live", "device {id}");
        assert!(beginning(device) == expected[usize::try_from(id).unwrap() - 1], "device {id}");
    }
    wait_for(&daemon, 3, "waiting", text(&layer));
    wait_for(&daemon, 4, "waiting", "it is damaged");
    wait_for(&daemon, 5, "waiting", &address.to_string());
    assert!(reader.join().unwrap().is_err(), "the time of device 6 is over");
    wait_for(&daemon, 6, "", "");
    assert!(!dir.join("state/devices/6.json").exists() && !Path::new("/dev/ublkc6").exists());

    fs::rename(&away, &layer).unwrap();
    fs::write(&record, &healthy).unwrap();
    let _registry = Registry::start_at(dir, &Serving::default(), address);
    for (id, (device, expected)) in (1..).zip(devices.iter().zip(&expected)) {
        wait_for(&daemon, id, "live", "");
        assert!(beginning(device) == *expected, "device {id}");
    }
    daemon.finish();
}

#[test]
fn what_a_killed_foreground_process_has_left_is_served_on_or_removed() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir_in("/var").unwrap();
    let dir = root.path();
    let state = format!("daemon.state_dir=\"{}\"", text(&dir.join("state")));
    let add = |id: &str| {
        let config = config(dir, 1);
        let arguments = ["--no-cache", "--set", &state, "--config", &config, "--id", id];
        let mut attached = Attached::add(&arguments);
        attached.signal("-KILL");
        assert_eq!(attached.ended(), None);
        attached.path().to_owned()
    };
    let devices = ["1", "2", "3"].map(add);
    let daemon = Daemon::start(dir, &SETTINGS);
    for id in 1..=3 {
        wait_for(&daemon, id, "orphan", "the process that served it alone has died");
    }
    daemon.json(&["recover", "1"]);
    assert_eq!((shown(&daemon, 1).0, shown(&daemon, 2).0), ("live".to_owned(), "orphan".to_owned()));
    daemon.json(&["del", "2"]);
    daemon.json(&["recover", "--all"]);
    assert!(beginning(&devices[2]) == beginning(&devices[0]));
    daemon.json(&["del", "3"]);
    // Whatever is left once more has one way out of two.
    add("4");
    daemon.json(&["del", "--orphans"]);
    wait_for(&daemon, 4, "", "");
    wait_for(&daemon, 1, "live", "");
    daemon.finish();
    assert!(devices.iter().all(|device| !device.exists()));
    let left = fs::read_dir(dir.join("state/foreground")).unwrap();
    assert_eq!(left.count(), 0, "a record or its lock is left");
}

/// Two daemons with different state directories and one number, as after a reboot that gave numbers away again.
#[test]
fn a_daemon_leaves_a_device_alone_that_has_only_the_number_of_its_own() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir_in("/var").unwrap();
    let [own, other] = ["own", "other"].map(|name| root.path().join(name));
    let config = config(root.path(), 1);
    let start = |dir: &Path| Daemon::start(dir, &SETTINGS);
    let daemon = start(&own);
    let device = daemon.add(&["--config", &config, "--id", "1"]);
    let expected = beginning(&device);
    daemon.end("-KILL");
    // The same in all but its mark.
    let path = "state/devices/1.json";
    let mut record: Value = serde_json::from_str(&fs::read_to_string(own.join(path)).unwrap()).unwrap();
    record["mark"] = 77.into();
    fs::create_dir_all(other.join("state/devices")).unwrap();
    fs::write(other.join(path), record.to_string()).unwrap();
    let stranger = start(&other);
    wait_for(&stranger, 1, "orphan", "its record with mark 000000000000004d");
    stranger.json(&["del", "1"]);
    assert!(!other.join(path).exists() && device.exists(), "only its record goes");
    stranger.finish();
    let daemon = start(&own);
    wait_for(&daemon, 1, "live", "");
    assert!(beginning(&device) == expected);
    daemon.finish();
}
