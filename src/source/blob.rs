//! The contract of a blob: fixed size, fixed bytes, read by range.

use std::{fmt, io, os::fd::OwnedFd, pin::Pin, sync::Arc};

use super::{Refutation, WrongBlock};
use crate::{
    block::{BlockError, ByteRange, ErrorKind},
    reactor::Reactor,
};

/// A boxed future that stays on its reactor's thread; only slow paths are boxed.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What an attempt to read without waiting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Readiness {
    /// All of the destination is filled.
    Done,
    /// Some bytes would have to be waited for; the destination's content is unspecified.
    WouldWait,
}

/// Where the bytes of a blob come from when nothing has to be fetched first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A file that somebody else keeps.
    File,
    /// What is remembered of an origin.
    Cache,
    /// The origin itself, each time.
    Origin,
}

/// A number by which a source knows whether its file has changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectMark(pub u64);

/// Immutable bytes of a known size. Shared by all threads; the reactor that waits is an argument.
///
/// Ranges are checked: bytes past the end are [`SourceError::OutOfBounds`], never zeroes.
pub trait BlobSource: Send + Sync + fmt::Debug {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// Where what it holds ends, in bytes: what proves it may lie behind that.
    fn content_bytes(&self) -> u64 {
        self.size_bytes()
    }

    /// What to call it in messages: a path, or a repository and digest. Holds no credential.
    fn name(&self) -> &str;

    /// Where its bytes come from, for metrics.
    fn place(&self) -> Place {
        Place::Cache
    }

    /// Fills `dest` from `offset` if that needs neither disk nor network.
    ///
    /// # Errors
    /// As [`BlobSource::read`].
    fn try_read(&self, offset: u64, dest: &mut [u8]) -> Result<Readiness, SourceError>;

    /// The local file that has the blob's bytes, as far as it has them, at their own offsets, where the ring can read it without
    /// a helper thread. Not to be read but between [`BlobSource::begin_direct`] and [`BlobSource::end_direct`].
    fn file(&self) -> Option<&Arc<OwnedFd>> {
        None
    }

    /// Whether [`BlobSource::file`] has all of `range`: a mark to end the read of it with, if so.
    fn begin_direct(&self, _range: ByteRange) -> Option<DirectMark> {
        None
    }

    /// Whether what was read of `range` since `mark` was right; counts it as read.
    fn end_direct(&self, _range: ByteRange, _mark: DirectMark) -> bool {
        false
    }

    /// Fills `dest` from `offset`, waiting for disk or network on `reactor`.
    ///
    /// # Errors
    /// Any [`SourceError`]; then the content of `dest` is unspecified.
    fn read<'a>(
        &'a self,
        reactor: &'a Reactor,
        offset: u64,
        dest: &'a mut [u8],
    ) -> LocalFuture<'a, Result<(), SourceError>>;

    /// Starts bringing `ranges` near, all at once, and returns when every one can be read without the network, or as soon as it
    /// is known that one cannot be had. A source that is near already does nothing.
    ///
    /// # Errors
    /// As [`BlobSource::read`]. A read after it would wait as long again and fail too.
    fn fetch<'a>(&'a self, ranges: &'a [ByteRange]) -> LocalFuture<'a, Result<(), SourceError>>;

    /// Forgets remembered bytes of `range` that a checksum has refuted, so that the next read asks the origin again.
    /// Returns whether reading again may bring other bytes; whoever asks often enough gives up by himself.
    fn invalidate(&self, range: ByteRange) -> bool;

    /// Has `refutation` raised whenever it turns out that bytes that were read since are not those of the blob's digest. To be
    /// called before the first of them is read by who makes something of them that outlives the read.
    fn watch(&self, _refutation: &Arc<Refutation>) {}
}

/// Why bytes of a blob could not be had. Cheap to clone, since one failed fetch fails all who share it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The range reaches past the end of the blob.
    #[error("{name}: {len} bytes at {offset} are outside its {size_bytes} bytes")]
    OutOfBounds {
        /// The blob's name.
        name: String,
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The blob's size in bytes.
        size_bytes: u64,
    },
    /// The local medium failed, or the file is shorter than it was at open.
    #[error("{name}: cannot read {len} bytes at {offset}")]
    Io {
        /// The blob's name.
        name: String,
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// The origin could not give the bytes.
    #[error("{name}: cannot fetch {len} bytes at {offset}")]
    Remote {
        /// The blob's name.
        name: String,
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Whether a deadline ended it.
        timed_out: bool,
        /// What the registry client says.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The origin gave other bytes than those that the blob's Merkle tree proves, again and again.
    #[error("{name}: the bytes at {offset} are not the blob's")]
    Refuted {
        /// The blob's name.
        name: String,
        /// Start of the block that is wrong, in bytes.
        offset: u64,
        /// The rule that it breaks.
        source: WrongBlock,
    },
}

impl From<SourceError> for BlockError {
    fn from(error: SourceError) -> Self {
        let kind = match &error {
            SourceError::Remote { timed_out: true, .. } => ErrorKind::TimedOut,
            _ => ErrorKind::Io,
        };
        BlockError::with_source(kind, "cannot read the image's data", error)
    }
}
