//! A file or block device served as it is, as kernel loop does: the yardstick for what an image costs on top.

use std::{
    cell::Cell,
    fs::{File, OpenOptions},
    io::{self, IoSliceMut, Seek, SeekFrom},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::FallocateFlags,
    io::{Errno, ReadWriteFlags},
};

use crate::{
    block::{BlockDevice, BlockError, BlockQueue, ErrorKind, Geometry, GeometryError, SECTOR_BYTES},
    reactor::Reactor,
};

/// One trip through the ring carries at most this much: the largest request of a ublk device, so that one trip does.
const PIECE_BYTES: usize = 1 << 20;

/// A file or block device. Clones share the descriptor.
#[derive(Debug, Clone)]
pub struct FileDevice {
    path: PathBuf,
    file: Arc<OwnedFd>,
    geometry: Geometry,
}

/// The queue of a [`FileDevice`].
#[derive(Debug)]
pub struct FileQueue {
    device: FileDevice,
    reactor: Reactor,
    /// Cleared when the file system says that it cannot tell cached bytes from others.
    answers_nowait: Cell<bool>,
    /// The first way to make zeroes that has not been refused yet.
    zeroing: Cell<Zeroing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeroing {
    Punch,
    ZeroRange,
    Write,
}

/// Why a file cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileDeviceError {
    /// It cannot be opened or asked for its size.
    #[error("{path}: cannot open it as a device")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("{path}: neither a regular file nor a block device")]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Its size does not make a device.
    #[error("{path}: cannot be a block device")]
    Geometry {
        /// The file.
        path: PathBuf,
        /// The rule that it breaks.
        source: GeometryError,
    },
}

impl FileDevice {
    /// Opens the file at `path`; not on a thread that serves I/O, since this may wait for the disk.
    ///
    /// # Errors
    /// A file that is missing, is of another kind, or whose size is not a multiple of its block (512 bytes for a
    /// regular file).
    pub fn open(path: &Path, read_only: bool) -> Result<Self, FileDeviceError> {
        let open_error = |source| FileDeviceError::Open { path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(open_error)?;
        let kind = file.metadata().map_err(open_error)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(FileDeviceError::Kind { path: path.to_owned() });
        }
        let (logical_block_bytes, physical_block_bytes) =
            if kind.is_block_device() { block_sizes(&file).map_err(open_error)? } else { (512, 4096) };
        // The end of a block device is where seeking says; its metadata has a size of 0.
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(open_error)?;
        let geometry = Geometry {
            size_bytes,
            logical_block_bytes,
            physical_block_bytes,
            optimal_io_bytes: 0,
            read_only,
            discard: !read_only,
        };
        geometry.validate().map_err(|source| FileDeviceError::Geometry { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file.into()), geometry })
    }
}

fn block_sizes(file: &File) -> io::Result<(u32, u32)> {
    let logical = rustix::fs::ioctl_blksszget(file)?;
    let physical = rustix::fs::ioctl_blkpbszget(file)?;
    Ok((logical, physical.max(logical)))
}

impl BlockDevice for FileDevice {
    type Queue = FileQueue;

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_queue(&self, reactor: &Reactor) -> Result<FileQueue, BlockError> {
        Ok(FileQueue {
            device: self.clone(),
            reactor: reactor.clone(),
            answers_nowait: Cell::new(true),
            zeroing: Cell::new(Zeroing::Punch),
        })
    }
}

impl FileQueue {
    /// Reads what the page cache holds from `offset` on; returns how many bytes that were.
    fn read_cached(&self, offset: u64, dest: &mut [u8]) -> usize {
        if !self.answers_nowait.get() {
            return 0;
        }
        let file = self.device.file.as_fd();
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(dest)], offset, ReadWriteFlags::NOWAIT) {
            Ok(count) => count,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.answers_nowait.set(false);
                0
            }
            // Not cached, interrupted, or an error that the ring will meet again and report.
            Err(_) => 0,
        }
    }

    fn failed(&self, what: &str, offset: u64, len: usize, error: io::Error) -> BlockError {
        let kind = match Errno::from_io_error(&error) {
            Some(Errno::NOSPC | Errno::DQUOT) => ErrorKind::NoSpace,
            Some(Errno::ROFS | Errno::PERM) => ErrorKind::ReadOnly,
            Some(Errno::NODEV | Errno::NXIO) => ErrorKind::Gone,
            _ => ErrorKind::Io,
        };
        let path = self.device.path.display();
        BlockError::with_source(kind, format!("{path}: cannot {what} {len} bytes at {offset}"), error)
    }

    fn check_writable(&self) -> Result<(), BlockError> {
        if self.device.geometry.read_only {
            let context = format!("{}: opened read-only", self.device.path.display());
            return Err(BlockError::new(ErrorKind::ReadOnly, context));
        }
        Ok(())
    }

    /// Writes zeroes where the file system has no quicker way.
    async fn write_plain_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let zeroes = vec![0; PIECE_BYTES.min(usize::try_from(len).unwrap_or(PIECE_BYTES))];
        let mut done = 0;
        while done < len {
            let piece = zeroes.get(..usize::try_from(len - done).unwrap_or(PIECE_BYTES)).unwrap_or(&zeroes);
            self.write_piece(offset + done, piece).await?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    async fn write_piece(&self, offset: u64, piece: &[u8]) -> Result<(), BlockError> {
        let written = self.reactor.write_all_at(&self.device.file, offset, piece).await;
        written.map_err(|error| self.failed("write", offset, piece.len(), error))
    }
}

impl BlockQueue for FileQueue {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let cached = self.read_cached(offset, dest);
        let mut at = offset + cached as u64;
        for piece in dest.get_mut(cached..).unwrap_or_default().chunks_mut(PIECE_BYTES) {
            let read = self.reactor.read_exact_at(&self.device.file, at, piece).await;
            read.map_err(|error| self.failed("read", at, piece.len(), error))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.check_writable()?;
        let mut at = offset;
        for piece in data.chunks(PIECE_BYTES) {
            self.write_piece(at, piece).await?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        if self.device.geometry.read_only {
            return Ok(());
        }
        let synced = self.reactor.sync_data(&self.device.file).await;
        synced.map_err(|error| self.failed("flush", 0, 0, error))
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.check_writable()?;
        if len == 0 {
            return Ok(());
        }
        loop {
            let (flags, next) = match self.zeroing.get() {
                Zeroing::Punch => (FallocateFlags::PUNCH_HOLE, Zeroing::ZeroRange),
                Zeroing::ZeroRange => (FallocateFlags::ZERO_RANGE, Zeroing::Write),
                Zeroing::Write => return self.write_plain_zeroes(offset, len).await,
            };
            let flags = flags | FallocateFlags::KEEP_SIZE;
            match self.reactor.allocate(&self.device.file, flags, offset, len).await {
                Ok(()) => return Ok(()),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::OPNOTSUPP | Errno::NOSYS) => self.zeroing.set(next),
                    _ => {
                        let len = usize::try_from(len).unwrap_or(usize::MAX);
                        return Err(self.failed("zero", offset, len, error));
                    }
                },
            }
        }
    }
}

const _: () = assert!((PIECE_BYTES as u64).is_multiple_of(SECTOR_BYTES), "pieces are whole sectors");

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::reactor::ReactorConfig;

    #[test]
    fn zeroes_come_out_the_same_by_every_way_that_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let size = 3 * PIECE_BYTES;
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        for way in [Zeroing::Punch, Zeroing::ZeroRange, Zeroing::Write] {
            std::fs::write(&path, vec![7; size]).unwrap();
            let queue = FileDevice::open(&path, false).unwrap().open_queue(&reactor).unwrap();
            queue.zeroing.set(way);
            let (first, last) = (512, size - 512);
            reactor.block_on(queue.write_zeroes(first as u64, (last - first) as u64)).unwrap().unwrap();
            let mut expected = vec![7; size];
            expected[first..last].fill(0);
            let mut content = Vec::new();
            File::open(&path).unwrap().read_to_end(&mut content).unwrap();
            assert!(content == expected, "{way:?}");
        }
    }

    #[test]
    fn a_file_system_without_nowait_is_asked_once() {
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, [7; 4096]).unwrap();
        let queue = FileDevice::open(&path, true).unwrap().open_queue(&reactor).unwrap();
        queue.answers_nowait.set(false);
        let mut dest = [0; 4096];
        assert_eq!(queue.read_cached(0, &mut dest), 0);
        reactor.block_on(queue.read(0, &mut dest)).unwrap().unwrap();
        assert_eq!(dest, [7; 4096]);
    }
}
