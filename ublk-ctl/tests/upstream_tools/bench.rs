//! A folder in which the program runs under the names of upstream's tools.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::fixtures::Fixture;

/// A folder with the program under all its names, in which the commands run.
pub(crate) struct Bench(pub(crate) tempfile::TempDir);

pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Bench {
    /// With these fixtures under short names.
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        for name in ["commit", "create", "merge", "resize", "zfile"] {
            symlink(env!("CARGO_BIN_EXE_ublk-ctl"), bench.path(&format!("overlaybd-{name}"))).unwrap();
        }
        for (fixture, name) in files {
            fs::write(bench.path(name), Fixture::named(fixture).read()).unwrap();
        }
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a command line as a shell would, without quotes.
    pub(crate) fn run(&self, line: &str) -> Ended {
        self.run_with(line, &[])
    }

    pub(crate) fn run_with(&self, line: &str, input: &[u8]) -> Ended {
        let mut words = line.split_whitespace();
        let mut command = Command::new(self.path(&format!("overlaybd-{}", words.next().unwrap())));
        command.args(words).current_dir(self.0.path()).env_remove("RUST_LOG");
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all(input);
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs what must work, and returns what it says.
    pub(crate) fn well(&self, line: &str) -> String {
        let ended = self.run(line);
        assert_eq!(ended.code, 0, "{line}: {}", ended.err);
        ended.out
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        File::open(self.path(name)).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Eight bytes of a file, which may be large.
    pub(crate) fn bytes_at(&self, name: &str, offset: u64) -> [u8; 8] {
        let mut bytes = [0; 8];
        File::open(self.path(name)).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub(crate) fn holds(&self, name: &str, fixture: &str) {
        assert!(self.bytes(name) == Fixture::named(fixture).read(), "{name} is not {fixture}");
    }

    /// The hash of the device that these layers are.
    pub(crate) fn flat_sha256(&self, layers: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ublk-ctl"));
        command.args(["image", "export", "--sha256", "--json"]).current_dir(self.0.path());
        for layer in layers {
            command.args(["--layer", layer]);
        }
        let output = command.output().unwrap();
        let done: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        done.get("sha256").unwrap().as_str().unwrap().to_owned()
    }

    /// Starts a command line that waits, interrupts it when there is a part of a file, and returns how it ended.
    pub(crate) fn interrupted(&self, mut command: Command, signal: &str) -> ExitStatus {
        let mut child = command.current_dir(self.0.path()).stdout(Stdio::null()).spawn().unwrap();
        let part = || {
            fs::read_dir(self.0.path())
                .unwrap()
                .any(|it| it.unwrap().path().extension() == Some("part".as_ref()))
        };
        wait_until(part);
        let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let mut ended = None;
        wait_until(|| {
            ended = child.try_wait().unwrap();
            ended.is_some()
        });
        assert!(!part(), "a part is left");
        ended.unwrap()
    }

    /// A program that creates an ext4, in a folder of its own that is to be looked in first.
    pub(crate) fn mke2fs(&self, script: &str) -> OsString {
        let bin = self.path("bin");
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("mke2fs"), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(bin.join("mke2fs"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut path = bin.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        path
    }
}

#[expect(clippy::disallowed_methods, reason = "another program is waited for")]
fn wait_until(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}
