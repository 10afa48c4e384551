//! Programs that a test starts, ends, and listens to.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, WaitOptions, waitpid};

/// Long enough for a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends `process` a signal, such as `-STOP`.
pub fn signal(process: &Child, signal: &str) {
    signal_to(process.id(), signal);
}

/// Sends the process of this number a signal.
pub fn signal_to(pid: u32, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(status.unwrap().success(), "kill {signal}");
}

/// Waits for the end of a process that this one has adopted, whose parent has ended, and returns its status.
pub fn adopted_ended(pid: u32) -> Option<i32> {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some((_, status)) = waitpid(Some(pid), WaitOptions::NOHANG).unwrap() {
            return status.exit_status();
        }
        assert!(Instant::now() < deadline, "the process does not end");
        #[expect(clippy::disallowed_methods, reason = "a test waits for a process")]
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for the end of `process` and returns its status, None where a signal has ended it.
pub fn ended(process: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "the process does not end");
        #[expect(clippy::disallowed_methods, reason = "a test waits for a child process")]
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a program says on standard error, passed on as it comes, so that it never fills the pipe.
pub struct Said(mpsc::Receiver<String>);

impl Said {
    /// Listens to `pipe` from now on.
    pub fn listen(pipe: impl Read + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                eprintln!("{line}");
                // Who does not wait for a line does not want it.
                let _ = sender.send(line);
            }
        });
        Self(lines)
    }

    /// Waits until it says `part`.
    pub fn wait_for(&self, part: &str) {
        let mut before = Vec::new();
        loop {
            let line = self.0.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("it never said {part:?}, but {before:?}"));
            if line.contains(part) {
                return;
            }
            before.push(line);
        }
    }
}
