//! A blob that is a local file.

use std::{io, os::fd::OwnedFd, path::Path, sync::Arc};

use rustix::{
    fs::{Advice, FileType, Mode, OFlags, fadvise, fcntl_setfl, fstat, open},
    io::Errno,
};

use super::{BlobSource, DirectMark, FileLock, LocalFile, LocalFuture, Place, Readiness, SourceError};
use crate::{
    block::ByteRange,
    reactor::{Reactor, waiting_for},
};

/// A local file that nobody changes while it is open. Its size is taken at open; if the file shrinks after that,
/// reads of the lost part fail.
#[derive(Debug)]
pub struct FileSource {
    file: LocalFile,
    name: String,
    size_bytes: u64,
}

impl FileSource {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened, or is not a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(open_regular(path)?, path.display().to_string())
    }

    /// Takes an open regular file; `name` is for messages.
    ///
    /// # Errors
    /// When its size cannot be had, or it is not a regular file.
    pub fn new(file: OwnedFd, name: String) -> io::Result<Self> {
        let stat = fstat(&file)?;
        check_regular(stat.st_mode)?;
        let size_bytes = u64::try_from(stat.st_size).map_err(io::Error::other)?;
        // Reads are scattered: the kernel's own readahead would fetch what nobody asked for. Advice may be refused.
        let _ = fadvise(&file, 0, None, Advice::Random);
        Ok(Self { file: LocalFile::new(file), name, size_bytes })
    }

    /// Keeps whoever locks the file to write to it, as a device does with its writable layer, from doing so while this lives.
    /// Where the file system has no locks nobody does.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where somebody has it locked, else the kernel's answer.
    pub fn keep_unwritten(&self) -> io::Result<()> {
        match self.file.try_lock(FileLock::Shared) {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) if has_no_locks(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), SourceError> {
        check_bounds(&self.name, self.size_bytes, offset, len).map(drop)
    }

    fn failed(&self, offset: u64, len: usize, error: io::Error) -> SourceError {
        SourceError::Io { name: self.name.clone(), offset, len: len as u64, source: Arc::new(error) }
    }
}

/// Opens the regular file at `path` for reading, at once: of a FIFO the open itself would wait for a writer.
///
/// # Errors
/// When it cannot be opened, or is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<OwnedFd> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    check_regular(fstat(&file)?.st_mode)?;
    // The ring would take the flag for the wish never to wait for the disk.
    fcntl_setfl(&file, OFlags::empty())?;
    Ok(file)
}

fn has_no_locks(error: &io::Error) -> bool {
    let known = [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL];
    Errno::from_io_error(error).is_some_and(|errno| known.contains(&errno))
}

fn check_regular(mode: u32) -> io::Result<()> {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// The range of `len` bytes at `offset`, if a blob of `size_bytes` called `name` has it.
///
/// # Errors
/// [`SourceError::OutOfBounds`].
pub fn check_bounds(name: &str, size_bytes: u64, offset: u64, len: usize) -> Result<ByteRange, SourceError> {
    match ByteRange::new(offset, len as u64) {
        Ok(range) if range.end() <= size_bytes => Ok(range),
        _ => Err(SourceError::OutOfBounds { name: name.to_owned(), offset, len: len as u64, size_bytes }),
    }
}

impl BlobSource for FileSource {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn place(&self) -> Place {
        Place::File
    }

    fn try_read(&self, offset: u64, dest: &mut [u8]) -> Result<Readiness, SourceError> {
        self.check(offset, dest.len())?;
        let len = dest.len();
        self.file.try_read(offset, dest).map_err(|error| self.failed(offset, len, error))
    }

    fn file(&self) -> Option<&Arc<OwnedFd>> {
        self.file.for_ring()
    }

    fn begin_direct(&self, range: ByteRange) -> Option<DirectMark> {
        // The file does not change; if it has become shorter the read does, too.
        (range.end() <= self.size_bytes).then_some(DirectMark(0))
    }

    fn end_direct(&self, _range: ByteRange, _mark: DirectMark) -> bool {
        true
    }

    fn read<'a>(
        &'a self,
        reactor: &'a Reactor,
        offset: u64,
        dest: &'a mut [u8],
    ) -> LocalFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.check(offset, dest.len())?;
            let len = dest.len();
            let read = self.file.read(reactor, offset, dest);
            let what = || format!("the disk: {len} bytes at {offset} of {}", self.name);
            waiting_for(what, read).await.map_err(|error| self.failed(offset, len, error))
        })
    }

    fn fetch<'a>(&'a self, _ranges: &'a [ByteRange]) -> LocalFuture<'a, Result<(), SourceError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn invalidate(&self, _range: ByteRange) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::reactor::ReactorConfig;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect()
    }

    fn source_in(dir: &Path, content: &[u8]) -> (FileSource, std::fs::File) {
        let path = dir.join("blob");
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(content).unwrap();
        (FileSource::open(&path).unwrap(), file)
    }

    #[test]
    fn any_range_reads_back_by_both_ways() {
        let content = pattern(700_001);
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        for dir in [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()] {
            let (source, _) = source_in(dir.path(), &content);
            assert_eq!(source.size_bytes(), content.len() as u64);
            for (offset, len) in [(0, 700_001), (1, 512), (699_999, 2), (4095, 300_000), (700_001, 0)] {
                let mut waited = vec![0; len];
                reactor.block_on(source.read(&reactor, offset as u64, &mut waited)).unwrap().unwrap();
                assert_eq!(waited, content[offset..offset + len]);
                let mut ready = vec![0; len];
                assert_eq!(source.try_read(offset as u64, &mut ready).unwrap(), Readiness::Done);
                assert_eq!(ready, content[offset..offset + len]);
            }
            assert!(!source.invalidate(ByteRange::between(0, 4096)));
        }
    }

    #[test]
    fn a_range_past_the_end_is_refused_and_never_read_as_zeroes() {
        let dir = tempfile::tempdir().unwrap();
        let (source, _) = source_in(dir.path(), &pattern(1000));
        for offset in [1, 1001, u64::MAX] {
            let refused = source.try_read(offset, &mut [0; 1000]);
            assert!(matches!(refused, Err(SourceError::OutOfBounds { size_bytes: 1000, .. })));
        }
    }

    #[test]
    fn a_file_that_shrank_fails_the_read() {
        let dir = tempfile::tempdir().unwrap();
        let (source, file) = source_in(dir.path(), &pattern(8192));
        file.set_len(5000).unwrap();
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        let mut dest = [0; 8192];
        assert_eq!(source.try_read(0, &mut dest).unwrap(), Readiness::WouldWait);
        let error = reactor.block_on(source.read(&reactor, 0, &mut dest)).unwrap().unwrap_err();
        assert!(matches!(error, SourceError::Io { offset: 0, len: 8192, .. }), "{error}");
    }

    #[test]
    fn a_directory_or_a_fifo_is_refused_at_once() {
        assert!(FileSource::open(Path::new("/")).is_err());
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let refused = FileSource::open(&fifo).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{refused}");
    }

    #[test]
    fn an_open_file_waits_for_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (source, _) = source_in(dir.path(), &pattern(1));
        let flags = rustix::fs::fcntl_getfl(&**source.file.file()).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "{flags:?}");
    }

    #[test]
    fn reads_leave_the_access_time_of_a_file_of_ours_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (source, _) = source_in(dir.path(), &pattern(1));
        let flags = rustix::fs::fcntl_getfl(&**source.file.file()).unwrap();
        assert!(flags.contains(OFlags::NOATIME), "{flags:?}");
    }

    #[test]
    fn a_file_system_without_nowait_is_remembered_and_read_through_the_ring() {
        // procfs has no RWF_NOWAIT for this file and is no memory file system by its type.
        let file = std::fs::File::open("/proc/version").unwrap();
        let local = LocalFile::new(file.into());
        let mut dest = [0; 5];
        assert_eq!(local.try_read(0, &mut dest).unwrap(), Readiness::WouldWait);
        assert_eq!(local.try_read(0, &mut dest).unwrap(), Readiness::WouldWait);
        let reactor = Reactor::new(&ReactorConfig::default()).unwrap();
        reactor.block_on(local.read(&reactor, 0, &mut dest)).unwrap().unwrap();
        assert_eq!(&dest, b"Linux");
    }
}
