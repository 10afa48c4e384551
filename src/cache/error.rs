//! Why a cache or an entry of it cannot be used.

use std::{io, path::PathBuf};

/// A cache, or an entry of it, cannot be used; its blobs can be read uncached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The digest is not `sha256:` or `sha512:` with as many lower-case hexadecimal digits as that hash has.
    #[error("{0:?} is not a digest that a cache entry can be named by")]
    Digest(String),
    /// The blob is larger than its maps may become.
    #[error("{digest}: a blob of {size_bytes} bytes exceeds the {limit_bytes} bytes of a cache entry")]
    TooLarge {
        /// The blob's digest.
        digest: String,
        /// Its size in bytes, as its origin says.
        size_bytes: u64,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// The blob is open already, with another size: one of the two origins is wrong.
    #[error("{digest}: is open with {open_bytes} bytes, and now said to have {size_bytes}")]
    SizeConflict {
        /// The blob's digest.
        digest: String,
        /// Its size in bytes as first opened.
        open_bytes: u64,
        /// Its size in bytes, as its origin says.
        size_bytes: u64,
    },
    /// Another process holds the entry and does not let go.
    #[error("{0}: another process holds the entry")]
    Busy(String),
    /// The disk failed.
    #[error("{path}: cannot {action}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The cache's thread has ended.
    #[error("the cache is closed")]
    Closed,
}

impl CacheError {
    /// Whether the same may be had later, when a peer has let go or the system has what it lacked.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Busy(_) | Self::SizeConflict { .. } => true,
            Self::Io { source, .. } => source.kind() != io::ErrorKind::PermissionDenied,
            Self::Digest(_) | Self::TooLarge { .. } | Self::Closed => false,
        }
    }
}
