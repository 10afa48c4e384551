//! A daemon with the registries and the cache of a test, for the tests that run where ublk is.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A running `stratabd`; dropping it ends it, and with it all of its devices.
pub struct Daemon {
    process: Child,
    socket: PathBuf,
}

impl Daemon {
    /// Starts one whose state and cache lie below `dir`, and which speaks plain HTTP to `host`; `set` has other settings.
    pub fn start(dir: &Path, host: &str, set: &[&str]) -> Self {
        fs::create_dir_all(dir).unwrap();
        let settings = dir.join("stratabd.toml");
        fs::write(&settings, format!("[registry.hosts.\"{host}\"]\nplain_http = true\n")).unwrap();
        let state = dir.join("state");
        let mut command = Command::new("stratabd");
        command.arg("--config").arg(&settings).arg("--state-dir").arg(&state);
        command.arg("--cache-dir").arg(dir.join("cache"));
        command.args(set.iter().flat_map(|setting| ["--set", *setting]));
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the daemon has ended");
            eprint!("{line}");
        }
        // The rest of what it says must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::stderr()));
        Self { process, socket: state.join("stratabd.sock") }
    }

    /// Makes a device of `image` and returns its path.
    pub fn add(&self, image: &str) -> PathBuf {
        let output =
            Command::new("ublk-ctl").arg("--socket").arg(&self.socket).args(["add", image]).output().unwrap();
        assert!(output.status.success(), "add {image}: {}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    }

    /// The counter or gauge of this name that has no labels.
    pub fn metric(&self, name: &str) -> u64 {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status();
        let status = self.process.wait();
        if !std::thread::panicking() {
            assert!(status.unwrap().success(), "the daemon did not end well");
        }
    }
}
