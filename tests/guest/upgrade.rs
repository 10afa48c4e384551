//! Another program takes over while devices are in use, and where it cannot the old one goes on: programs see a pause.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Instant};

use crate::{
    frame::in_guest,
    holdings::Holdings,
    pauses::Pauses,
    recovery::{Devices, start},
    support::daemon::Daemon,
};

const UPGRADES: u64 = 3;

/// A program below `dir` that does this.
pub(crate) fn program(dir: &Path, name: &str, script: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn programs_see_a_pause_and_nothing_else_when_their_daemon_is_upgraded() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let devices = Devices::new(&daemon, dir.path());
    let (mut held, mut pauses) = (None, Pauses::default());
    let wrapped = program(dir.path(), "next", "exec stratabd \"$@\"");
    let daemon = devices.under_load(daemon, |mut daemon, load| {
        for round in 0..UPGRADES {
            load.wait_for(2, round * 5 + 1);
            let (before, began) = (daemon.pid(), Instant::now());
            let binary: &[&str] = if round % 2 == 0 { &[] } else { &["--binary", &wrapped] };
            daemon.upgrade(&[binary, &["--timeout", "120"]].concat()).unwrap();
            assert_ne!(daemon.pid(), before);
            pauses.add(began.elapsed());
            held.get_or_insert_with(|| Holdings::of(&daemon, dir.path())).check(&daemon, dir.path());
        }
        daemon
    });
    println!("upgrades: {pauses}");
    devices.end(daemon);
}

#[test]
fn the_old_program_goes_on_where_the_new_one_cannot() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let devices = Devices::new(&daemon, dir.path());
    let no_program = dir.path().join("missing").to_str().unwrap().to_owned();
    // One that says nothing is given up after that time, while the programs of the load take both processors. Others end by themselves.
    let (short, long) = ("4", "60");
    let broken = [
        (no_program, "cannot start it", long),
        (program(dir.path(), "ends", "exit 3"), "it has ended", long),
        (program(dir.path(), "hangs", "exec sleep 1000"), "not prepared within", short),
        // It says that it is prepared, takes what it is told, and then neither serves nor ends.
        (
            program(dir.path(), "lies", "echo '\"prepared\"' >&0; exec sleep 1000"),
            "did not serve within",
            short,
        ),
        (program(dir.path(), "dies", "echo '\"prepared\"' >&0; read line <&0"), "it has ended", long),
        (
            program(
                dir.path(),
                "fails",
                "echo '\"prepared\"' >&0; read line <&0; echo '{\"failed\":\"sorry\"}' >&0",
            ),
            "sorry",
            long,
        ),
    ];
    let daemon = devices.under_load(daemon, |mut daemon: Daemon, load| {
        for (binary, why, timeout) in &broken {
            load.wait_for(2, 3);
            let before = daemon.pid();
            let said = daemon.upgrade(&["--binary", binary, "--timeout", timeout]).unwrap_err();
            assert!(said.contains(why), "{binary}: {said}");
            assert_eq!(daemon.json(&["list"])["devices"].as_array().unwrap().len(), 3);
            assert_eq!(daemon.pid(), before);
        }
        // And is none the worse for it.
        daemon.upgrade(&["--timeout", "120"]).unwrap();
        daemon
    });
    devices.end(daemon);
}
