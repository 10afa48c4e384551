//! A disk that holds back what is written to it, for as long as a test likes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    frame::{output_of, wait_until},
    writable::{MIB, text},
};

/// A disk that can be stopped.
pub(crate) struct Disk {
    loop_device: String,
    /// Where its file system is.
    pub(crate) point: PathBuf,
}

impl Disk {
    const NODE: &str = "/dev/mapper/hung";

    pub(crate) fn new(dir: &Path) -> Self {
        const SIZE_BYTES: u64 = 64 * MIB;
        let file = dir.join("disk");
        fs::File::create(&file).unwrap().set_len(SIZE_BYTES).unwrap();
        let loop_device = output_of("losetup", &["-f", "--show", text(&file)]).trim().to_owned();
        let table = format!("0 {} linear {loop_device} 0", SIZE_BYTES / 512);
        output_of("dmsetup", &["create", "hung", "--noudevsync", "--table", &table]);
        output_of("dmsetup", &["mknodes"]);
        output_of("mkfs.ext4", &["-q", Self::NODE]);
        let disk = Self { loop_device, point: dir.join("disk-mount") };
        fs::create_dir(&disk.point).unwrap();
        output_of("mount", &["-t", "ext4", Self::NODE, text(&disk.point)]);
        disk
    }

    pub(crate) fn stop(&self) {
        output_of("dmsetup", &["suspend", "--nolockfs", "--noflush", "hung"]);
    }

    pub(crate) fn go_on(&self) {
        output_of("dmsetup", &["resume", "--noudevsync", "hung"]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.go_on();
        wait_until("nobody uses the disk", || {
            Command::new("umount").arg(&self.point).status().unwrap().success()
        });
        output_of("dmsetup", &["remove", "--retry", "--noudevsync", "hung"]);
        output_of("losetup", &["-d", &self.loop_device]);
    }
}

/// Whether a thread of the process waits for a disk, which no signal ends.
pub(crate) fn waits_for_disk(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    stats.into_iter().any(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D')))
}
