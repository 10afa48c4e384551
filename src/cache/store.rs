//! The cache as its owner sees it: opened once a process, asked for blobs, synced.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::{Arc, Weak, atomic::Ordering},
};

use rustix::fs::OFlags;

use super::{
    CacheConfig, CacheError, CacheMetrics, CachedBlob, evict,
    folder::PrivateFolder,
    holdings::Holdings,
    key::BlobKey,
    late::LateBlob,
    lock::{LOCK_FILE, LockFile},
    open::{known_size, open_entry},
    shelves::Shelves,
};
use crate::{
    reactor::{Reactor, ReactorHandle},
    source::{BOOT_ID_PATH, BlobSource, Origin, Uncached, boot_id},
};

/// Ticks after which what the disk holds is counted again, whatever this process wrote: others may have filled it, and
/// what this one has open is for it to shrink. A minute by default.
const COUNT_TICKS: u32 = 12;

/// Tells backup programs that all of this can be had again (bford.info/cachedir).
const TAG_FILE: &str = "CACHEDIR.TAG";
const CACHE_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n";

/// The cache of one process in one folder. Cloning gives another handle to it.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(super) shared: Arc<Holdings>,
}

impl Cache {
    /// Opens or makes the cache. `handle` leads to a reactor of the cache's own, which serves no I/O of devices: it drives
    /// fetches, writes, syncs and evictions, and may wait for the disk.
    ///
    /// # Errors
    /// When the folder cannot be made or locked, or the kernel does not say which boot this is.
    pub fn open(config: CacheConfig, handle: ReactorHandle) -> Result<Self, CacheError> {
        let failed = |path: &Path, action| {
            let path = path.to_owned();
            move |source| CacheError::Io { path, action, source }
        };
        let dir = config.dir.clone();
        let root = PrivateFolder::open_root(&dir).map_err(failed(&dir, "use the folder"))?;
        write_tag(&root).map_err(failed(&dir.join(TAG_FILE), "write"))?;
        let lock_file = LockFile::open(&root).map_err(failed(&dir.join(LOCK_FILE), "lock ranges of"))?;
        let shelves = Shelves::open(&root).map_err(failed(&dir, "use the folders in"))?;
        let boot = boot_id().map_err(failed(Path::new(BOOT_ID_PATH), "read the boot's id from"))?;
        let shared = Arc::new(Holdings::new(config, handle, shelves, lock_file, boot));
        let tended = Arc::downgrade(&shared);
        shared.handle.spawn(move |reactor| tend(reactor.clone(), tended));
        Ok(Self { shared })
    }

    /// The blob with `digest`, whose bytes come from `origin` where the cache lacks them. Asks nothing of the origin but its
    /// size. The future may be awaited on any executor.
    ///
    /// # Errors
    /// When the entry cannot be used; the blob can then be read by [`Cache::without_entry`].
    pub fn blob(
        &self,
        digest: &str,
        origin: Arc<dyn Origin>,
    ) -> impl Future<Output = Result<Arc<CachedBlob>, CacheError>> + Send + 'static + use<> {
        let key = BlobKey::of(digest, origin.proof().map(|proof| &**proof));
        let shared = Arc::clone(&self.shared);
        async move {
            let key = key?;
            let handle = shared.handle.clone();
            let opening = Arc::clone(&origin);
            let opened = handle
                .call(move |reactor| async move { open_entry(&shared, &reactor, key, &*opening).await });
            let entry = opened.await.map_err(|_| CacheError::Closed)??;
            Ok(Arc::new(CachedBlob::new(entry, origin)))
        }
    }

    /// The blob of `origin` where [`Cache::blob`] has failed for `reason`: it is read from its origin, and through the cache as
    /// soon as that can be had if it may be had later.
    #[must_use]
    pub fn without_entry(
        &self,
        digest: &str,
        origin: Arc<dyn Origin>,
        reason: &CacheError,
    ) -> Arc<dyn BlobSource> {
        match BlobKey::of(digest, origin.proof().map(|proof| &**proof)) {
            Ok(key) if reason.may_pass() => LateBlob::new(&self.shared, key, origin),
            _ => Arc::new(Uncached::new(origin)),
        }
    }

    /// The size in bytes of a blob that has an entry on disk, so that it can be opened without asking its origin.
    ///
    /// # Errors
    /// When the digest is none, or the disk fails.
    pub fn known_size(
        &self,
        digest: &str,
    ) -> impl Future<Output = Result<Option<u64>, CacheError>> + Send + 'static + use<> {
        let key = BlobKey::parse(digest);
        let shared = Arc::clone(&self.shared);
        async move {
            let key = key?;
            let path = shared.blobs_dir.join(key.path());
            let handle = shared.handle.clone();
            let answer = handle.call(move |_| async move { known_size(&shared, &key) }).await;
            let failed = |source| CacheError::Io { path, action: "read the map in", source };
            answer.map_err(|_| CacheError::Closed)?.map_err(failed)
        }
    }

    /// Makes all that was fetched so far survive loss of power. To be called before the process ends; what is lost without
    /// is only what was fetched in the last interval.
    ///
    /// # Errors
    /// When the disk fails or a map cannot be had for some blob, which the others do not suffer from; when the cache's
    /// thread has ended.
    pub fn sync(&self) -> impl Future<Output = Result<(), CacheError>> + Send + 'static + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            let handle = shared.handle.clone();
            let synced = handle.call(move |reactor| async move { sync_all(&shared, &reactor).await });
            synced.await.map_err(|_| CacheError::Closed)?
        }
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &CacheMetrics {
        &self.shared.metrics
    }

    /// Bytes on disk: as of the last count, and what was written since.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.used_bytes.load(Ordering::Relaxed)
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &CacheConfig {
        &self.shared.config
    }
}

/// Syncs, counts and evicts until the cache has gone.
async fn tend(reactor: Reactor, shared: Weak<Holdings>) {
    let Some(interval) = shared.upgrade().map(|shared| shared.config.sync_interval) else { return };
    if let Some(shared) = shared.upgrade() {
        evict::start(&shared);
    }
    loop {
        reactor.sleep(interval).await;
        let Some(shared) = shared.upgrade() else { return };
        let tick = shared.clock.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = sync_all(&shared, &reactor).await {
            tracing::debug!(%error, "the cache is not durable yet");
        }
        if shared.is_full() || tick.is_multiple_of(COUNT_TICKS) {
            evict::start(&shared);
        }
    }
}

async fn sync_all(shared: &Holdings, reactor: &Reactor) -> Result<(), CacheError> {
    let mut outcome = Ok(());
    for entry in shared.open_entries() {
        if let Err(source) = entry.sync(reactor).await {
            let path = shared.blobs_dir.join(entry.key.path());
            outcome = Err(CacheError::Io { path, action: "make durable the data in", source });
        }
        // Only the order of eviction depends on it.
        let _ = entry.files.note_use();
    }
    outcome
}

fn write_tag(root: &PrivateFolder) -> io::Result<()> {
    let mut tag = fs::File::from(root.file(TAG_FILE, OFlags::RDWR | OFlags::CREATE)?);
    if tag.metadata()?.len() == 0 { tag.write_all(CACHE_TAG.as_bytes()) } else { Ok(()) }
}
