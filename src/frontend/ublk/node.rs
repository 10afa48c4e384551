//! The files of a device in /dev and /sys: waiting for them, checking them, adjusting them.
#![expect(unsafe_code, reason = "ioctl numbers carry the types that they are used with")]

use std::{
    fs::{self, File, FileType, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
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

/// How long a node may take where the kernel itself does not make it.
const FOREIGN_PATIENCE: Duration = Duration::from_secs(1);

/// Thousands of mounts are below it.
const MAX_MOUNTS_BYTES: u64 = 16 << 20;

/// Where nodes are.
const NODES: &str = "/dev";

/// The node by which the server reaches the driver.
pub(super) fn character_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{id}"))
}

/// The node that programs open.
pub(super) fn block_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// Refuses what has the names of the nodes of a device and is none.
pub(super) fn refuse_strays(id: u32) -> Result<(), FrontendError> {
    refuse_stray(&character_path(id), FileType::is_char_device)?;
    refuse_stray(&block_path(id), FileType::is_block_device)
}

/// The kernel makes no node where something else has its name, a link among them, and opening that might wait for ever.
fn refuse_stray(path: &Path, is_node: fn(&FileType) -> bool) -> Result<(), FrontendError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !is_node(&found.file_type()) => Err(FrontendError::Stray(path.to_owned())),
        _ => Ok(()),
    }
}

/// Opens the character device, waiting for devtmpfs or udev to make the node, and for whoever opens each one that appears to close it.
pub(super) fn open_character(id: u32, deadline: &Deadline) -> Result<File, FrontendError> {
    let mut options = OpenOptions::new();
    open_when_there(options.read(true).write(true), &character_path(id), FileType::is_char_device, deadline)
}

/// Whether another process has the character device open, which only one can.
pub(super) fn is_open_elsewhere(id: u32) -> bool {
    let path = character_path(id);
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    opened.is_err_and(|error| is(&error, Errno::BUSY)) && !is_open_here(&path)
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
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags);
        let file = open_when_there(&options, &path, FileType::is_block_device, deadline)?;
        let node = |source| FrontendError::Node { what: "stat", path: path.clone(), source };
        let found = file.metadata().map_err(node)?.rdev();
        if (major(found), minor(found)) == number {
            return Ok(file);
        }
        // A node of an earlier device that udev has not yet replaced.
        pause(&path, io::Error::other("the node is another device's"), deadline)?;
    }
}

/// Opens the node at `path`, which must be of the kind that `is_node` knows.
fn open_when_there(
    options: &OpenOptions,
    path: &Path,
    is_node: fn(&FileType) -> bool,
    deadline: &Deadline,
) -> Result<File, FrontendError> {
    let foreign = Deadline::after(FOREIGN_PATIENCE);
    loop {
        refuse_stray(path, is_node)?;
        let error = match options.open(path) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        let soon = [Errno::NOENT, Errno::NXIO, Errno::ACCESS, Errno::NODEV, Errno::BUSY];
        if !soon.into_iter().any(|errno| is(&error, errno)) {
            return Err(FrontendError::Node { what: "opening", path: path.to_owned(), source: error });
        }
        if is(&error, Errno::NOENT) && foreign.has_passed() && !kernel_makes_nodes() {
            return Err(FrontendError::NoNode(path.to_owned()));
        }
        pause(path, error, deadline)?;
    }
}

/// Whether nodes appear as soon as their devices do. In a container they mostly do not: it has a copy of some.
fn kernel_makes_nodes() -> bool {
    let Ok(folder) = fs::metadata(NODES) else { return false };
    let mut mounts = Vec::new();
    let opened = File::open("/proc/self/mountinfo");
    if opened.and_then(|file| file.take(MAX_MOUNTS_BYTES).read_to_end(&mut mounts)).is_err() {
        return true;
    }
    is_devtmpfs(&mounts, (major(folder.dev()), minor(folder.dev())))
}

/// Whether the file system of this number is the kernel's own of nodes.
fn is_devtmpfs(mounts: &[u8], (major, minor): (u32, u32)) -> bool {
    let number = format!("{major}:{minor}");
    mounts.split(|byte| *byte == b'\n').any(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        let is_it = words.nth(2) == Some(number.as_bytes());
        // A word of its own ends the fields of which there may be any number.
        is_it && words.skip_while(|word| *word != b"-").nth(1) == Some(b"devtmpfs")
    })
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_name_of_a_node_is_said_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let long = Deadline::after(Duration::from_secs(600));
        let mut options = OpenOptions::new();
        options.read(true);
        let open = |path: &Path| open_when_there(&options, path, FileType::is_char_device, &long);
        let (file, link, folder) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("dir"));
        fs::write(&file, "stray").unwrap();
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for stray in [&file, &link, &folder] {
            assert!(matches!(open(stray), Err(FrontendError::Stray(path)) if path == *stray));
        }
        open(Path::new("/dev/null")).unwrap();
    }

    #[test]
    fn a_file_system_of_nodes_is_told_from_a_containers_copy() {
        let mounts = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            23 22 0:5 / /dev rw,nosuid shared:8 - devtmpfs udev rw\n\
            24 22 0:61 / /c/dev rw master:8 propagate_from:2 - tmpfs tmpfs rw\nodd\n";
        assert!(is_devtmpfs(mounts, (0, 5)));
        for other in [(0, 61), (8, 1), (0, 7)] {
            assert!(!is_devtmpfs(mounts, other), "{other:?}");
        }
    }
}
