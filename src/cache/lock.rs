//! Locks between processes: open-file-description locks on ranges of one file that is never removed.
//!
//! They end with their holder, however it dies. Each blob has a window of 2^32 bytes in the file, placed by its key;
//! two blobs whose windows coincide only wait for one another without need. The bytes of the lock file do not exist.
//!
//! The kernel does not count the holders of a lock within one process: the first that lets go ends it for all. So
//! those who use a window are counted by [`Holdings`](super::holdings::Holdings), and the maps of a window have one
//! holder in this process. Fetches need no such care: a lock that ends early costs at most a second fetch.

use std::{
    collections::HashSet,
    io,
    ops::Range,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use rustix::fs::OFlags;

use super::{folder::PrivateFolder, guard::lock};

/// Its name in the cache's folder.
pub(super) const LOCK_FILE: &str = "lock";

/// Held for the moment in which a map is changed or an entry is opened or removed.
const MAPS: Range<u64> = 0..1;
/// Held shared by each process that has the blob open, exclusively by the one that punches or removes.
const USE: Range<u64> = 1..2;
/// First of the bytes that stand for grains being fetched.
const FETCHES: u64 = 16;

/// The lock file of one cache, opened by one process.
#[derive(Debug)]
pub(super) struct LockFile {
    file: OwnedFd,
    /// Windows whose maps somebody in this process holds.
    mapping: Mutex<HashSet<u64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Shared,
    Exclusive,
    Unlocked,
}

impl LockFile {
    /// Opens or makes the file, and finds out whether the file system has such locks.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn open(folder: &PrivateFolder) -> io::Result<Self> {
        let file = folder.file(LOCK_FILE, OFlags::RDWR | OFlags::CREATE)?;
        let file = Self { file, mapping: Mutex::default() };
        // A byte of its own, past every window, that no blob uses.
        let probe = (1 << 63) - 2..(1 << 63) - 1;
        file.set(&probe, Kind::Shared)?;
        file.set(&probe, Kind::Unlocked)?;
        Ok(file)
    }

    /// Returns whether the lock was had; it is not waited for.
    fn set(&self, range: &Range<u64>, kind: Kind) -> io::Result<bool> {
        let kind = match kind {
            Kind::Shared => libc::F_RDLCK,
            Kind::Exclusive => libc::F_WRLCK,
            Kind::Unlocked => libc::F_UNLCK,
        };
        let request = libc::flock {
            l_type: i16::try_from(kind).map_err(io::Error::other)?,
            l_whence: i16::try_from(libc::SEEK_SET).map_err(io::Error::other)?,
            l_start: i64::try_from(range.start).map_err(io::Error::other)?,
            l_len: i64::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?,
            l_pid: 0,
        };
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&request)) {
            Ok(_) => Ok(true),
            Err(nix::Error::EAGAIN | nix::Error::EACCES | nix::Error::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// The locks of one blob. Holders in the same process share them: they are told apart elsewhere.
#[derive(Debug, Clone)]
pub(super) struct BlobLocks {
    file: Arc<LockFile>,
    base: u64,
}

/// A lock that ends when this is dropped.
#[derive(Debug)]
pub(super) struct RangeLock {
    locks: BlobLocks,
    range: Range<u64>,
}

impl BlobLocks {
    /// The locks of the blob with this hashed key.
    pub(super) fn new(file: Arc<LockFile>, key: &[u8; 32]) -> Self {
        let start = key.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        Self { file, base: u64::from(start >> 1) << 32 }
    }

    /// Where the blob's window begins: what tells apart whose locks meet.
    pub(super) fn window(&self) -> u64 {
        self.base
    }

    /// Tries for the lock on the maps.
    pub(super) fn maps(&self) -> io::Result<Option<RangeLock>> {
        if !lock(&self.file.mapping).insert(self.base) {
            return Ok(None);
        }
        let held = self.hold(MAPS);
        if !matches!(held, Ok(Some(_))) {
            lock(&self.file.mapping).remove(&self.base);
        }
        held
    }

    /// Tries to be counted among the users of the blob; fails while somebody removes it.
    pub(super) fn share_use(&self) -> io::Result<bool> {
        self.file.set(&self.place(&USE), Kind::Shared)
    }

    /// Tries to become the only user; a refusal leaves things as they were.
    pub(super) fn own_use(&self) -> io::Result<bool> {
        self.file.set(&self.place(&USE), Kind::Exclusive)
    }

    /// Ceases to be a user.
    pub(super) fn end_use(&self) {
        self.release(&USE);
    }

    /// Tries to be the one that fetches `grains`.
    pub(super) fn fetch(&self, grains: &Range<u64>) -> io::Result<Option<RangeLock>> {
        self.hold(FETCHES + grains.start..FETCHES + grains.end)
    }

    fn hold(&self, range: Range<u64>) -> io::Result<Option<RangeLock>> {
        let had = self.file.set(&self.place(&range), Kind::Exclusive)?;
        Ok(had.then(|| RangeLock { locks: self.clone(), range }))
    }

    fn release(&self, range: &Range<u64>) {
        if let Err(error) = self.file.set(&self.place(range), Kind::Unlocked) {
            tracing::error!(%error, "cannot release a lock of the cache; it ends with this process");
        }
    }

    fn place(&self, range: &Range<u64>) -> Range<u64> {
        self.base + range.start..self.base + range.end
    }
}

impl Drop for RangeLock {
    fn drop(&mut self) {
        self.locks.release(&self.range);
        if self.range == MAPS {
            lock(&self.locks.file.mapping).remove(&self.locks.base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(dir: &std::path::Path) -> [BlobLocks; 2] {
        let folder = PrivateFolder::open_root(dir).unwrap();
        [0, 1].map(|_| BlobLocks::new(Arc::new(LockFile::open(&folder).unwrap()), &[255; 32]))
    }

    #[test]
    fn overlapping_fetches_of_two_openers_exclude_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = two(dir.path());
        let held = one.fetch(&(10..20)).unwrap().unwrap();
        assert!(two.fetch(&(19..30)).unwrap().is_none());
        assert!(two.fetch(&(20..30)).unwrap().is_some());
        drop(held);
        assert!(two.fetch(&(0..u64::from(u32::MAX) - 16)).unwrap().is_some());
    }

    #[test]
    fn the_maps_of_a_window_have_one_holder_in_a_process_too() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = two(dir.path());
        let held = one.maps().unwrap().unwrap();
        assert!(one.clone().maps().unwrap().is_none());
        assert!(two.maps().unwrap().is_none());
        drop(held);
        assert!(two.maps().unwrap().is_some() && one.maps().unwrap().is_some());
    }

    #[test]
    fn a_blob_with_a_second_user_cannot_be_owned_and_the_refusal_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = two(dir.path());
        assert!(one.share_use().unwrap() && two.share_use().unwrap());
        assert!(!one.own_use().unwrap());
        two.end_use();
        assert!(one.own_use().unwrap());
        assert!(!two.share_use().unwrap());
        drop(one);
        assert!(two.own_use().unwrap(), "the end of the opener releases all");
    }
}
