//! What a daemon holds of its machine: nothing of it may grow from one process to the next.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{
    frame::{PATIENCE, pause},
    support::daemon::Daemon,
};

/// Threads that come and go with the work of the moment, and are bounded by themselves: the kernel's workers of a ring, those that
/// wait for one command of the driver or for a file, and those of the runtimes.
const PASSING_THREADS: [&str; 4] = ["iou-wrk-", "ublk-command", "upper-file", "stratabd-"];

/// Where everything that it leaves behind may lie, beside its own state directory.
const FOLDERS: [&str; 3] = ["/run/stratabd-journals", "/sys/class/ublk-char", "/dev"];

/// How many there are of each kind: of descriptors by what they are open on, of threads by name, of locks, of files.
#[derive(Debug)]
pub(crate) struct Holdings(BTreeMap<String, usize>);

impl Holdings {
    /// Those of the daemon with its state in `dir`, and those that are there of all daemons of this machine.
    pub(crate) fn of(daemon: &Daemon, dir: &Path) -> Self {
        let mut held = BTreeMap::new();
        let mut add = |kind: String| *held.entry(kind).or_insert(0) += 1;
        for descriptor in entries(&process(daemon).join("fd")) {
            // One that is closed by now is none.
            if let Ok(target) = fs::read_link(descriptor) {
                let target = target.to_string_lossy().into_owned();
                add(format!("descriptor {}", target.split(":[").next().unwrap_or_default()));
            }
        }
        for thread in entries(&process(daemon).join("task")) {
            let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
            if !PASSING_THREADS.iter().any(|passing| name.starts_with(passing)) {
                add(format!("thread {}", name.trim()));
            }
        }
        (0..cache_pins(dir)).for_each(|_| add("pin of the cache".to_owned()));
        // Programs that use devices have some of the POSIX kind, which this one has not.
        for lock in locks().iter().filter(|lock| lock.kind != "POSIX") {
            add(format!("lock {}", lock.kind));
        }
        let mut folders = vec![dir.join("state"), dir.join("cache")];
        folders.extend(FOLDERS.map(Into::into));
        while let Some(folder) = folders.pop() {
            for entry in entries(&folder) {
                add(format!("entry of {}", folder.display()));
                folders.extend((!entry.is_symlink() && entry.is_dir()).then_some(entry));
            }
        }
        Self(held)
    }

    /// Waits until the daemon, another process by now, holds no more than these.
    ///
    /// # Panics
    /// When it still does after a minute.
    pub(crate) fn check(&self, daemon: &Daemon, dir: &Path) {
        let began = Instant::now();
        loop {
            let more = Self::of(daemon, dir).more_than(self);
            if more.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "more than before: {more:?}, while:\n{}", waits(daemon));
            pause();
        }
    }

    fn more_than(&self, other: &Self) -> Vec<String> {
        let more = self.0.iter().filter(|(kind, count)| **count > *other.0.get(*kind).unwrap_or(&0));
        more.map(|(kind, count)| format!("{count} x {kind}")).collect()
    }
}

/// How many blobs the cache below `dir` may not remove, for a process has them open: each is a range of its lock file that is locked.
pub(crate) fn cache_pins(dir: &Path) -> usize {
    let Ok(file) = fs::metadata(dir.join("cache/lock")) else { return 0 };
    locks().iter().filter(|lock| lock.inode == file.ino()).count()
}

/// A lock that somebody has.
struct Lock {
    kind: String,
    inode: u64,
}

fn locks() -> Vec<Lock> {
    let text = fs::read_to_string("/proc/locks").unwrap();
    // "1: OFDLCK ADVISORY READ -1 00:2f:1234 0 EOF", and "1: -> ..." of one that is waited for.
    let lock = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let inode = fields.get(5)?.rsplit(':').next()?.parse().ok()?;
        let kind = fields.get(1).filter(|kind| **kind != "->")?;
        Some(Lock { kind: kind.to_string(), inode })
    };
    text.lines().filter_map(lock).collect()
}

fn process(daemon: &Daemon) -> PathBuf {
    format!("/proc/{}", daemon.pid()).into()
}

/// What each of its threads waits for in the kernel.
fn waits(daemon: &Daemon) -> String {
    let mut waits = String::new();
    for thread in entries(&process(daemon).join("task")) {
        let [name, stack] =
            ["comm", "stack"].map(|of| fs::read_to_string(thread.join(of)).unwrap_or_default());
        waits += &format!("{name}{stack}");
    }
    waits
}

/// What is in a folder, as far as there is one.
fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
