//! The files of a writable layer as they are on a real file system.

use std::{
    ffi::OsString,
    fmt,
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{Advice, FallocateFlags, Gid, Mode, SeekFrom, Uid, fadvise, seek},
    io::Errno,
    process::{Resource, getrlimit},
};

use super::{
    UpperError,
    medium::{FileId, Medium},
};
use crate::{
    block::ByteRange,
    reactor::{Reactor, blocking, waiting_for},
    source::{FileLock, LocalFile, Readiness},
};

/// One trip through the ring carries at most this much: the largest request of a ublk device, so that one trip does.
const PIECE_BYTES: usize = 1 << 20;

/// The name of a thread that replaces a file: what that takes may wait for the disk, and the ring lacks some of it.
const FILE_THREAD: &str = "upper-file";

/// What a successor's name ends with until it has the name of the file that it replaces.
const SUCCESSOR_SUFFIX: &str = ".successor";

/// Permissions of what is made here: it holds what somebody wrote.
const PRIVATE_MODE: u32 = 0o600;

/// A regular file, open for reading and writing.
#[derive(Debug)]
pub struct LayerFile {
    /// Of a successor, the one that it may come to have.
    path: PathBuf,
    /// What that means where it is a symbolic link, which stays one when the file is replaced.
    place: PathBuf,
    file: LocalFile,
    block_bytes: u64,
    /// Whether it is a successor that has not got its name.
    is_waiting: AtomicBool,
    /// The folder of a successor: when the new name is to be made durable, it may be too late to open it.
    folder: Option<Arc<OwnedFd>>,
}

impl LayerFile {
    /// Opens the file at `path`. May wait for the disk.
    ///
    /// # Errors
    /// [`UpperError::Io`], also where it is no regular file.
    pub fn open(path: &Path) -> Result<Self, UpperError> {
        Self::with(path, OpenOptions::new().read(true).write(true))
            .map_err(|error| failed(path, "open", error))
    }

    /// Makes an empty file at `path`, its owner's alone, where there must be none. May wait for the disk.
    ///
    /// # Errors
    /// [`UpperError::Io`].
    pub fn create(path: &Path) -> Result<Self, UpperError> {
        Self::with(path, OpenOptions::new().read(true).write(true).create_new(true).mode(PRIVATE_MODE))
            .map_err(|error| failed(path, "create", error))
    }

    /// Keeps every other process, and every other opening in this one, from locking the file until this one is dropped.
    ///
    /// # Errors
    /// [`UpperError::Busy`] where it is locked already, or whoever had it locked has put another file in its place.
    pub fn lock(&self) -> Result<(), UpperError> {
        let had = self.file.try_lock(FileLock::Exclusive).and_then(|had| Ok(had && self.has_its_name()?));
        match had.map_err(|error| failed(&self.path, "lock", error))? {
            true => Ok(()),
            false => Err(UpperError::Busy(self.path.display().to_string())),
        }
    }

    /// As [`LayerFile::lock`].
    pub(super) fn locked(self) -> Result<Self, UpperError> {
        self.lock()?;
        Ok(self)
    }

    /// Whether its path still means this very file.
    fn has_its_name(&self) -> io::Result<bool> {
        let opened = rustix::fs::fstat(&**self.file.file())?;
        let named = rustix::fs::stat(&self.path)?;
        Ok((opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino))
    }

    fn with(path: &Path, options: &OpenOptions) -> io::Result<Self> {
        let file = options.open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // The file system may have larger units for some files than it says of all.
        let sizes = (rustix::fs::fstatfs(&file)?.f_bsize, rustix::fs::fstat(&file)?.st_blksize);
        let [common, own] = [u64::try_from(sizes.0), u64::try_from(sizes.1)].map(|size| size.unwrap_or(4096));
        let block_bytes = common.max(own);
        Ok(Self {
            path: path.to_owned(),
            place: std::fs::canonicalize(path)?,
            file: LocalFile::new(file.into()),
            block_bytes,
            is_waiting: AtomicBool::new(false),
            folder: None,
        })
    }

    fn successor_path(&self) -> PathBuf {
        successor_path(&self.place)
    }

    /// An empty file beside `place`, which `old` has now, with its owner and mode.
    fn successor_of(path: PathBuf, place: PathBuf, old: &OwnedFd) -> io::Result<Self> {
        let waiting = successor_path(&place);
        match std::fs::remove_file(&waiting) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let folder = Some(open_folder(&place)?);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(PRIVATE_MODE);
        let mut successor = Self::with(&waiting, &options)?;
        successor.is_waiting = AtomicBool::new(true);
        (successor.path, successor.place, successor.folder) = (path, place, folder);
        // Before it can have its name: what is written to it keeps others away as well.
        if !successor.file.try_lock(FileLock::Exclusive)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let file = &**successor.file.file();
        let (old, new) = (rustix::fs::fstat(old)?, rustix::fs::fstat(file)?);
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid) {
            let (owner, group) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
            rustix::fs::fchown(file, Some(owner), Some(group))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(old.st_mode))?;
        Ok(successor)
    }
}

impl Drop for LayerFile {
    fn drop(&mut self) {
        if *self.is_waiting.get_mut() {
            // It would take room that may be short.
            let _ = std::fs::remove_file(self.successor_path());
        }
    }
}

fn successor_path(place: &Path) -> PathBuf {
    let mut name = OsString::from(place);
    name.push(SUCCESSOR_SUFFIX);
    name.into()
}

/// The folder of a file.
fn open_folder(place: &Path) -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(File::open(place.parent().unwrap_or(Path::new("/")))?.into()))
}

fn failed(path: &Path, action: &'static str, source: io::Error) -> UpperError {
    UpperError::Io { name: path.display().to_string(), action, source }
}

impl Medium for LayerFile {
    fn id(&self) -> io::Result<FileId> {
        let found = rustix::fs::fstat(&**self.file.file())?;
        Ok(FileId { device: found.st_dev, inode: found.st_ino })
    }

    fn size_bytes(&self) -> io::Result<u64> {
        let size = rustix::fs::fstat(&**self.file.file())?.st_size;
        u64::try_from(size).map_err(io::Error::other)
    }

    fn size_limit_bytes(&self) -> io::Result<u64> {
        // No call names the limit of the file system, but a position past it is refused.
        let file = &**self.file.file();
        let (mut allowed, mut refused) = (0, i64::MAX.unsigned_abs());
        while refused - allowed > 1 {
            let middle = allowed + (refused - allowed) / 2;
            match seek(file, SeekFrom::Start(middle)) {
                Ok(_) => allowed = middle,
                Err(Errno::INVAL | Errno::OVERFLOW) => refused = middle,
                Err(error) => return Err(error.into()),
            }
        }
        let own = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
        Ok(allowed.min(own))
    }

    fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        // Everything else reads and writes by offset, so that the position of the open file is nobody's.
        let file = &**self.file.file();
        match seek(file, SeekFrom::Data(offset)) {
            Ok(start) => Ok(Some(start..seek(file, SeekFrom::Hole(start))?)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn forget_cached(&self) -> io::Result<()> {
        Ok(fadvise(&**self.file.file(), 0, None, Advice::DontNeed)?)
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&**self.file.file(), size_bytes)?)
    }

    fn try_read(&self, offset: u64, dest: &mut [u8]) -> io::Result<bool> {
        Ok(self.file.try_read(offset, dest)? == Readiness::Done)
    }

    async fn read_at(&self, reactor: &Reactor, offset: u64, dest: &mut [u8]) -> io::Result<()> {
        waiting_for(|| "the disk, to read the writable layer", self.file.read(reactor, offset, dest)).await
    }

    async fn write_at(&self, reactor: &Reactor, offset: u64, data: &[u8]) -> io::Result<()> {
        for (at, piece) in pieces(offset, data) {
            let written = reactor.write_all_at(self.file.file(), at, piece);
            waiting_for(|| "the disk, to write to the writable layer", written).await?;
        }
        Ok(())
    }

    async fn write_durably(&self, reactor: &Reactor, offset: u64, data: &[u8]) -> io::Result<()> {
        for (at, piece) in pieces(offset, data) {
            reactor.write_all_durably_at(self.file.file(), at, piece).await?;
        }
        Ok(())
    }

    async fn sync(&self, reactor: &Reactor) -> io::Result<()> {
        reactor.sync_data(self.file.file()).await
    }

    async fn punch(&self, reactor: &Reactor, range: ByteRange) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        reactor.allocate(self.file.file(), flags, range.start(), range.len()).await
    }

    async fn keep_room(&self, reactor: &Reactor, range: ByteRange) -> io::Result<()> {
        reactor.allocate(self.file.file(), FallocateFlags::KEEP_SIZE, range.start(), range.len()).await
    }

    async fn successor(&self) -> io::Result<Self> {
        let (path, place, old) = (self.path.clone(), self.place.clone(), Arc::clone(self.file.file()));
        blocking(FILE_THREAD, move || Self::successor_of(path, place, &old)).await?
    }

    async fn replace_by(&self, successor: &Self) -> io::Result<()> {
        let (from, to) = (successor.successor_path(), self.place.clone());
        blocking(FILE_THREAD, move || std::fs::rename(from, to)).await??;
        successor.is_waiting.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn share(&self) -> io::Result<()> {
        match self.file.try_lock(FileLock::Shared)? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    async fn close(self) {
        // Where there is no thread, it is closed here.
        let _ = blocking(FILE_THREAD, move || drop(self)).await;
    }

    async fn sync_name(&self, reactor: &Reactor) -> io::Result<()> {
        let folder = self.folder.clone().map_or_else(|| open_folder(&self.place), Ok)?;
        reactor.sync_all(&folder).await
    }
}

impl fmt::Display for LayerFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

fn pieces(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    (offset..).step_by(PIECE_BYTES).zip(data.chunks(PIECE_BYTES))
}
