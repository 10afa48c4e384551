//! What the layer needs of the file system below; a model of a disk takes its place in the crash tests.

use std::{fmt, io, ops::Range};

use crate::{block::ByteRange, reactor::Reactor};

/// Which file of the machine this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The number of the device that it lies on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

/// One open file of a writable layer, shared by all threads. Displayed, it is the file's name for errors and logs.
///
/// Nothing that was written is durable before a [`Medium::sync`] that began after it. What was not written reads as zeroes.
/// The future of a write may be dropped; the room it goes to is then not to be used.
pub trait Medium: fmt::Debug + fmt::Display + Send + Sync + Sized + 'static {
    /// Which file it is.
    ///
    /// # Errors
    /// The system's answer, as of all below.
    fn id(&self) -> io::Result<FileId>;

    /// The file's size in bytes.
    ///
    /// # Errors
    /// The system's answer.
    fn size_bytes(&self) -> io::Result<u64>;

    /// The largest size in bytes that the file may come to have.
    ///
    /// # Errors
    /// The system's answer.
    fn size_limit_bytes(&self) -> io::Result<u64>;

    /// The unit in which the file system gives room and takes it back, in bytes.
    fn block_bytes(&self) -> u64;

    /// The first run of bytes at or after `offset` that the file system keeps, in whole blocks; `None` where it keeps nothing
    /// more. All else reads as zeroes. May wait for the disk: only called while a layer is opened, or after a failure.
    ///
    /// # Errors
    /// The system's answer.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;

    /// Drops what memory has of the file besides what the disk has: pages of holes, which look like data.
    ///
    /// # Errors
    /// The system's answer.
    fn forget_cached(&self) -> io::Result<()>;

    /// Cuts the file off, or lets it grow. May wait for the disk: not called by those who serve requests.
    ///
    /// # Errors
    /// The system's answer.
    fn set_size(&self, size_bytes: u64) -> io::Result<()>;

    /// Fills `dest` from `offset` if that needs no waiting; returns whether it has.
    ///
    /// # Errors
    /// The system's answer.
    fn try_read(&self, offset: u64, dest: &mut [u8]) -> io::Result<bool>;

    /// Fills all of `dest` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the file ends before, else the system's answer.
    fn read_at(
        &self,
        reactor: &Reactor,
        offset: u64,
        dest: &mut [u8],
    ) -> impl Future<Output = io::Result<()>>;

    /// Writes all of `data` at `offset`. After an error any part of it may have been written.
    ///
    /// # Errors
    /// The system's answer.
    fn write_at(&self, reactor: &Reactor, offset: u64, data: &[u8]) -> impl Future<Output = io::Result<()>>;

    /// As [`Medium::write_at`], and makes it durable in the same trip, with the file's size.
    ///
    /// # Errors
    /// The system's answer. After any, none of it may be durable, or all; to write the same there again tells.
    fn write_durably(
        &self,
        reactor: &Reactor,
        offset: u64,
        data: &[u8],
    ) -> impl Future<Output = io::Result<()>>;

    /// Makes all writes durable that ended before, and the file's size.
    ///
    /// # Errors
    /// After an error nobody knows what is durable, and to try again does not tell.
    fn sync(&self, reactor: &Reactor) -> impl Future<Output = io::Result<()>>;

    /// Gives the room of `range`, which are whole blocks, back to the file system; it reads as zeroes then.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the file system has no such thing.
    fn punch(&self, reactor: &Reactor, range: ByteRange) -> impl Future<Output = io::Result<()>>;

    /// Has the file system keep room for `range`, also past the end of the file, whose size stays: what is written there later
    /// finds it.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the file system has no such thing, else the system's answer.
    fn keep_room(&self, reactor: &Reactor, range: ByteRange) -> impl Future<Output = io::Result<()>>;

    /// An empty file beside this one, which may come to replace it. What an earlier one has left there goes.
    ///
    /// # Errors
    /// The system's answer.
    fn successor(&self) -> impl Future<Output = io::Result<Self>>;

    /// Gives `successor` the name of this file, which stays open without one. Durable after [`Medium::sync_name`].
    ///
    /// # Errors
    /// The system's answer; the name is then still this file's.
    fn replace_by(&self, successor: &Self) -> impl Future<Output = io::Result<()>>;

    /// Closes a file that has no name any more, or is not to get one: the file system may take long to free what it has.
    fn close(self) -> impl Future<Output = ()>;

    /// Nothing is written to the file any more: others may read it from now on, and still nobody else may write to it.
    ///
    /// # Errors
    /// The system's answer; then nobody else may read it yet.
    fn share(&self) -> io::Result<()>;

    /// Makes durable which file has the name of this one.
    ///
    /// # Errors
    /// As of [`Medium::sync`].
    fn sync_name(&self, reactor: &Reactor) -> impl Future<Output = io::Result<()>>;
}
