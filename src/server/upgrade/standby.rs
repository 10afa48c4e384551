//! The old process once it has left its devices: its own program, executed anew, which watches the new process.

use std::{
    ffi::OsString,
    io::ErrorKind,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::{Channel, channel::Message};
use crate::server::failure::{Failure, FailureClass};

/// How to stand by.
#[derive(Debug)]
#[must_use]
pub struct Standby {
    socket: OwnedFd,
    arguments: Vec<OsString>,
}

/// What has become of the new process.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// It serves all devices: this process is not wanted any more.
    Well,
    /// It has ended, for this reason, and this process is to serve again.
    Badly(String),
}

impl Standby {
    pub(super) fn new(socket: OwnedFd, arguments: Vec<OsString>) -> Self {
        Self { socket, arguments }
    }

    /// Executes the program of this process anew, whatever its file is by now. All that the process has open is closed with that, so
    /// that the kernel's devices wait for their next server.
    ///
    /// # Errors
    /// Where it cannot be executed; this never returns otherwise.
    pub fn execute(self) -> Failure {
        let mut command = Command::new("/proc/self/exe");
        if let Some(name) = std::env::args_os().next() {
            command.arg0(name);
        }
        let error = command.args(self.arguments).stdin(Stdio::from(self.socket)).exec();
        Failure::with_source(FailureClass::Internal, "cannot stand by for the new process", error)
    }
}

/// Waits until the new process, `watched` as its number and the milliseconds that it has, serves all devices or cannot. In that case it is
/// ended, whatever it does.
///
/// # Errors
/// Where `watched` is not what [`super::STANDBY_OPTION`] has.
pub fn stand_by(mut channel: Channel, watched: &str) -> Result<Ended, Failure> {
    let parse = || {
        let (pid, timeout_ms) = watched.split_once(':')?;
        Some((Pid::from_raw(pid.parse().ok()?)?, Duration::from_millis(timeout_ms.parse().ok()?)))
    };
    let (pid, timeout) = parse().ok_or_else(|| {
        Failure::new(
            FailureClass::Usage,
            format!("{watched:?} is not what a daemon tells the one that stands by"),
        )
    })?;
    let reason = match channel.receive(Instant::now() + timeout) {
        Ok(Message::Serving) => return Ok(Ended::Well),
        Ok(Message::Failed(reason)) => reason,
        Ok(message) => format!("it says {message:?}"),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => "it has ended".to_owned(),
        Err(error) if error.kind() == ErrorKind::TimedOut => format!("it did not serve within {timeout:?}"),
        Err(error) => error.to_string(),
    };
    // One that has ended by itself is not waited for yet, so that no other process can have its number.
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitpid(Some(pid), WaitOptions::empty());
    Ok(Ended::Badly(format!("process {pid} could not take over: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child() -> (std::process::Child, String) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let watched = format!("{}:10000", child.id());
        (child, watched)
    }

    #[test]
    fn a_new_process_that_serves_goes_on_and_one_that_does_not_is_ended() {
        for (message, serves) in
            [(Some(Message::Serving), true), (Some(Message::Failed("no".into())), false), (None, false)]
        {
            let (mut child, watched) = child();
            let (channel, other) = Channel::pair().unwrap();
            let other = Channel::over(other);
            message.iter().for_each(|message| other.send(message).unwrap());
            drop(other);
            let ended = stand_by(channel, &watched).unwrap();
            assert_eq!(ended == Ended::Well, serves, "{ended:?}");
            // What has been waited for already is nobody's child.
            assert_eq!(matches!(child.try_wait(), Ok(None)), serves);
            if serves {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }

    #[test]
    fn one_that_says_nothing_is_ended_in_time() {
        let (child, _) = child();
        let (channel, _other) = Channel::pair().unwrap();
        let ended = stand_by(channel, &format!("{}:30", child.id())).unwrap();
        assert!(matches!(ended, Ended::Badly(reason) if reason.contains("within")));
        let (channel, _other) = Channel::pair().unwrap();
        assert!(stand_by(channel, "1").is_err());
    }
}
