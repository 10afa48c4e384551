//! Opening one entry, on the cache's thread.

use std::{io, path::Path, sync::Arc, time::Duration};

use rustix::{
    fs::{Mode, OFlags, open},
    io::pread,
};

use super::{
    CacheError,
    entry::Entry,
    files::{BOOT_MAP_FILE, EntryFiles, OnReactor, wait_for},
    guard::lock,
    holdings::Holdings,
    key::BlobKey,
    ledger::Ledger,
    map_file::{MAP_SECTOR_BYTES, MapHeader},
    medium::Medium,
    verify,
};
use crate::reactor::Reactor;

/// Largest blob with an entry: its bitmap takes 8 MiB of memory when all of it is present, and next to nothing for what
/// is not. Image layers are far smaller.
const MOST_BYTES: u64 = 256 << 30;

/// How long an entry that another process removes or opens is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// The entry of a blob: the one that is open, or a new one over what the disk has.
pub(super) async fn open_entry(
    shared: &Arc<Holdings>,
    reactor: &Reactor,
    key: BlobKey,
    size_bytes: u64,
) -> Result<Arc<Entry>, CacheError> {
    if size_bytes > MOST_BYTES {
        return Err(CacheError::TooLarge { digest: key.to_string(), size_bytes, limit_bytes: MOST_BYTES });
    }
    let _opening = shared.opening.lock().await;
    let open = lock(&shared.entries).get(&key).and_then(std::sync::Weak::upgrade);
    if let Some(entry) = open {
        if entry.size_bytes != size_bytes {
            return Err(conflict(&key, entry.size_bytes, size_bytes));
        }
        return Ok(entry);
    }
    let folder = shared.blobs_dir.join(key.path());
    let failed = |action| {
        let path = folder.clone();
        move |source| CacheError::Io { path, action, source }
    };
    let mut waited = Duration::ZERO;
    while !shared.begin_use(&key).map_err(failed("lock the entry in"))? {
        if waited >= PATIENCE {
            return Err(CacheError::Busy(key.to_string()));
        }
        reactor.sleep(PAUSE).await;
        waited += PAUSE;
    }
    let using = Using { shared, key: Some(&key) };
    let (files, ledger) = open_files(shared, reactor, &key, size_bytes, &folder).await?;
    using.keep();
    let entry = Arc::new(Entry::new(key.clone(), size_bytes, Arc::clone(shared), files, ledger));
    lock(&shared.entries).insert(key, Arc::downgrade(&entry));
    // It may have been completed by a process that ended before it could look.
    verify::start(&entry);
    Ok(entry)
}

async fn open_files(
    shared: &Arc<Holdings>,
    reactor: &Reactor,
    key: &BlobKey,
    size_bytes: u64,
    folder: &Path,
) -> Result<(EntryFiles, Ledger), CacheError> {
    let failed = |action| move |source| CacheError::Io { path: folder.to_owned(), action, source };
    let fresh = make_folder(folder).map_err(failed("make the folder"))?;
    let files = EntryFiles::open(folder, shared.locks(key), fresh).map_err(failed("open the files in"))?;
    let maps =
        wait_for(reactor, PATIENCE, || files.locks.maps()).await.map_err(failed("lock the maps in"))?;
    let Some(maps) = maps else { return Err(CacheError::Busy(key.to_string())) };
    let medium = OnReactor { files: &files, reactor };
    let on_disk = medium.data_len().map_err(failed("read the size of the data in"))?;
    if on_disk != 0 && on_disk != size_bytes && !files.locks.own_use().map_err(failed("lock the entry in"))? {
        return Err(conflict(key, on_disk, size_bytes));
    }
    let ledger = Ledger::open(&medium, size_bytes, key.hash(), shared.boot).await;
    let shares = files.locks.share_use().map_err(failed("lock the entry in"))?;
    drop(maps);
    let ledger = ledger.map_err(failed("read the maps in"))?;
    if !shares {
        return Err(CacheError::Busy(key.to_string()));
    }
    if let Err(error) = files.note_use() {
        tracing::debug!(%error, blob = %key, "cannot note the use of a cache entry");
    }
    Ok((files, ledger))
}

/// The size that an entry on disk was made with, so that its blob can be opened without asking its origin.
pub(super) fn known_size(shared: &Holdings, key: &BlobKey) -> io::Result<Option<u64>> {
    let path = shared.blobs_dir.join(key.path()).join(BOOT_MAP_FILE);
    let file = match open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut raw = [0; MAP_SECTOR_BYTES];
    let _ = pread(file, &mut raw, 0)?;
    let header = MapHeader::decode(&raw).ok().filter(|header| header.key == key.hash());
    Ok(header.map(|header| header.size_bytes))
}

/// Makes the folder and those above it; whether it was not there before.
fn make_folder(folder: &Path) -> io::Result<bool> {
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::create_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn conflict(key: &BlobKey, open_bytes: u64, size_bytes: u64) -> CacheError {
    CacheError::SizeConflict { digest: key.to_string(), open_bytes, size_bytes }
}

/// Ends the use of a blob unless an entry has taken it over.
struct Using<'a> {
    shared: &'a Holdings,
    key: Option<&'a BlobKey>,
}

impl Using<'_> {
    fn keep(mut self) {
        self.key = None;
    }
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.shared.end_use(key);
        }
    }
}
