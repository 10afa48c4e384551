//! What all entries of a cache have in common.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    CacheConfig, CacheMetrics,
    budget::Budget,
    doors::Doors,
    entry::Entry,
    guard::lock,
    key::BlobKey,
    lock::{BlobLocks, LockFile},
    shelves::Shelves,
};
use crate::reactor::ReactorHandle;

/// A process that has written this share of the limit counts again what all processes use.
const COUNT_SHARE: u64 = 16;

#[derive(Debug)]
pub(super) struct Holdings {
    pub(super) config: CacheConfig,
    /// Where the entries lie, for messages.
    pub(super) blobs_dir: PathBuf,
    pub(super) shelves: Shelves,
    pub(super) handle: ReactorHandle,
    pub(super) metrics: CacheMetrics,
    pub(super) budget: Arc<Budget>,
    pub(super) lock_file: Arc<LockFile>,
    pub(super) boot: [u8; 16],
    pub(super) entries: Mutex<HashMap<BlobKey, Weak<Entry>>>,
    /// One for each window of the lock file: who opens an entry and who removes it do not meet in this process.
    pub(super) doors: Doors,
    /// How many open entries use each window of the lock file: blobs whose windows coincide, and an old entry of a blob
    /// that goes while a new one comes. The lock is let go with the last of them.
    uses: Mutex<HashMap<u64, usize>>,
    /// Counts syncs: the clock of what was used when.
    pub(super) clock: AtomicU32,
    /// Bytes on disk as of the last count, and written since.
    pub(super) used_bytes: AtomicU64,
    /// Bytes on disk as of the last count.
    pub(super) counted_bytes: AtomicU64,
    pub(super) evicting: AtomicBool,
    disk: Mutex<DiskState>,
}

#[derive(Debug, Default)]
struct DiskState {
    /// Not written to before then.
    rests_until: Option<Instant>,
}

impl Holdings {
    pub(super) fn new(
        config: CacheConfig,
        handle: ReactorHandle,
        shelves: Shelves,
        lock_file: LockFile,
        boot: [u8; 16],
    ) -> Self {
        Self {
            blobs_dir: config.dir.join("blobs"),
            budget: Budget::new(config.fetches, config.flight_bytes),
            config,
            handle,
            shelves,
            metrics: CacheMetrics::default(),
            lock_file: Arc::new(lock_file),
            boot,
            entries: Mutex::default(),
            doors: Doors::default(),
            uses: Mutex::default(),
            clock: AtomicU32::new(1),
            used_bytes: AtomicU64::new(0),
            counted_bytes: AtomicU64::new(0),
            evicting: AtomicBool::new(false),
            disk: Mutex::default(),
        }
    }

    pub(super) fn locks(&self, key: &BlobKey) -> BlobLocks {
        BlobLocks::new(Arc::clone(&self.lock_file), &key.hash())
    }

    /// Counts this process among the users of the blob.
    pub(super) fn begin_use(&self, key: &BlobKey) -> io::Result<bool> {
        let locks = self.locks(key);
        let mut uses = lock(&self.uses);
        if !uses.contains_key(&locks.window()) && !locks.share_use()? {
            return Ok(false);
        }
        *uses.entry(locks.window()).or_default() += 1;
        Ok(true)
    }

    pub(super) fn end_use(&self, key: &BlobKey) {
        let locks = self.locks(key);
        let mut uses = lock(&self.uses);
        let Some(count) = uses.get_mut(&locks.window()) else { return };
        *count -= 1;
        if *count == 0 {
            uses.remove(&locks.window());
            locks.end_use();
        }
    }

    /// Whether no entry of this process uses the blob, or another with the same window.
    pub(super) fn is_unused_here(&self, key: &BlobKey) -> bool {
        !lock(&self.uses).contains_key(&self.locks(key).window())
    }

    /// The entries that are open, and forgets those that have gone.
    pub(super) fn open_entries(&self) -> Vec<Arc<Entry>> {
        let mut entries = lock(&self.entries);
        entries.retain(|_, entry| entry.strong_count() > 0);
        entries.values().filter_map(Weak::upgrade).collect()
    }

    /// Whether the disk may be written to now.
    pub(super) fn disk_works(&self) -> bool {
        lock(&self.disk).rests_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Whether what is fetched now can be kept. While it cannot, nothing is fetched but what somebody reads.
    pub(super) fn can_keep(&self) -> bool {
        self.disk_works() && !self.is_full()
    }

    /// The disk failed or is full: reads go on uncached, and it is tried again later.
    pub(super) fn disk_failed(&self, key: &BlobKey, error: &io::Error) {
        self.metrics.write_errors.inc();
        let mut disk = lock(&self.disk);
        if disk.rests_until.is_none() {
            tracing::warn!(%error, blob = %key, "the cache cannot be written; reading on uncached");
        }
        disk.rests_until = Instant::now().checked_add(self.config.disk_rest);
    }

    /// The disk took a write.
    pub(super) fn disk_worked(&self) {
        if lock(&self.disk).rests_until.take().is_some() {
            tracing::info!("the cache can be written again");
        }
    }

    /// Whether enough was written since the last count that another process may have reached the limit with it.
    pub(super) fn is_count_old(&self) -> bool {
        let written = self.used_bytes.load(Ordering::Relaxed);
        let written = written.saturating_sub(self.counted_bytes.load(Ordering::Relaxed));
        written >= self.config.limit_bytes / COUNT_SHARE
    }

    /// Whether the limit is reached.
    pub(super) fn is_full(&self) -> bool {
        self.used_bytes.load(Ordering::Relaxed) >= self.config.limit_bytes
    }
}
