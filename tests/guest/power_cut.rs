//! Power cuts below a writable layer, on a disk of the guest that stops to take writes and tells nobody.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use stratabd::format::lsmt::JOURNAL_FOLDER;

use crate::{
    daemon::start,
    frame::{in_guest, output_of, pause},
    support::{
        file_system::{BTRFS, EXT4, FileSystem, XFS, unmount},
        records::{self, Durable},
    },
    writable::{MIB, Recorder, config_with_upper, text},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Of the disk: room for all that is written to the largest device.
const SIZE_BYTES: u64 = 256 * MIB;

/// A disk that can be cut off: a device mapper's over a loop device over a file, with a file system for the layer.
struct Disk {
    loop_device: String,
    sectors: u64,
    point: PathBuf,
}

impl Disk {
    const NODE: &str = "/dev/mapper/cut";

    fn new(dir: &Path) -> Self {
        let file = dir.join("disk");
        fs::File::create(&file).unwrap().set_len(SIZE_BYTES).unwrap();
        let loop_device = output_of("losetup", &["-f", "--show", text(&file)]).trim().to_owned();
        output_of("modprobe", &["dm-flakey"]);
        let disk = Self { loop_device, sectors: SIZE_BYTES / 512, point: dir.join("disk-mount") };
        fs::create_dir(&disk.point).unwrap();
        disk.create();
        output_of("mkfs.ext4", &["-q", Self::NODE]);
        disk.mount();
        disk
    }

    fn create(&self) {
        let table = format!("0 {} linear {} 0", self.sectors, self.loop_device);
        output_of("dmsetup", &["create", "cut", "--noudevsync", "--table", &table]);
        output_of("dmsetup", &["mknodes"]);
    }

    fn mount(&self) {
        output_of("mount", &["-t", "ext4", Self::NODE, text(&self.point)]);
    }

    /// A process that was killed lets its files go a moment after it has gone.
    fn unmount(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !Command::new("umount").arg(&self.point).stderr(Stdio::null()).status().unwrap().success() {
            assert!(Instant::now() < deadline, "somebody still uses the disk");
            pause();
        }
    }

    /// From now on nothing that is written gets there, and nobody is told.
    fn cut(&self) {
        let table = format!("0 {} flakey {} 0 0 100000 1 drop_writes", self.sectors, self.loop_device);
        output_of("dmsetup", &["suspend", "--nolockfs", "--noflush", "cut"]);
        output_of("dmsetup", &["load", "cut", "--table", &table]);
        output_of("dmsetup", &["resume", "--noudevsync", "cut"]);
    }

    /// As after the power has come back: only what the disk has is there, and nothing of what was in memory.
    fn restore(&self) {
        match fs::remove_dir_all(JOURNAL_FOLDER) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
        self.unmount();
        output_of("dmsetup", &["remove", "--retry", "--noudevsync", "cut"]);
        self.create();
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
        output_of("dmsetup", &["remove", "--retry", "--noudevsync", "cut"]);
        output_of("losetup", &["-d", &self.loop_device]);
    }
}

#[test]
fn a_power_cut_below_the_layer_loses_nothing_that_was_flushed() {
    if !in_guest() {
        return;
    }
    let dir = tempfile::tempdir_in("/var").unwrap();
    let disk = Disk::new(dir.path());
    let config = config_with_upper(&disk.point, None, 8 * MIB);
    rustix::fs::sync();
    let mut daemon = start(dir.path());
    let path = daemon.add(&["--config", &config, "--id", "6", "--no-recovery"]);
    for round in 1..4 {
        let recorder = Recorder::new(8 * MIB);
        output_of("blkdiscard", &[text(&path)]);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| recorder.record(&path));
            recorder.wait_for(round * 70);
            // What is flushed from here on is lost.
            recorder.freeze();
            disk.cut();
            recorder.wait_for_writes(40);
            daemon.end("-KILL");
            writer.join().unwrap();
        });
        disk.restore();
        daemon = start(dir.path());
        recorder.check(&path);
    }
    daemon.finish();
    drop(disk);
}

/// Versions of files that are durable before the power goes.
const ENOUGH: usize = 60;
/// Writers, each of which has files of its own, so that flushes meet.
const WRITERS: u64 = 3;

/// Has files made durable on the file system at `point`, cuts the disk off under that, and returns what was durable
/// before.
fn work_until_cut(point: &Path, disk: &Disk) -> Durable {
    let durable = Mutex::new(Durable::new());
    let is_cut = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    let is_durable = |file: u64, version: u64| {
        let mut durable = durable.lock().unwrap();
        if is_cut.load(Ordering::SeqCst) {
            return false;
        }
        durable.insert(file, version);
        sender.send(()).is_ok()
    };
    std::thread::scope(|scope| {
        let write = |turn| records::work(point, (turn, WRITERS), is_durable);
        let writers: Vec<_> = (0..WRITERS).map(|turn| scope.spawn(move || write(turn))).collect();
        (0..ENOUGH).for_each(|_| receiver.recv_timeout(PATIENCE).unwrap());
        let held = durable.lock().unwrap();
        // What is flushed from here on is lost.
        is_cut.store(true, Ordering::SeqCst);
        drop(held);
        disk.cut();
        // A file system that finds its device in an older state may fail them.
        writers.into_iter().for_each(|writer| drop(writer.join().unwrap()));
    });
    durable.into_inner().unwrap()
}

fn keeps_what_was_durable(file_system: FileSystem, cuts: u32) {
    let dir = tempfile::tempdir_in("/var").unwrap();
    let disk = Disk::new(dir.path());
    let config = config_with_upper(&disk.point, None, file_system.size_bytes);
    rustix::fs::sync();
    let mut daemon = start(dir.path());
    let path = daemon.add(&["--config", &config, "--id", "6", "--no-recovery"]);
    file_system.make(&path);
    for round in 0..cuts {
        let point = file_system.mount(&path, dir.path());
        let folder = point.join(format!("round-{round}"));
        fs::create_dir(&folder).unwrap();
        rustix::fs::sync();
        let durable = work_until_cut(&folder, &disk);
        // It goes into the dark as well.
        unmount(&point);
        daemon.end("-KILL");
        disk.restore();
        daemon = start(dir.path());
        let point = file_system.mount(&path, dir.path());
        let ahead = records::check(&point.join(format!("round-{round}")), &durable).unwrap();
        println!("{}: {} files, {ahead} ahead of what was durable", file_system.name, durable.len());
        unmount(&point);
        file_system.check(&path);
    }
    daemon.finish();
    drop(disk);
}

#[test]
fn a_power_cut_below_the_layer_loses_no_file_of_ext4_that_was_durable() {
    if in_guest() {
        keeps_what_was_durable(EXT4, 2);
    }
}

#[test]
fn a_power_cut_below_the_layer_loses_no_file_of_xfs_that_was_durable() {
    if in_guest() {
        keeps_what_was_durable(XFS, 1);
    }
}

#[test]
fn a_power_cut_below_the_layer_loses_no_file_of_btrfs_that_was_durable() {
    if in_guest() {
        keeps_what_was_durable(BTRFS, 1);
    }
}
