//! Devices attached by the command line tool, for the tests that run where ublk is.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::process::{self, Said};

/// A device served by `ublk-ctl add --foreground`; dropping it detaches it.
pub struct Attached {
    server: Child,
    path: PathBuf,
    said: Said,
    is_ended: bool,
}

impl Attached {
    /// Runs `ublk-ctl add --foreground` with `arguments` and waits for the path that it prints.
    pub fn add(arguments: &[&str]) -> Self {
        let mut server = Command::new("ublk-ctl")
            .args(["add", "--foreground"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ublk-ctl is installed");
        let mut path = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut path).unwrap();
        let mut stderr = server.stderr.take().unwrap();
        if path.is_empty() {
            let mut complaint = String::new();
            let _ = stderr.read_to_string(&mut complaint);
            panic!("ublk-ctl add {arguments:?}: {complaint}");
        }
        Self { server, path: PathBuf::from(path.trim()), said: Said::listen(stderr), is_ended: false }
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the process that serves it.
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// What the process says.
    pub fn said(&self) -> &Said {
        &self.said
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: &str) {
        process::signal(&self.server, signal);
    }

    /// Waits for the end of the process; returns its status, None where a signal has ended it.
    pub fn ended(&mut self) -> Option<i32> {
        self.is_ended = true;
        process::ended(&mut self.server)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        self.signal("-TERM");
        // A test that fails may have it stopped.
        self.signal("-CONT");
        let status = self.server.wait();
        if !std::thread::panicking() {
            assert!(status.unwrap().success(), "the server of {} did not end well", self.path.display());
        }
    }
}
