//! What others do to a device and its nodes, and what the system does not let it have: said at once, and what to do about it.

use std::{
    fs::{self, OpenOptions},
    path::Path,
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    daemon::{config, start},
    frame::{in_guest, output_of},
    writable::{MIB, config_with_upper, text},
};

/// What needs no waiting takes no longer, on a busy machine under emulation.
const AT_ONCE: Duration = Duration::from_secs(20);

fn refused(output: &Output, status: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(status) && said.contains(words), "{status} {words}: {output:?}");
}

#[test]
fn a_device_under_a_loop_device_or_a_mapping_is_in_use() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let daemon = start(dir.path());
    let path = daemon.add(&["--config", &config_with_upper(dir.path(), None, 16 * MIB), "--id", "1"]);
    let refused = |user: &str| refused(&daemon.ctl(&["del", "1"]), 7, &format!("in use by {user}"));

    let link = dir.path().join("by-id");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(daemon.json(&["info", text(&link)])["id"], 1, "a link to a device is the device");

    let on = |lower: &str| output_of("losetup", &["-f", "--show", lower]).trim().to_owned();
    let looped = on(text(&path));
    refused(looped.strip_prefix("/dev/").unwrap());
    output_of("losetup", &["-d", &looped]);

    // The name that the kernel shows of a loop device's file is the one by which it was opened.
    let other = dir.path().join("another name");
    let number = fs::read_to_string("/sys/block/ublkb1/dev").unwrap();
    let (major, minor) = number.trim().split_once(':').unwrap();
    output_of("mknod", &[text(&other), "b", major, minor]);
    let looped = on(text(&other));
    refused(looped.strip_prefix("/dev/").unwrap());
    output_of("losetup", &["-d", &looped]);

    // One over a part of the device holds all of it.
    output_of("addpart", &[text(&path), "1", "2048", "2048"]);
    let looped = on(&format!("{}p1", path.display()));
    refused(looped.strip_prefix("/dev/").unwrap());
    output_of("losetup", &["-d", &looped]);
    output_of("delpart", &[text(&path), "1"]);

    let table = format!("0 2048 linear {} 0", path.display());
    output_of("dmsetup", &["create", "above", "--noudevsync", "--table", &table]);
    refused("dm-");
    output_of("dmsetup", &["remove", "--retry", "--noudevsync", "above"]);

    assert!(daemon.ctl(&["del", "1"]).status.success(), "nobody uses it any more");
    daemon.finish();
}

#[test]
fn a_node_that_another_program_opens_as_it_appears_is_waited_for() {
    if !in_guest() {
        return;
    }
    const ROUNDS: u32 = 4;
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path());
    let config = config(dir.path(), 1);
    let mut met = 0;
    for id in 1..=ROUNDS {
        let (sender, done) = mpsc::channel::<()>();
        // As udev and whoever looks at new devices: opened, looked at for a while, and closed.
        let opener = thread::spawn(move || {
            let node = format!("/dev/ublkc{id}");
            loop {
                if let Ok(file) = OpenOptions::new().read(true).open(&node) {
                    let _ = done.recv_timeout(Duration::from_millis(100));
                    drop(file);
                    return true;
                }
                if done.try_recv() == Err(mpsc::TryRecvError::Disconnected) {
                    return false;
                }
            }
        });
        daemon.add(&["--config", &config, "--id", &id.to_string()]);
        drop(sender);
        met += u32::from(opener.join().unwrap());
    }
    assert!(met > 0, "no node was opened before the daemon had it");
    daemon.finish();
}

#[test]
fn what_stands_in_the_place_of_a_node_is_said_at_once_and_costs_no_number() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let daemon = start(dir.path());
    let config = config(dir.path(), 1);
    for name in ["ublkb7", "ublkc8"] {
        let (stray, id) = (Path::new("/dev").join(name), &name[5..]);
        let add = || daemon.ctl(&["add", "--config", &config, "--id", id]);
        fs::write(&stray, "as dd leaves it").unwrap();
        let began = Instant::now();
        refused(&add(), 7, &format!("{} is no node of a device", stray.display()));
        assert!(began.elapsed() < AT_ONCE, "{name}");
        assert_eq!(fs::read_to_string(&stray).unwrap(), "as dd leaves it");
        assert_eq!(daemon.json(&["list"])["devices"].as_array().unwrap().len(), 0, "{name}");
        fs::remove_file(&stray).unwrap();
        let added = add();
        assert!(added.status.success(), "{name}: {added:?}");
        daemon.json(&["del", id]);
    }
    daemon.finish();
}

/// A device by the tool itself, with `before` done by the shell that starts it.
fn alone(before: &str, config: &str) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("{before} exec ublk-ctl add --foreground --no-cache --config \"$1\"");
    command.args(["--mount", "sh", "-c", &script, "sh", config]);
    command
}

#[test]
fn a_dev_in_which_no_node_appears_is_said_at_once() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 1);
    // As a container has it.
    let own_dev = "set -e; mkdir /tmp/dev; mount -t tmpfs dev /tmp/dev; cp -a /dev/null /dev/zero /dev/urandom /tmp/dev;";
    for (copied, words) in [
        (
            "cp -a /dev/ublk-control /tmp/dev; mount --move /tmp/dev /dev;",
            "does not appear: /dev here is not",
        ),
        ("mount --move /tmp/dev /dev;", "lacks its node"),
    ] {
        let began = Instant::now();
        refused(&alone(&format!("{own_dev} {copied}"), &config).output().unwrap(), 4, words);
        assert!(began.elapsed() < AT_ONCE);
        let _ = fs::remove_dir("/tmp/dev");
    }
    assert_eq!(fs::read_dir("/sys/class/ublk-char").map_or(0, Iterator::count), 0, "nothing is left");
}

#[test]
fn without_the_right_or_io_uring_each_command_says_what_to_do() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 1);
    let state = text(dir.path()).to_owned();
    let serve = ["ublk-ctl", "add", "--foreground", "--no-cache", "--config", &config];
    let commands: [&[&str]; 4] = [
        &["ublk-ctl", "features"],
        &serve,
        &["stratabd", "--state-dir", &state],
        &["ublk-ctl", "image", "export", "--no-cache", "--config", &config, "--sha256"],
    ];
    let without = |how: &[&str], command: &[&str]| {
        let output = Command::new("setpriv").args(how).args(command).output().unwrap();
        refused(&output, 4, "run as root with CAP_SYS_ADMIN");
    };
    without(&["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"], &serve);
    // Who may not even open the driver.
    for command in &commands[..2] {
        without(&["--reuid=65534", "--clear-groups"], command);
    }
    fs::write("/proc/sys/kernel/io_uring_disabled", "2").unwrap();
    for command in &commands {
        let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
        refused(&output, 4, "sysctl kernel.io_uring_disabled=0");
    }
    fs::write("/proc/sys/kernel/io_uring_disabled", "0").unwrap();
}
