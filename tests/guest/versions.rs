//! Programs whose records have different versions follow each other while devices are in use: each takes a device over or leaves it to
//! the other, and programs see a pause.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    frame::in_guest,
    recovery::{Devices, SETTINGS, start},
    support::daemon::Daemon,
    upgrade::program,
};

/// What makes `stratabd` the program of a version later, whose records this one cannot read, or can.
const LATER: &str = "STRATABD_LATER_RECORDS";

const DEVICES: [&str; 3] = ["1", "2", "3"];

/// Has the daemon write the records of all devices anew.
fn rewrite(daemon: &Daemon, limit: u64) {
    for id in DEVICES {
        daemon.json(&["set", id, "--iops", &(1_000_000 + limit).to_string()]);
    }
}

fn record(dir: &Path, id: &str) -> String {
    fs::read_to_string(dir.join(format!("state/devices/{id}.json"))).unwrap()
}

/// Version and least version of a reader of all records.
fn versions(dir: &Path) -> (u64, u64) {
    let all = DEVICES.map(|id| {
        let record: Value = serde_json::from_str(&record(dir, id)).unwrap();
        (record["version"].as_u64().unwrap(), record["readable_by"].as_u64().unwrap())
    });
    assert_eq!(all, [all[0]; 3]);
    all[0]
}

/// State of all devices, and what their reasons contain.
fn assert_all(daemon: &Daemon, state: &str, why: &str) {
    let list = daemon.json(&["list"]);
    let devices = list["devices"].as_array().unwrap();
    let is_so = |device: &Value| {
        device["state"] == state && device["unserved"]["why"].as_str().unwrap_or_default().contains(why)
    };
    assert!(devices.len() == DEVICES.len() && devices.iter().all(is_so), "{state} {why:?}: {list}");
}

#[test]
fn programs_see_a_pause_and_nothing_else_when_daemons_of_two_versions_follow_each_other() {
    if !in_guest() {
        return;
    }
    let root = tempfile::tempdir_in("/var").unwrap();
    let dir = root.path();
    let daemon = start(dir);
    let devices = Devices::new(&daemon, dir);
    let (version, readable_by) = versions(dir);
    let own = program(dir, "own", &format!("unset {LATER}; exec stratabd \"$@\""));
    let [readable, unreadable] = ["readable", "unreadable"]
        .map(|kind| program(dir, kind, &format!("export {LATER}={kind}; exec stratabd \"$@\"")));
    let upgrade =
        |daemon: &mut Daemon, binary: &str| daemon.upgrade(&["--binary", binary, "--timeout", "120"]);
    let daemon = devices.under_load(daemon, |mut daemon, load| {
        // To a later version and back, as far as its records are for this one.
        upgrade(&mut daemon, &readable).unwrap();
        rewrite(&daemon, 1);
        assert_eq!(versions(dir), (version + 1, readable_by));
        load.wait_for(2, 3);
        upgrade(&mut daemon, &own).unwrap();
        rewrite(&daemon, 2);
        assert_eq!(versions(dir), (version, readable_by));
        load.wait_for(2, 3);

        // To one whose records are not for this one, from which there is no way back: it goes on.
        upgrade(&mut daemon, &unreadable).unwrap();
        rewrite(&daemon, 3);
        assert_eq!(versions(dir), (version + 1, version + 1));
        load.wait_for(2, 3);
        let refused = upgrade(&mut daemon, &own).unwrap_err();
        assert!(refused.contains("the record of device 1: it is a newer stratabd's"), "{refused}");
        assert_all(&daemon, "live", "");
        load.wait_for(2, 3);

        // Where this one begins all the same, the devices wait for the other, whatever it is asked to do with them.
        let records = DEVICES.map(|id| record(dir, id));
        daemon.end("-KILL");
        let daemon = start(dir);
        assert_all(&daemon, "waiting", "it is a newer stratabd's");
        for id in DEVICES {
            assert_eq!(daemon.ctl(&["del", id, "--force"]).status.code(), Some(7), "device {id}");
            assert_eq!(daemon.ctl(&["recover", id]).status.code(), Some(7), "device {id}");
        }
        assert_eq!(daemon.end("-TERM"), Some(0));
        assert!(DEVICES.map(|id| record(dir, id)) == records, "records have changed");
        let daemon = Daemon::start_with(dir, &SETTINGS, (LATER, "unreadable"));
        assert_all(&daemon, "live", "");
        daemon
    });
    devices.end(daemon);
}
