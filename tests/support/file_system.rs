//! File systems that tests put on devices.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A file system, how it is made, and how it is looked at without being mounted.
#[derive(Debug, Clone, Copy)]
pub struct FileSystem {
    /// What `mount -t` and its module call it.
    pub name: &'static str,
    make: &'static [&'static str],
    check: &'static [&'static str],
    /// A size of a device, little more than the least that it takes.
    pub size_bytes: u64,
}

/// The one of most machines.
pub const EXT4: FileSystem =
    FileSystem { name: "ext4", make: &["mkfs.ext4", "-q"], check: &["e2fsck", "-fn"], size_bytes: 64 << 20 };

/// Its module takes seconds to load in an emulated guest.
pub const XFS: FileSystem = FileSystem {
    name: "xfs",
    make: &["mkfs.xfs", "-q"],
    check: &["xfs_repair", "-n"],
    size_bytes: 320 << 20,
};

/// Never writes anything in its place.
pub const BTRFS: FileSystem = FileSystem {
    name: "btrfs",
    make: &["mkfs.btrfs", "-q"],
    check: &["btrfs", "check", "--readonly"],
    size_bytes: 192 << 20,
};

impl FileSystem {
    /// Makes one on the device.
    pub fn make(&self, device: &Path) {
        run(self.make, &[device]);
    }

    /// Finds it without a fault.
    pub fn check(&self, device: &Path) {
        run(self.check, &[device]);
    }

    /// Mounts it at `mount` in `dir`; what is freed is discarded at once.
    pub fn mount(&self, device: &Path, dir: &Path) -> PathBuf {
        let point = dir.join("mount");
        fs::create_dir_all(&point).unwrap();
        // One that is built in has no module.
        if !fs::read_to_string("/proc/filesystems").unwrap().contains(&format!("\t{}\n", self.name)) {
            run(&["modprobe", self.name], &[]);
        }
        run(&["mount", "-t", self.name, "-o", "discard"], &[device, &point]);
        point
    }
}

/// Takes away what is mounted there.
pub fn unmount(point: &Path) {
    run(&["umount"], &[point]);
}

fn run(command: &[&str], paths: &[&Path]) {
    let (program, arguments) = command.split_first().unwrap();
    let output = Command::new(program).args(arguments).args(paths).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?} {paths:?}: {}", String::from_utf8_lossy(&said));
}
