//! Many devices come back at once after a kill: half of them of one image, the others writable, and half of those forks.

use std::{env, fs, path::PathBuf, time::Instant};

use serde_json::Value;

use crate::{
    daemon::config,
    devices::{Direct, content, pattern},
    frame::in_guest,
    recovery::start,
    writable::{MIB, config_with_upper, text},
};

const BYTES: usize = 64 << 10;

/// How many there are.
fn devices() -> usize {
    env::var("STRATABD_DEVICES").map_or(24, |text| text.parse().unwrap())
}

#[test]
fn many_devices_come_back_at_once_with_what_was_written_to_them() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let quarter = devices().div_ceil(4);
    let images = ["add", "--config", &config(dir.path(), 3), "--count", &(2 * quarter).to_string()];
    let images: Value = daemon.json(&images);
    let path_of = |device: &Value| PathBuf::from(device["path"].as_str().unwrap());
    let images: Vec<PathBuf> = images["devices"].as_array().unwrap().iter().map(path_of).collect();
    assert_eq!(images.len(), 2 * quarter);
    let mut written: Vec<PathBuf> = (0..quarter)
        .map(|number| {
            let folder = dir.path().join(format!("box-{number}"));
            fs::create_dir(&folder).unwrap();
            daemon.add(&["--config", &config_with_upper(&folder, None, 16 * MIB)])
        })
        .collect();
    let forks = (0..quarter).map(|number| {
        let name = format!("fork-{number}");
        path_of(&daemon.json(&["fork", text(&written[0]), "--name", &name, "--to", text(dir.path())]))
    });
    let forks: Vec<PathBuf> = forks.collect();
    written.extend(forks);
    for (seed, device) in (0..).zip(&written) {
        // Not flushed: it is in the journal when the daemon dies.
        Direct::open(device, true).write(0, &pattern(BYTES, seed)).unwrap();
    }
    let first = content(&images[0])[..BYTES].to_vec();
    daemon.end("-KILL");
    let began = Instant::now();
    let daemon = start(dir.path());
    println!("{} devices were there {} ms after the start", 4 * quarter, began.elapsed().as_millis());
    let list = daemon.json(&["list"]);
    let live = list["devices"].as_array().unwrap().iter().filter(|device| device["state"] == "live");
    assert_eq!(live.count(), 4 * quarter, "{list}");
    for device in &images {
        assert!(Direct::open(device, false).read(0, BYTES).unwrap() == first, "{}", device.display());
    }
    for (seed, device) in (0..).zip(&written) {
        let read = Direct::open(device, false).read(0, BYTES).unwrap();
        assert!(read == pattern(BYTES, seed), "{} has other bytes", device.display());
    }
    let began = Instant::now();
    daemon.finish();
    println!("{} devices were removed in {} ms", 4 * quarter, began.elapsed().as_millis());
    assert!(images.iter().chain(&written).all(|device| !device.exists()), "nodes are left");
}
