//! The shipped examples are read by the code that reads the real ones, and agree with its defaults.

use std::{process::Command, time::Duration};

use stratabd::server::{config::Config, image_config::ImageConfig};

#[test]
fn the_sample_image_is_read_without_a_note() {
    let sample = include_bytes!("../examples/config.v1.json");
    let image = ImageConfig::parse("config.v1.json", sample).expect("the sample is valid");
    assert_eq!(image.lowers.len(), 2);
    assert!(image.notes.is_empty(), "{:?}", image.notes);
    assert!(image.repo_blob_url.is_some() && ImageConfig::result_file(sample).is_some());
}

#[test]
fn the_unit_agrees_with_the_defaults() {
    let unit = include_str!("../examples/stratabd.service");
    let value = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("the unit says nothing of {key}"))
    };
    let defaults = Config::default();
    assert_eq!(value("Type"), "notify");
    assert!(defaults.daemon.state_dir.ends_with(value("RuntimeDirectory")));
    assert!(defaults.daemon.socket.starts_with(&defaults.daemon.state_dir));
    let kept = [&defaults.cache.dir, &defaults.store.dir]
        .map(|dir| dir.strip_prefix("/var/lib").expect("it is kept"));
    assert!(value("StateDirectory").split(' ').eq(kept.map(|dir| dir.to_str().expect("it is text"))));
    assert_eq!(value("RuntimeDirectoryPreserve"), "yes", "records must outlive a daemon that dies");
    let stop = Duration::from_secs(value("TimeoutStopSec").parse().expect("whole seconds"));
    assert!(stop > Duration::from_millis(defaults.daemon.drain_timeout_ms));
    // Devices wait for as long as nobody serves them.
    assert_eq!((value("Restart"), value("RestartSec"), value("StartLimitIntervalSec")), ("always", "1", "0"));
    assert!(value("WatchdogSec").parse::<u64>().expect("whole seconds") >= 10);
}

#[test]
fn the_service_manager_takes_the_unit() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("stratabd.service");
    // What is installed later is not here.
    let unit = include_str!("../examples/stratabd.service").replace("/usr/local/bin/stratabd", "/bin/true");
    std::fs::write(&path, unit.replace("/sbin/modprobe", "/bin/true")).expect("it can be written");
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output();
    let Ok(verified) = verify else {
        eprintln!("there is no systemd-analyze here");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("stratabd.service")).collect();
    assert!(of_ours.is_empty(), "{of_ours:#?}");
}

#[test]
fn the_unit_exposes_little() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/stratabd.service");
    let judge = ["security", "--offline=true", "--no-pager", "--threshold=40", unit];
    let Ok(judged) = Command::new("systemd-analyze").args(judge).output() else {
        eprintln!("there is no systemd-analyze here");
        return;
    };
    let said = String::from_utf8_lossy(&judged.stdout);
    assert!(judged.status.success(), "more than 4.0: {said}");
    for line in ["LimitCORE=0", "UMask=0077", "Type=notify"] {
        assert!(include_str!("../examples/stratabd.service").lines().any(|found| found == line), "{line}");
    }
}
