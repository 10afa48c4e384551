//! The files of a device in /dev and /sys: waiting for them, checking them, adjusting them.
#![expect(unsafe_code, reason = "ioctl numbers carry the types that they are used with")]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{OFlags, major, minor},
    io::Errno,
    ioctl::{Getter, NoArg, ioctl, opcode},
};

use super::deadline::Deadline;
use crate::frontend::FrontendError;

/// How often a node that is not there yet is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// The node by which the server reaches the driver.
pub(super) fn character_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{id}"))
}

/// The node that programs open.
pub(super) fn block_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// Opens the character device, waiting for devtmpfs or udev to make the node.
pub(super) fn open_character(id: u32, deadline: &Deadline) -> Result<File, FrontendError> {
    let mut options = OpenOptions::new();
    open_when_there(options.read(true).write(true), &character_path(id), deadline)
}

/// Whether another process has the character device open, which only one can.
pub(super) fn is_open_elsewhere(id: u32) -> bool {
    let path = character_path(id);
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    let busy = |error: io::Error| error.raw_os_error() == Some(Errno::BUSY.raw_os_error());
    opened.is_err_and(busy) && !is_open_here(&path)
}

fn is_open_here(path: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return false };
    let targets = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.into_iter().any(|target| target == path)
}

/// Opens the block device, waiting for its node, and makes sure that the node is that of the device `number`.
pub(super) fn open_block(id: u32, number: (u32, u32), deadline: &Deadline) -> Result<File, FrontendError> {
    let path = block_path(id);
    let flags = i32::from_ne_bytes(OFlags::NONBLOCK.bits().to_ne_bytes());
    loop {
        let file = open_when_there(OpenOptions::new().read(true).custom_flags(flags), &path, deadline)?;
        let node = |source| FrontendError::Node { what: "stat", path: path.clone(), source };
        let found = file.metadata().map_err(node)?.rdev();
        if (major(found), minor(found)) == number {
            return Ok(file);
        }
        // A node of an earlier device that udev has not yet replaced.
        pause(&path, io::Error::other("the node is another device's"), deadline)?;
    }
}

fn open_when_there(options: &OpenOptions, path: &Path, deadline: &Deadline) -> Result<File, FrontendError> {
    loop {
        match options.open(path) {
            Ok(file) => return Ok(file),
            Err(error) => {
                let missing = [Errno::NOENT, Errno::NXIO, Errno::ACCESS, Errno::NODEV];
                let soon =
                    missing.into_iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
                if !soon {
                    return Err(FrontendError::Node {
                        what: "opening",
                        path: path.to_owned(),
                        source: error,
                    });
                }
                pause(path, error, deadline)?;
            }
        }
    }
}

/// Waits a little; gives up with `error` when the deadline has passed.
fn pause(path: &Path, error: io::Error, deadline: &Deadline) -> Result<(), FrontendError> {
    if deadline.has_passed() {
        return Err(FrontendError::Node {
            what: "waiting for the node",
            path: path.to_owned(),
            source: error,
        });
    }
    deadline.pause(LOOK_INTERVAL);
    Ok(())
}

/// Checks that the device is as large and as writable as it should be, and forgets what the kernel may have cached of an
/// earlier device with the same number.
pub(super) fn check(file: &File, path: &Path, size_bytes: u64, read_only: bool) -> Result<(), FrontendError> {
    const BLKGETSIZE64: rustix::ioctl::Opcode = opcode::read::<usize>(0x12, 114);
    const BLKROGET: rustix::ioctl::Opcode = opcode::none(0x12, 94);
    const BLKFLSBUF: rustix::ioctl::Opcode = opcode::none(0x12, 97);
    let failed =
        |what| move |errno: Errno| FrontendError::Node { what, path: path.to_owned(), source: errno.into() };
    // SAFETY: this number stores a 64-bit size.
    let found = unsafe { ioctl(file, Getter::<BLKGETSIZE64, u64>::new()) }.map_err(failed("BLKGETSIZE64"))?;
    if found != size_bytes {
        return Err(mismatch("the size in bytes", path, size_bytes, found));
    }
    // SAFETY: this number stores an int, though it does not say so.
    let found = unsafe { ioctl(file, Getter::<BLKROGET, i32>::new()) }.map_err(failed("BLKROGET"))? != 0;
    if found != read_only {
        return Err(mismatch("the read-only flag", path, read_only.into(), found.into()));
    }
    // SAFETY: this number takes no argument.
    unsafe { ioctl(file, NoArg::<BLKFLSBUF>::new()) }.map_err(failed("BLKFLSBUF"))
}

fn mismatch(what: &'static str, path: &Path, expected: u64, found: u64) -> FrontendError {
    FrontendError::Mismatch { what, path: path.to_owned(), expected, found }
}

/// Keeps one of `depth` tags from ever reaching the server: no scheduler, which has tags of its own, and fewer requests.
pub(super) fn spare_a_tag(id: u32, depth: u16) -> Result<(), FrontendError> {
    let queue = PathBuf::from(format!("/sys/block/ublkb{id}/queue"));
    for (name, value) in [("scheduler", "none".to_owned()), ("nr_requests", (depth - 1).to_string())] {
        let path = queue.join(name);
        fs::write(&path, value).map_err(|source| FrontendError::Node { what: "writing", path, source })?;
    }
    Ok(())
}
