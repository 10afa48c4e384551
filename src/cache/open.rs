//! Opening one entry, on the cache's thread.

use std::{
    io,
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use rustix::{fs::OFlags, io::pread};

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
use crate::{reactor::Reactor, source::Origin};

/// Largest blob with an entry: its bitmap takes 8 MiB of memory when all of it is present, and next to nothing for what
/// is not. Image layers are far smaller.
const MOST_BYTES: u64 = 256 << 30;

const PAUSE: Duration = Duration::from_millis(5);

/// The entry of a blob that comes from `origin`: the one that is open, or a new one over what the disk has.
pub(super) async fn open_entry(
    shared: &Arc<Holdings>,
    reactor: &Reactor,
    key: BlobKey,
    origin: &dyn Origin,
) -> Result<Arc<Entry>, CacheError> {
    let size_bytes = origin.size_bytes();
    if size_bytes > MOST_BYTES {
        return Err(CacheError::TooLarge { digest: key.to_string(), size_bytes, limit_bytes: MOST_BYTES });
    }
    if let Some(entry) = find(shared, &key, size_bytes)? {
        return Ok(entry);
    }
    let _passage = shared.doors.enter(shared.locks(&key).window()).await;
    if let Some(entry) = find(shared, &key, size_bytes)? {
        return Ok(entry);
    }
    let folder = shared.blobs_dir.join(key.path());
    let failed = |action| {
        let path = folder.clone();
        move |source| CacheError::Io { path, action, source }
    };
    let patience = shared.config.opening_patience;
    let mut waited = Duration::ZERO;
    while !shared.begin_use(&key).map_err(failed("lock the entry in"))? {
        if waited >= patience {
            return Err(CacheError::Busy(key.to_string()));
        }
        reactor.sleep(PAUSE).await;
        waited += PAUSE;
    }
    let using = Using { shared, key: Some(&key) };
    let (files, ledger) = open_files(shared, reactor, &key, size_bytes, &folder).await?;
    using.keep();
    let proof = origin.proof().cloned();
    let entry = Arc::new(Entry::new(key.clone(), (size_bytes, proof), Arc::clone(shared), files, ledger));
    lock(&shared.entries).insert(key, Arc::downgrade(&entry));
    // It may have been completed by a process that ended before it could look.
    verify::start(&entry);
    Ok(entry)
}

/// The entry that is open.
fn find(shared: &Holdings, key: &BlobKey, size_bytes: u64) -> Result<Option<Arc<Entry>>, CacheError> {
    let open = lock(&shared.entries).get(key).and_then(Weak::upgrade);
    match open {
        Some(entry) if entry.size_bytes != size_bytes => Err(conflict(key, entry.size_bytes, size_bytes)),
        open => Ok(open),
    }
}

async fn open_files(
    shared: &Arc<Holdings>,
    reactor: &Reactor,
    key: &BlobKey,
    size_bytes: u64,
    folder: &Path,
) -> Result<(EntryFiles, Ledger), CacheError> {
    let failed = |action| move |source| CacheError::Io { path: folder.to_owned(), action, source };
    let (opened, fresh) = shared.shelves.make_entry(key).map_err(failed("use the folder"))?;
    let files = EntryFiles::open(opened, shared.locks(key), fresh).map_err(failed("open the files in"))?;
    let maps = wait_for(reactor, shared.config.opening_patience, || files.locks.maps())
        .await
        .map_err(failed("lock the maps in"))?;
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
    let opened = shared.shelves.entry(key).and_then(|entry| entry.file(BOOT_MAP_FILE, OFlags::RDONLY));
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut raw = [0; MAP_SECTOR_BYTES];
    let _ = pread(file, &mut raw, 0)?;
    let header = MapHeader::decode(&raw).ok().filter(|header| header.key == key.hash());
    Ok(header.map(|header| header.size_bytes))
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
