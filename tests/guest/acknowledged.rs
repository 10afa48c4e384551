//! What a sync has acknowledged is there after the daemon's death, on a file system without a journal too, which orders and repeats
//! nothing by itself.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    devices::pattern,
    frame::{in_guest, output_of},
    recovery::start,
    support::{
        daemon::Daemon,
        file_system::{EXT4, unmount},
    },
    writable::{MIB, config_with_sparse, config_with_upper, text},
};

const LINES: u64 = 25;

/// A daemon is killed after each round of lines, and nobody but `sync` has made them durable.
fn every_line_is_there(configure: impl FnOnce(&Daemon, &Path) -> String, options: &[&str]) {
    let dir = tempfile::tempdir_in("/var").unwrap();
    let mut daemon = start(dir.path());
    let config = configure(&daemon, dir.path());
    let device = daemon.add(&[&["--config", &config, "--id", "1"], options].concat());
    output_of("mkfs.ext4", &["-q", "-O", "^has_journal", text(&device)]);
    let is_left = options.is_empty();
    let mut expected = String::new();
    for round in 0..3 {
        let point = EXT4.mount(&device, dir.path());
        let log = point.join("log");
        let mut file = OpenOptions::new().append(true).create(true).open(&log).unwrap();
        for number in 0..LINES {
            let line = format!("line {number} of round {round}\n");
            file.write_all(line.as_bytes()).unwrap();
            output_of("sync", &[text(&log)]);
            expected.push_str(&line);
        }
        // Not synced, and in the way of what was.
        fs::write(point.join("other"), pattern(64 << 10, round)).unwrap();
        drop(file);
        daemon.signal("-KILL");
        assert_eq!(daemon.wait(), None);
        if !is_left {
            // The device has gone, and the file system with it.
            unmount(&point);
        }
        daemon = start(dir.path());
        if is_left {
            unmount(&point);
        }
        let repaired = Command::new("e2fsck").args(["-fp", text(&device)]).stdout(Stdio::null()).status();
        assert!(repaired.unwrap().code().is_some_and(|code| code <= 1), "it cannot be repaired");
        let point = EXT4.mount(&device, dir.path());
        let found = fs::read_to_string(point.join("log")).unwrap();
        assert!(found == expected, "{} of {} bytes are there", found.len(), expected.len());
        unmount(&point);
    }
    daemon.finish();
}

#[test]
fn lines_that_sync_has_acknowledged_outlive_the_daemon_of_a_log_without_a_journal_above() {
    if in_guest() {
        every_line_is_there(|_, dir| config_with_upper(dir, None, 16 * MIB), &[]);
    }
}

#[test]
fn lines_that_sync_has_acknowledged_outlive_the_daemon_of_a_sparse_layer_without_a_journal_above() {
    if in_guest() {
        every_line_is_there(|daemon, dir| config_with_sparse(daemon, dir, 16 * MIB), &[]);
    }
}

#[test]
fn lines_that_sync_has_acknowledged_outlive_a_device_that_dies_with_its_daemon() {
    if in_guest() {
        every_line_is_there(|_, dir| config_with_upper(dir, None, 16 * MIB), &["--no-recovery"]);
    }
}
