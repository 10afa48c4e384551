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
    reactor::{Buffer, Reactor},
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

    async fn buffer(&self, len: usize) -> Result<Buffer, BlockError> {
        self.reactor.io_buffers().acquire(len.min(PIECE_BYTES)).await.map_err(|error| {
            BlockError::with_source(ErrorKind::Io, "no buffer for a read or write of a file", error)
        })
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
        let mut done = 0;
        while done < len {
            let piece = usize::try_from(len - done).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let mut buffer = self.buffer(piece).await?;
            buffer.fill(0);
            done += self.write_piece(offset + done, buffer).await?;
        }
        Ok(())
    }

    /// One trip through the ring; returns how many bytes it took, at least one.
    async fn write_piece(&self, offset: u64, buffer: Buffer) -> Result<u64, BlockError> {
        let len = buffer.len();
        match self.reactor.write_at(&self.device.file, offset, buffer).await.0 {
            Ok(0) => Err(self.failed("write", offset, len, io::ErrorKind::WriteZero.into())),
            Ok(count) => Ok(count as u64),
            Err(error) => Err(self.failed("write", offset, len, error)),
        }
    }
}

impl BlockQueue for FileQueue {
    async fn read(&self, offset: u64, dest: &mut [u8]) -> Result<(), BlockError> {
        let len = dest.len();
        let mut done = self.read_cached(offset, dest);
        while let Some(rest) = dest.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let buffer = self.buffer(rest.len()).await?;
            let (count, buffer) = self.reactor.read_at(&self.device.file, at, buffer).await;
            let count = match count {
                // The file has become shorter than it was at open.
                Ok(0) => Err(self.failed("read", at, len - done, io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => Ok(count),
                Err(error) => Err(self.failed("read", at, len - done, error)),
            }?;
            if let (Some(target), Some(source)) = (rest.get_mut(..count), buffer.get(..count)) {
                target.copy_from_slice(source);
            }
            done += count;
        }
        Ok(())
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), BlockError> {
        self.check_writable()?;
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let mut buffer = self.buffer(rest.len()).await?;
            let piece = rest.get(..buffer.len()).unwrap_or(rest);
            buffer.copy_from_slice(piece);
            let count = self.write_piece(at, buffer).await?;
            at += count;
            rest = usize::try_from(count).ok().and_then(|count| rest.get(count..)).unwrap_or_default();
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
