//! Runs the programs of e2fsprogs on a file that has no name.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{OfflineError, Patient};

/// Bytes that are kept of what a program says. The rest is read, so that it does not wait, and forgotten.
const SAID_LIMIT_BYTES: usize = 8 << 10;
/// Bytes that are read of it at once.
const PIECE_BYTES: usize = 4096;

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its exit status; `None` where a signal has ended it.
    pub(super) code: Option<i32>,
    /// The beginning of what it has said.
    pub(super) said: String,
}

/// Runs `command`. `failed` makes an error of what kept it from running.
///
/// # Errors
/// What `failed` makes, and [`OfflineError::Cancelled`] when `cancelled` is set; then it has been killed.
pub(super) fn run(
    mut command: Command,
    cancelled: &AtomicBool,
    failed: impl Fn(String) -> OfflineError,
) -> Result<Ended, OfflineError> {
    let failed = |error: io::Error| failed(error.to_string());
    let (hears, says) = io::pipe().map_err(failed)?;
    // Its words end up in an error, in which they are to be the same everywhere.
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(says.try_clone().map_err(failed)?).stderr(says);
    let spawned = command.spawn();
    // This end of the pipe has to be closed, or the other one would never be at its end.
    drop(command);
    let mut child = spawned.map_err(failed)?;
    let heard = Patient::of(hears, cancelled).and_then(listen);
    if heard.is_err() {
        // One that has ended just now need not be.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    if cancelled.load(Ordering::Relaxed) {
        return Err(OfflineError::Cancelled);
    }
    let said = heard.map_err(failed)?;
    Ok(Ended { code: status.code(), said: String::from_utf8_lossy(&said).trim().to_owned() })
}

/// A path by which another program can open a file that this one has open.
pub(super) fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// Reads all that a program says, and keeps the beginning.
fn listen(mut program: Patient<'_>) -> io::Result<Vec<u8>> {
    let (mut said, mut piece) = (Vec::new(), [0; PIECE_BYTES]);
    loop {
        let count = program.read(&mut piece)?;
        if count == 0 {
            return Ok(said);
        }
        let room = SAID_LIMIT_BYTES.saturating_sub(said.len()).min(count);
        said.extend_from_slice(piece.get(..room).unwrap_or_default());
    }
}
