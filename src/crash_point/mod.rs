//! Places at which a test has the process die, as `kill -9` would end it just there, and commands of the driver that it has hang. A
//! release build has none of them.

use std::{env, sync::LazyLock};

/// Where the process may be told to die, by the name that `STRATABD_DIE_AT` gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// A device is recorded, and nothing of it is made.
    AddRecorded,
    /// The driver has made it.
    AddMade,
    /// The driver knows its shape.
    AddShaped,
    /// All of its queues are open, in an attach or a take-over.
    QueuesOpen,
    /// The first of its queues has been told to fetch.
    QueueFetches,
    /// The driver has all of its tags, and no queue knows yet where requests are described.
    QueuesFetched,
    /// Its disk is there.
    AddStarted,
    /// It is served, and its record does not say so yet.
    AddUnnoted,
    /// A device that is removed has no disk any more.
    RemovalStopped,
    /// The driver has nothing of it any more, and the record is still there.
    RemovalDeleted,
    /// A layer has grown, and its device has not.
    ResizeGrown,
    /// The device has grown, and its record does not say so.
    ResizeTold,
    /// A layer is sealed, and the configuration does not name the next one.
    SnapshotSealed,
    /// The configuration names the next layer, and the device does not write there yet.
    SnapshotNamed,
    /// The folder of a fork is there, and no device.
    ForkPrepared,
    /// The mark of a merged layer is there, and no file.
    MergeBegun,
    /// The file is whole, and nobody names it.
    MergeFolded,
    /// The configuration names it, its mark is still there, and the device does not read it yet.
    MergeNamed,
    /// It has taken the place of the layers of which it was made, which are still there.
    MergeUnmarked,
    /// What was read for the compaction of a log is written again, and the log does not count it.
    CompactionWritten,
    /// The log counts it.
    CompactionCounted,
    /// An entry of the cache is where nobody looks, and not removed.
    EvictionDiscarded,
    /// The cache has durably forgotten some regions of a blob, and has them on the disk.
    EvictionForgotten,
    /// The first of them is a hole.
    EvictionPunched,
    /// The image of a device that waits is open, and nothing else has happened.
    TakeOverOpened,
    /// A device that waited is this process's.
    TakeOverBegun,
    /// All of its queues have been told to fetch.
    TakeOverFetching,
    /// Its requests come.
    TakeOverEnded,
}

impl CrashPoint {
    /// Dies, if that is what the environment wants.
    #[inline]
    pub fn reach(self) {
        #[cfg(debug_assertions)]
        die::if_wanted(self);
    }
}

/// Whether the driver is never to answer the command of this name, which is the one that `STRATABD_HANG_AT` names.
#[inline]
#[must_use]
pub fn hangs(command: &str) -> bool {
    static WANTED: LazyLock<Option<String>> = LazyLock::new(|| env::var("STRATABD_HANG_AT").ok());
    cfg!(debug_assertions) && WANTED.as_deref() == Some(command)
}

#[cfg(debug_assertions)]
mod die {
    use std::{env, sync::LazyLock};

    use rustix::process::{Signal, getpid, kill_process};

    static WANTED: LazyLock<Option<String>> = LazyLock::new(|| env::var("STRATABD_DIE_AT").ok());

    pub(super) fn if_wanted(point: super::CrashPoint) {
        if WANTED.as_ref().is_some_and(|wanted| *wanted == format!("{point:?}")) {
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt,
        process::{Command, Stdio},
    };

    use super::*;

    /// Runs this test again, in a process that is to die at the place of that name.
    fn dies_of(name: &str) -> Option<i32> {
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", "crash_point::tests::a_process_dies_where_it_is_told_to_and_nowhere_else"]);
        child.env("STRATABD_DIE_AT", name).stdout(Stdio::null()).stderr(Stdio::null());
        child.status().unwrap().signal()
    }

    #[test]
    fn a_process_dies_where_it_is_told_to_and_nowhere_else() {
        CrashPoint::AddMade.reach();
        if env::var_os("STRATABD_DIE_AT").is_none() {
            assert_eq!(dies_of("AddMade"), Some(9));
            assert_eq!(dies_of("AddShaped"), None);
        }
    }
}
