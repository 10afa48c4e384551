//! The files of one entry, as the ledger's medium on the cache's thread.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    fs::{
        Advice, FallocateFlags, OFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW, fadvise, fallocate, fstat,
        ftruncate, futimens, seek,
    },
    io::{Errno, pread, pwrite},
};

use super::{
    folder::PrivateFolder,
    lock::{BlobLocks, RangeLock},
    map_file::{MAP_SECTOR_BYTES, MapKind, RawSector},
    medium::Medium,
};
use crate::{block::ByteRange, reactor::Reactor, source::LocalFile};

/// Names of an entry's files in its folder.
pub(super) const DATA_FILE: &str = "data";
pub(super) const BOOT_MAP_FILE: &str = "map";
pub(super) const DURABLE_MAP_FILE: &str = "durable";

/// How long the lock on the maps is waited for. Its holder does a few small writes; only a stopped or stuck process
/// keeps it longer, and nothing is lost by going on without the record.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Pauses between tries for a lock grow up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

const SECTOR_BYTES: u64 = MAP_SECTOR_BYTES as u64;

/// Sectors of a map that are read together.
const SECTORS_AT_ONCE: usize = 128;

/// Open files of an entry.
#[derive(Debug)]
pub(super) struct EntryFiles {
    pub(super) data: LocalFile,
    boot_map: Arc<OwnedFd>,
    durable_map: Arc<OwnedFd>,
    folder: PrivateFolder,
    /// Whether the names of the files are durable; nothing in the durable map may be before them.
    named: AtomicBool,
    fresh: bool,
    pub(super) locks: BlobLocks,
}

impl EntryFiles {
    /// Opens the files in `folder`, which exists, and makes those that lack; `fresh` if the folder was made just now.
    pub(super) fn open(folder: PrivateFolder, locks: BlobLocks, fresh: bool) -> io::Result<Self> {
        let file = |name: &str| folder.file(name, OFlags::RDWR | OFlags::CREATE);
        let data = file(DATA_FILE)?;
        // Reads are scattered, and the pages of what lies beyond a read may not even be present. Advice may be refused.
        let _ = fadvise(&data, 0, None, Advice::Random);
        Ok(Self {
            data: LocalFile::new(data),
            boot_map: Arc::new(file(BOOT_MAP_FILE)?),
            durable_map: Arc::new(file(DURABLE_MAP_FILE)?),
            folder,
            named: AtomicBool::new(false),
            fresh,
            locks,
        })
    }

    /// Notes on disk that the entry is in use now, for the order of eviction.
    pub(super) fn note_use(&self) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        Ok(futimens(&*self.boot_map, &Timestamps { last_access: now, last_modification: now })?)
    }

    /// Bytes that the data file takes on disk.
    pub(super) fn used_bytes(&self) -> io::Result<u64> {
        let stat = fstat(&**self.data.file())?;
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512))
    }

    fn map(&self, kind: MapKind) -> &Arc<OwnedFd> {
        match kind {
            MapKind::Boot => &self.boot_map,
            MapKind::Durable => &self.durable_map,
        }
    }
}

/// An entry's files, with the reactor that waits for them.
pub(super) struct OnReactor<'a> {
    pub(super) files: &'a EntryFiles,
    pub(super) reactor: &'a Reactor,
}

/// Tries for a lock until it is had or `patience` has run out.
pub(super) async fn wait_for(
    reactor: &Reactor,
    patience: Duration,
    mut attempt: impl FnMut() -> io::Result<Option<RangeLock>>,
) -> io::Result<Option<RangeLock>> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let held = attempt()?;
        if held.is_some() || began.elapsed() >= patience {
            return Ok(held);
        }
        reactor.sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

impl Medium for OnReactor<'_> {
    async fn locked<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let held = wait_for(self.reactor, LOCK_PATIENCE, || self.files.locks.maps()).await;
        match held {
            Ok(Some(held)) => {
                let done = act();
                drop(held);
                Some(done)
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "cannot lock a presence map");
                None
            }
        }
    }

    fn is_fresh(&self) -> bool {
        self.files.fresh
    }

    fn is_alone(&self) -> bool {
        self.files.locks.own_use().unwrap_or(false)
    }

    fn data_len(&self) -> io::Result<u64> {
        u64::try_from(fstat(&**self.files.data.file())?.st_size).map_err(io::Error::other)
    }

    fn set_data_len(&self, size_bytes: u64) -> io::Result<()> {
        let data = self.files.data.file();
        ftruncate(&**data, 0)?;
        Ok(ftruncate(&**data, size_bytes)?)
    }

    async fn write_data(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.reactor.write_all_at(self.files.data.file(), offset, bytes).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        if !self.files.named.load(Ordering::Relaxed) {
            self.reactor.sync_data(self.files.folder.descriptor()).await?;
            self.files.named.store(true, Ordering::Relaxed);
        }
        self.reactor.sync_data(self.files.data.file()).await
    }

    fn punch_data(&self, range: ByteRange) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&**self.files.data.file(), flags, range.start(), range.len())?)
    }

    fn next_sectors(&self, kind: MapKind, sector: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
        let map = self.files.map(kind).as_fd();
        // A map is as sparse as its blob's data.
        let first = match seek(map, SeekFrom::Data(sector * SECTOR_BYTES)) {
            Ok(offset) => offset / SECTOR_BYTES,
            Err(Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut raw = vec![0; SECTORS_AT_ONCE * MAP_SECTOR_BYTES];
        let count = pread(map, &mut raw, first * SECTOR_BYTES)?;
        raw.truncate(count - count % MAP_SECTOR_BYTES);
        Ok((!raw.is_empty()).then_some((first, raw)))
    }

    fn read_sector(&self, kind: MapKind, sector: u64) -> io::Result<RawSector> {
        let mut raw = [0; MAP_SECTOR_BYTES];
        // A short count leaves zeroes, which no CRC fits.
        let _ = pread(self.files.map(kind).as_fd(), &mut raw, sector * SECTOR_BYTES)?;
        Ok(raw)
    }

    fn write_sector(&self, kind: MapKind, sector: u64, raw: &RawSector) -> io::Result<()> {
        let count = pwrite(self.files.map(kind).as_fd(), raw, sector * SECTOR_BYTES)?;
        if count == raw.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn truncate_map(&self, kind: MapKind) -> io::Result<()> {
        Ok(ftruncate(&**self.files.map(kind), 0)?)
    }

    async fn sync_map(&self, kind: MapKind) -> io::Result<()> {
        self.reactor.sync_data(self.files.map(kind)).await
    }
}
