//! Who uses a block device so that its removal would lose him data: who has it for himself alone, and loop devices over it, which the
//! kernel lets others share.
#![expect(unsafe_code, reason = "ioctl numbers carry the types that they are used with")]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Dev, Mode, OFlags, makedev, open},
    io::Errno,
    ioctl::{Getter, ioctl},
};

/// Block devices, with their partitions as folders in them.
const DISKS: &str = "/sys/block";

/// `struct loop_info64` of linux/loop.h in words.
const LOOP_INFO_WORDS: usize = 29;

/// The word of it that has the number of the block device below.
const LOOP_RDEVICE_WORD: usize = 2;

/// Names one of those who use the device at `path` or a partition of it. Who has just opened the node, to read it, is not seen.
pub(in crate::frontend) fn user(path: &Path) -> Option<String> {
    let name = path.file_name()?;
    let disk = Path::new(DISKS).join(name);
    let parts: Vec<PathBuf> = parts(&disk);
    if let Some(above) = holder(&parts) {
        return Some(above);
    }
    let numbers: Vec<Dev> = parts.iter().filter_map(|part| number(part)).collect();
    let loops = entries(Path::new(DISKS)).into_iter().filter(|disk| disk.join("loop/backing_file").exists());
    let above = loops.map(|disk| file_name(&disk)).find(|name| {
        let below = device_below(&Path::new("/dev").join(name));
        below.is_some_and(|below| numbers.contains(&below))
    });
    above.or_else(|| is_claimed(path).then(|| "a mount, swap or another exclusive user".to_owned()))
}

/// The disk and its partitions, as the kernel shows them.
fn parts(disk: &Path) -> Vec<PathBuf> {
    let partitions = entries(disk).into_iter().filter(|folder| folder.join("partition").exists());
    std::iter::once(disk.to_owned()).chain(partitions).collect()
}

/// A device that has one of them for itself, by its name.
fn holder(parts: &[PathBuf]) -> Option<String> {
    parts.iter().find_map(|part| Some(file_name(entries(&part.join("holders")).first()?)))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    // A device that is on its way out has none.
    entries.unwrap_or_default()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn number(part: &Path) -> Option<Dev> {
    let text = fs::read_to_string(part.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The number of the block device that a loop device lies on, wherever its node is: the name that the kernel shows may be another.
fn device_below(loop_device: &Path) -> Option<Dev> {
    const LOOP_GET_STATUS64: rustix::ioctl::Opcode = 0x4c05;
    let file = File::open(loop_device).ok()?;
    // SAFETY: this number stores a `struct loop_info64`, which is so many words and has no other alignment.
    let info = unsafe { ioctl(&file, Getter::<LOOP_GET_STATUS64, [u64; LOOP_INFO_WORDS]>::new()) }.ok()?;
    info.get(LOOP_RDEVICE_WORD).copied()
}

/// Whether the kernel refuses the device to somebody who wants it for himself alone for a moment, as it does where a file system of it
/// is mounted.
fn is_claimed(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::EXCL;
    matches!(open(path, flags, Mode::empty()), Err(Errno::BUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_and_what_lies_on_them_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("ublkb1");
        for folder in ["queue", "holders", "ublkb1p1/holders/dm-0"] {
            fs::create_dir_all(disk.join(folder)).unwrap();
        }
        for (file, text) in [("dev", "259:0\n"), ("ublkb1p1/dev", "259:1\n"), ("ublkb1p1/partition", "1\n")] {
            fs::write(disk.join(file), text).unwrap();
        }
        let parts = parts(&disk);
        let numbers: Vec<_> = parts.iter().filter_map(|part| number(part)).collect();
        assert_eq!(numbers, [makedev(259, 0), makedev(259, 1)]);
        assert_eq!(holder(&parts).as_deref(), Some("dm-0"));
        assert_eq!(user(Path::new("/dev/ublkb4000000")), None);
    }
}
