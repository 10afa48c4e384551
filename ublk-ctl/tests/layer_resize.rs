//! `layer resize --ext4` and `overlaybd-resize`, interrupted and killed: the layer has the old file system or the new one.
#![expect(clippy::unwrap_used, reason = "a test panics where something is not as expected")]

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::Value;

/// A folder with a layer of 1 GiB that has an ext4, a log or sparse, and a configuration that names it.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new(sparse: bool) -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        symlink(env!("CARGO_BIN_EXE_ublk-ctl"), bench.path("overlaybd-resize")).unwrap();
        symlink(env!("CARGO_BIN_EXE_ublk-ctl"), bench.path("ublk-ctl")).unwrap();
        fs::write(bench.path("config"), r#"{"lowers":[],"upper":{"data":"d","index":"i"}}"#).unwrap();
        let kind = if sparse { "--sparse" } else { "--" };
        let made = bench.run("ublk-ctl", &["layer", "create", "--ext4", "--size=1GiB", kind, "d", "i"]);
        assert!(made.status.success(), "{made:?}");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path(program));
        command.args(arguments).current_dir(self.0.path()).env_remove("RUST_LOG");
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().unwrap()
    }

    /// What the layer is, by a hash of its device, and all names in the folder.
    fn state(&self) -> (Value, Vec<String>) {
        let exported = self.run("ublk-ctl", &["image", "export", "--config", "config", "--sha256", "--json"]);
        assert!(exported.status.success(), "{exported:?}");
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        (serde_json::from_slice(&exported.stdout).unwrap(), names)
    }

    /// Has a program stand in for one of e2fsprogs, and returns where to look for programs then.
    fn stand_in(&self, program: &str, script: &str) -> std::ffi::OsString {
        let bin = self.path("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join(program), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(bin.join(program), fs::Permissions::from_mode(0o755)).unwrap();
        let mut path = bin.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        path
    }
}

#[expect(clippy::disallowed_methods, reason = "another program is waited for")]
fn wait_for(path: &Path) {
    let began = Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

const GROW: [&str; 5] = ["layer", "resize", "--ext4", "--config=config", "--size=3GiB"];

#[test]
fn a_growth_that_is_ended_changes_nothing_and_is_done_again() {
    for (sparse, signal, program) in [
        (false, "-TERM", "resize2fs"),
        (true, "-INT", "e2fsck"),
        (false, "-KILL", "e2fsck"),
        (true, "-KILL", "resize2fs"),
    ] {
        let bench = Bench::new(sparse);
        let started = bench.path("started");
        let path = bench.stand_in(program, "touch started; exec sleep 100");
        let (device, _) = bench.state();
        let mut growing = bench.command("ublk-ctl", &GROW).env("PATH", path).spawn().unwrap();
        wait_for(&started);
        assert!(Command::new("kill").args([signal, &growing.id().to_string()]).status().unwrap().success());
        let ended = growing.wait().unwrap();
        let expected = if signal == "-KILL" { (None, Some(9)) } else { (Some(130), None) };
        assert_eq!((ended.code(), ended.signal()), expected);
        fs::remove_dir_all(bench.path("bin")).unwrap();
        fs::remove_file(started).unwrap();
        let mut names = ["config", "d", "overlaybd-resize", "ublk-ctl", "i"].map(str::to_owned).to_vec();
        names.sort();
        assert_eq!(bench.state(), (device, names));
        let done = bench.run("ublk-ctl", &[&GROW[..], &["--json"]].concat());
        let done: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(
            (&done["ext4_before_bytes"], &done["ext4_after_bytes"]),
            (&(1_u64 << 30).into(), &(3_u64 << 30).into())
        );
    }
}

#[test]
fn what_a_program_says_when_it_fails_is_told() {
    let bench = Bench::new(false);
    let before = bench.state().0;
    let path = bench.stand_in("resize2fs", "echo out of luck >&2; exit 1");
    let failed =
        bench.command("overlaybd-resize", &["--config=config", "--size=3"]).env("PATH", &path).output();
    let failed = failed.unwrap();
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(
        failed.status.code() == Some(1) && said.contains("resize2fs") && said.contains("out of luck"),
        "{said}"
    );
    let failed =
        bench.command("overlaybd-resize", &["--config=config", "--size=3"]).env("PATH", "/nowhere").output();
    let said = String::from_utf8(failed.unwrap().stderr).unwrap();
    assert!(said.contains("resize2fs") && said.contains("No such file"), "{said}");
    assert_eq!(bench.state().0, before);
}

#[test]
fn a_wrong_use_is_told_and_changes_nothing() {
    let bench = Bench::new(false);
    let before = bench.state();
    fs::write(bench.path("ro"), r#"{"lowers":[{"file":"d"}]}"#).unwrap();
    for (arguments, code) in [
        (&["--size=3GiB"][..], 2),
        (&["--size=3GiB", "--ext4", "d", "i"], 2),
        (&["--size=3GiB", "--config=config", "d", "i"], 2),
        (&["--size=512MiB", "--ext4", "--config=config"], 2),
        (&["--size=3GiB", "--ext4", "--config=ro"], 2),
        (&["--size=3GiB", "--config=ro"], 2),
    ] {
        let ended = bench.run("ublk-ctl", &[&["layer", "resize"], arguments].concat());
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {ended:?}");
    }
    fs::remove_file(bench.path("ro")).unwrap();
    assert_eq!(bench.state(), before);
    // The device alone, by the configuration.
    let done = bench.run("ublk-ctl", &["layer", "resize", "--config=config", "--size=2GiB", "--json"]);
    let done: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(done["after_bytes"], 2_u64 << 30);
}
