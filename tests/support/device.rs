//! Devices attached by the command line tool, for the tests that run where ublk is.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A device served by `ublk-ctl add --foreground`; dropping it detaches it.
pub struct Attached {
    server: Child,
    path: PathBuf,
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
        if path.is_empty() {
            let mut complaint = String::new();
            let _ = server.stderr.take().unwrap().read_to_string(&mut complaint);
            panic!("ublk-ctl add {arguments:?}: {complaint}");
        }
        // The rest of what it says must not fill the pipe.
        let mut stderr = server.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::stderr()));
        Self { server, path: PathBuf::from(path.trim()) }
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.server.id().to_string()]).status();
        let status = self.server.wait();
        if !std::thread::panicking() {
            assert!(status.unwrap().success(), "the server of {} did not end well", self.path.display());
        }
    }
}
