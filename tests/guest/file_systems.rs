//! File systems on writable devices: random operations on their files, with discards, a snapshot on the way, and what is
//! there when the device has gone and come again.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::mpsc,
};

use crate::{
    daemon::start,
    devices::content,
    exerciser::Exerciser,
    frame::{in_guest, output_of},
    support::{
        daemon::Daemon,
        file_system::{BTRFS, EXT4, FileSystem, XFS, unmount},
    },
    writable::{config_with_upper, text},
};

/// What a kind of writable layer is called, and what makes a new one of so many bytes in a folder and returns the
/// configuration that has it.
type Kind = (&'static str, fn(&Path, u64) -> String);

const KINDS: [Kind; 1] = [("log-structured", |dir, size_bytes| config_with_upper(dir, None, size_bytes))];

/// The number that the environment gives the run.
fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Files that are worked on at the same time.
const FILES: u64 = 2;

/// Works on the files of the mounted file system, and has a snapshot taken and all that is free discarded under way.
/// Returns the files with what must be in them.
fn exercise(point: &Path, snapshot: impl FnOnce()) -> Vec<(PathBuf, Vec<u8>)> {
    let quarter = setting("STRATABD_EXERCISE_OPERATIONS", 400).div_ceil(4);
    let seed = setting("STRATABD_EXERCISE_SEED", 1);
    let (reached, quarters) = mpsc::channel();
    let work = |number: u64, reached: mpsc::Sender<()>| {
        let path = point.join(format!("file-{number}"));
        let mut exerciser = Exerciser::create(&path, seed * 1000 + number);
        for _ in 0..4 {
            (0..quarter).for_each(|_| exerciser.step());
            let _ = reached.send(());
        }
        (path, exerciser.finish())
    };
    let wait = || (0..FILES).for_each(|_| quarters.recv().unwrap());
    std::thread::scope(|scope| {
        let start = |number| {
            let reached = reached.clone();
            scope.spawn(move || work(number, reached))
        };
        let workers: Vec<_> = (0..FILES).map(start).collect();
        // Without it the wait ends when no worker is left.
        drop(reached);
        wait();
        wait();
        snapshot();
        wait();
        output_of("fstrim", &[text(point)]);
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    })
}

/// The device must have a file system without a fault, and in it these files.
fn check(file_system: FileSystem, device: &Path, dir: &Path, files: &[(PathBuf, Vec<u8>)]) {
    file_system.check(device);
    let point = file_system.mount(device, dir);
    for (path, expected) in files {
        assert!(&content(path) == expected, "{} has changed", path.display());
    }
    unmount(&point);
}

fn keeps_all_files(file_system: FileSystem) {
    for (kind, make_layer) in KINDS {
        println!("{} on a {kind} layer", file_system.name);
        let dir = tempfile::tempdir_in("/var").unwrap();
        let mut daemon = start(dir.path());
        let config = make_layer(dir.path(), file_system.size_bytes);
        let add = |daemon: &Daemon| daemon.add(&["--config", &config, "--id", "8", "--queues", "2"]);
        let path = add(&daemon);
        file_system.make(&path);
        let point = file_system.mount(&path, dir.path());
        let next = dir.path().join("next");
        fs::create_dir(&next).unwrap();
        let files = exercise(&point, || {
            daemon.json(&["snapshot", text(&path), "--to", text(&next)]);
        });
        unmount(&point);
        check(file_system, &path, dir.path(), &files);
        daemon.json(&["del", text(&path)]);
        check(file_system, &add(&daemon), dir.path(), &files);
        daemon.end("-KILL");
        daemon = start(dir.path());
        check(file_system, &path, dir.path(), &files);
        daemon.finish();
    }
}

#[test]
fn ext4_keeps_all_files_under_random_operations() {
    if in_guest() {
        keeps_all_files(EXT4);
    }
}

#[test]
fn xfs_keeps_all_files_under_random_operations() {
    if in_guest() {
        keeps_all_files(XFS);
    }
}

#[test]
fn btrfs_keeps_all_files_under_random_operations() {
    if in_guest() {
        keeps_all_files(BTRFS);
    }
}
