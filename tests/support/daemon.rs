//! A daemon as a process of its own, for the tests that run where ublk is.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, set_child_subreaper};
use serde_json::Value;

use super::process::{self, Said};

/// A running `stratabd`; dropping it removes all of its devices and ends it.
pub struct Daemon {
    process: Process,
    socket: PathBuf,
    is_ended: bool,
}

enum Process {
    Child(Child),
    /// The child of one that has ended.
    Adopted(u32),
}

/// The setting that makes a daemon speak plain HTTP to `host`.
pub fn plain_http(host: impl std::fmt::Display) -> String {
    format!("registry.hosts.\"{host}\".plain_http=true")
}

impl Daemon {
    /// Starts one whose state, socket and cache lie below `dir`, with settings as `key=value`, and waits until it is ready.
    pub fn start(dir: &Path, settings: &[&str]) -> Self {
        Self::ready(dir, program(dir, settings))
    }

    /// As [`Daemon::start`], one that dies at the crash point of this name.
    pub fn start_doomed(dir: &Path, settings: &[&str], point: &str) -> Self {
        Self::start_with(dir, settings, ("STRATABD_DIE_AT", point))
    }

    /// As [`Daemon::start`], with a variable of its environment.
    pub fn start_with(dir: &Path, settings: &[&str], (name, value): (&str, &str)) -> Self {
        let mut command = program(dir, settings);
        command.env(name, value);
        Self::ready(dir, command)
    }

    fn ready(dir: &Path, mut command: Command) -> Self {
        let state = dir.join("state");
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        Said::listen(process.stderr.take().unwrap()).wait_for("ready");
        Self { process: Process::Child(process), socket: state.join("stratabd.sock"), is_ended: false }
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Child(child) => child.id(),
            Process::Adopted(pid) => *pid,
        }
    }

    /// Has another process take over; returns what the tool says of one that cannot, and then this one must be there still.
    pub fn upgrade(&mut self, arguments: &[&str]) -> Result<(), String> {
        set_child_subreaper(Some(Pid::INIT)).unwrap();
        let output = self.ctl(&[&["upgrade", "--json"], arguments].concat());
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let new: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(self.ended(), Some(0), "the old process does not end well");
        self.process = Process::Adopted(new["pid"].as_u64().unwrap().try_into().unwrap());
        Ok(())
    }

    fn ended(&mut self) -> Option<i32> {
        match &mut self.process {
            Process::Child(child) => process::ended(child),
            Process::Adopted(pid) => process::adopted_ended(*pid),
        }
    }

    /// The tool, told to talk to this daemon.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ublk-ctl");
        command.arg("--socket").arg(&self.socket).args(arguments);
        command
    }

    /// What the tool answers to `arguments`.
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// As [`Daemon::ctl`], for what must succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ctl(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Makes a device as `arguments` say and returns its path.
    pub fn add(&self, arguments: &[&str]) -> PathBuf {
        self.json(&[&["add"], arguments].concat())["path"].as_str().unwrap().into()
    }

    /// All metrics.
    pub fn metrics(&self) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// The counter or gauge of this name that has no labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.metrics();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        process::signal_to(self.pid(), signal);
    }

    /// Sends it a signal and waits for its end; returns its status, None where a signal has ended it.
    pub fn end(self, signal: &str) -> Option<i32> {
        self.signal(signal);
        self.wait()
    }

    /// Waits for its end, as [`Daemon::end`] does.
    pub fn wait(mut self) -> Option<i32> {
        self.is_ended = true;
        self.ended()
    }

    /// Removes its devices, whoever uses them, and ends it well.
    pub fn finish(self) {
        self.json(&["del", "--all", "--force"]);
        assert_eq!(self.end("-TERM"), Some(0), "the daemon did not end well");
    }
}

/// The program, as [`Daemon::start`] starts it.
pub fn program(dir: &Path, settings: &[&str]) -> Command {
    let mut command = Command::new("stratabd");
    command.arg("--state-dir").arg(dir.join("state")).arg("--cache-dir").arg(dir.join("cache"));
    command.args(settings.iter().flat_map(|setting| ["--set", *setting])).stdin(Stdio::null());
    command
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        let _ = self.ctl(&["del", "--all", "--force"]);
        self.signal("-TERM");
        let status = self.ended();
        if !std::thread::panicking() {
            assert_eq!(status, Some(0), "the daemon did not end well");
        }
    }
}
