//! Reads of one local file: from the page cache in the calling thread, else through the ring.

use std::{
    fmt, io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use rustix::{
    fs::{FlockOperation, OFlags, fcntl_getfl, fcntl_setfl, flock, fstatfs},
    io::{Errno, ReadWriteFlags, preadv2},
};

use super::Readiness;
use crate::reactor::{Buffer, Reactor};

/// `f_type` of tmpfs and ramfs, whose pages are in memory already though they refuse RWF_NOWAIT.
const MEMORY_FILE_SYSTEMS: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// A local file that is read by offset. The file's size is not known here: reading past its end is an error.
pub struct LocalFile {
    file: Arc<OwnedFd>,
    /// A [`Nowait`] as a number: what has been learnt about reading without waiting.
    nowait: AtomicU8,
    is_locked: AtomicBool,
}

/// Who else may have a file that is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileLock {
    /// Those who lock it so too.
    Shared,
    /// Nobody.
    Exclusive,
}

/// How bytes can be had without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Nowait {
    /// By RWF_NOWAIT, or so it is hoped.
    Flag = 0,
    /// By a plain read, since the file system lies in memory.
    Plain = 1,
    /// Not at all: each read takes the ring.
    Never = 2,
}

impl LocalFile {
    /// Largest single read through the ring: large enough that the trip does not count, small enough that many requests
    /// share the pool of buffers (128 of them in its default 32 MiB).
    pub const CHUNK_BYTES: usize = 256 << 10;

    /// Takes an open file.
    #[must_use]
    pub fn new(file: OwnedFd) -> Self {
        let in_memory = fstatfs(&file)
            .ok()
            .and_then(|stat| u32::try_from(stat.f_type).ok())
            .is_some_and(|kind| MEMORY_FILE_SYSTEMS.contains(&kind));
        // Else each read looks at the clock, and some write the time down. Only the file's owner and root may; others do without.
        if let Ok(flags) = fcntl_getfl(&file) {
            let _ = fcntl_setfl(&file, flags | OFlags::NOATIME);
        }
        let nowait = match in_memory {
            true => Nowait::Plain,
            false if refuses_nowait(&file) => Nowait::Never,
            false => Nowait::Flag,
        };
        Self { file: Arc::new(file), nowait: AtomicU8::new(nowait as u8), is_locked: AtomicBool::new(false) }
    }

    /// Keeps the file from everybody who opens it anew, in this process and in others, and locks it so that the two exclude each
    /// other; until this is dropped. A lock that is held becomes this one: the kernel changes it at once, so that nobody comes in
    /// between. Returns whether it could be had.
    ///
    /// # Errors
    /// The kernel's answer, for example that the file system has no locks.
    pub fn try_lock(&self, lock: FileLock) -> io::Result<bool> {
        let operation = match lock {
            FileLock::Shared => FlockOperation::NonBlockingLockShared,
            FileLock::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(&*self.file, operation) {
            Ok(()) => {
                self.is_locked.store(true, Ordering::Relaxed);
                Ok(true)
            }
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// The file itself where the ring serves what is in the page cache at once, and waits for the rest without a thread.
    /// Others it gives to a helper thread, which a read by this program is faster than.
    #[must_use]
    pub fn for_ring(&self) -> Option<&Arc<OwnedFd>> {
        (self.nowait.load(Ordering::Relaxed) == Nowait::Flag as u8).then_some(&self.file)
    }

    /// Fills `dest` from `offset` if all of it is in memory.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn try_read(&self, offset: u64, dest: &mut [u8]) -> io::Result<Readiness> {
        let flags = match self.nowait.load(Ordering::Relaxed) {
            state if state == Nowait::Flag as u8 => ReadWriteFlags::NOWAIT,
            state if state == Nowait::Plain as u8 => ReadWriteFlags::empty(),
            _ => return Ok(Readiness::WouldWait),
        };
        let wanted = dest.len();
        match preadv2(&*self.file, &mut [io::IoSliceMut::new(dest)], offset, flags) {
            Ok(count) if count == wanted => Ok(Readiness::Done),
            // A part is in memory; whether the file ends here is for the waiting read to find.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(Readiness::WouldWait),
            Err(Errno::OPNOTSUPP) => {
                self.nowait.store(Nowait::Never as u8, Ordering::Relaxed);
                Ok(Readiness::WouldWait)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Fills `dest` from `offset`, waiting for the disk on `reactor`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the file ends before, else the kernel's answer.
    pub async fn read(&self, reactor: &Reactor, offset: u64, dest: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        for chunk in dest.chunks_mut(Self::CHUNK_BYTES) {
            reactor.read_exact_at(&self.file, at, chunk).await?;
            at = at.saturating_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// The `len` bytes at `offset`, at most [`Self::CHUNK_BYTES`], in a buffer of the reactor's.
    ///
    /// # Errors
    /// As [`LocalFile::read`].
    pub async fn read_buffer(&self, reactor: &Reactor, offset: u64, len: usize) -> io::Result<Buffer> {
        let mut buffer = reactor.io_buffers().acquire(len).await.map_err(io::Error::other)?;
        match self.try_read(offset, &mut buffer)? {
            Readiness::Done => Ok(buffer),
            Readiness::WouldWait => reactor.read_buffer_at(&self.file, offset, buffer).await,
        }
    }
}

impl Drop for LocalFile {
    /// Closing the file would end the lock too, but the kernel closes it only when the ring is entered after its worker has let go of
    /// it, which may be long after the last answer, and whoever opens the file next is refused until then. An operation that is
    /// still under way holds the file: then the lock is left to it.
    fn drop(&mut self) {
        if *self.is_locked.get_mut() && Arc::strong_count(&self.file) == 1 {
            // One that cannot be given back goes with the file.
            let _ = flock(&*self.file, FlockOperation::Unlock);
        }
    }
}

fn refuses_nowait(file: &OwnedFd) -> bool {
    let first = preadv2(file, &mut [io::IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT);
    first == Err(Errno::OPNOTSUPP)
}

impl fmt::Debug for LocalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalFile")
            .field("file", &self.file)
            .field("nowait", &self.nowait.load(Ordering::Relaxed))
            .finish()
    }
}
