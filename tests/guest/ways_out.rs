//! The ways out of a device that is in use: by force, by signals, and by the failure of a thread that serves it.

use std::{fs, path::PathBuf, process::Command};

use crate::{
    daemon::config,
    frame::in_guest,
    support::{device::Attached, process::ended},
};

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
