//! The old process until it has left its devices: it starts the new one, and waits until that is prepared.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{Channel, STANDBY_OPTION, SUCCESSOR_OPTION, Standby, channel::Message};
use crate::server::failure::{Failure, FailureClass};

/// What the kernel puts behind the path of a program whose file has been replaced.
const DELETED: &[u8] = b" (deleted)";

/// A new process that is prepared, and waits for the devices. Dropped, it ends.
#[derive(Debug)]
pub(in crate::server) struct Succession {
    child: Option<Child>,
    channel: Channel,
    timeout: Duration,
}

/// Starts `binary`, or else the file that this program was started from, with this process's arguments, and waits until it is
/// prepared. Blocks for up to `timeout`.
///
/// # Errors
/// Where it cannot be started, or does not come so far; then nothing has changed.
pub(in crate::server) fn prepare(binary: Option<&Path>, timeout: Duration) -> Result<Succession, Failure> {
    let failed = |path: &Path, source: io::Error| {
        let text = format!("{}: cannot start it; this daemon goes on", path.display());
        Failure::with_source(FailureClass::Internal, text, source)
    };
    let path = match binary {
        Some(path) => path.to_owned(),
        None => own_file().map_err(|source| failed(Path::new("/proc/self/exe"), source))?,
    };
    let (mut channel, other) = Channel::pair().map_err(|source| failed(&path, source))?;
    let child = Command::new(&path)
        .args(own_arguments())
        .arg(SUCCESSOR_OPTION)
        .stdin(Stdio::from(other))
        // Of the service manager: it is for a process of another number.
        .env_remove("WATCHDOG_PID")
        .spawn()
        .map_err(|source| failed(&path, source))?;
    let pid = child.id();
    let outcome = channel.receive(Instant::now() + timeout);
    let succession = Succession { child: Some(child), channel, timeout };
    let why = match outcome {
        Ok(Message::Prepared) => return Ok(succession),
        Ok(Message::Failed(reason)) => reason,
        Ok(message) => format!("it says {message:?}, and should say that it is prepared"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it has ended; its log says why".to_owned()
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            format!("it was not prepared within {timeout:?}")
        }
        Err(error) => error.to_string(),
    };
    let text = format!("{} (process {pid}) cannot take over: {why}; this daemon goes on", path.display());
    Err(Failure::new(FailureClass::Internal, text))
}

impl Succession {
    /// The new process.
    pub(in crate::server) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Has the new process begin, now that `devices` have been left, and returns how this one stands by.
    pub(in crate::server) fn begin(mut self, devices: Vec<u32>) -> Result<Standby, Failure> {
        let failed = |source: io::Error| {
            Failure::with_source(FailureClass::Internal, "cannot speak to the new process", source)
        };
        let pid = self.pid();
        self.channel.send(&Message::Begin { devices }).map_err(failed)?;
        let socket = self.channel.duplicate().map_err(failed)?;
        // It is the standby's from now on.
        self.child = None;
        let mut arguments = own_arguments();
        arguments.push(STANDBY_OPTION.into());
        arguments.push(format!("{pid}:{}", self.timeout.as_millis()).into());
        Ok(Standby::new(socket, arguments))
    }
}

impl Drop for Succession {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The arguments of this process, without what made it a successor or a standby.
fn own_arguments() -> Vec<OsString> {
    let mut arguments = std::env::args_os().skip(1);
    let mut own = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some(SUCCESSOR_OPTION) => {}
            Some(STANDBY_OPTION) => drop(arguments.next()),
            _ => own.push(argument),
        }
    }
    own
}

/// The file that has the name now that this program's file had when it was started.
fn own_file() -> io::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe")?;
    let bytes = path.as_os_str().as_bytes();
    match bytes.strip_suffix(DELETED) {
        Some(name) => Ok(OsStr::from_bytes(name).into()),
        None => Ok(path),
    }
}
