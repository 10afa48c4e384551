//! Reading what may give nothing for as long as it likes, such as a pipe, until someone ends the tool.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::Errno,
};

/// How often it is looked whether the tool is to end.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A file that is read until it ends, or until `cancelled` is set, which is an error.
#[derive(Debug)]
pub struct Patient<'a> {
    file: File,
    cancelled: &'a AtomicBool,
}

impl<'a> Patient<'a> {
    /// Reads what `file` is, from where others have read it to, and not through a buffer of theirs.
    ///
    /// # Errors
    /// The system's answer.
    pub fn of(file: impl AsFd, cancelled: &'a AtomicBool) -> io::Result<Self> {
        Ok(Self { file: file.as_fd().try_clone_to_owned()?.into(), cancelled })
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The system's answer.
    pub fn open(path: &Path, cancelled: &'a AtomicBool) -> io::Result<Self> {
        Ok(Self { file: open_at_once(path)?, cancelled })
    }
}

/// Opens a file for reading; a pipe too, to which nobody may write yet.
pub(super) fn open_at_once(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

impl Read for Patient<'_> {
    fn read(&mut self, dest: &mut [u8]) -> io::Result<usize> {
        while !self.cancelled.load(Ordering::Relaxed) {
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&LOOK_EVERY)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => match self.file.read(dest) {
                    // Someone else has read what was there.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                },
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::other("interrupted"))
    }
}
