//! The one error of the seam: a kind that maps to an errno, what was being done, and the cause.

use std::{error::Error, fmt};

use rustix::io::Errno;

/// What a frontend needs to know of a failure: the errno to answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes could not be had, or were refuted by a check: EIO.
    Io,
    /// A write to a device that takes none: EROFS inside, EIO to block callers of kernels that know no better.
    ReadOnly,
    /// Outside the device or not aligned to its blocks: EINVAL.
    Invalid,
    /// An operation that this device does not have: EOPNOTSUPP.
    Unsupported,
    /// No room on the medium below: ENOSPC.
    NoSpace,
    /// Not had before the deadline: ETIMEDOUT.
    TimedOut,
    /// The device is being removed: ENODEV.
    Gone,
}

impl ErrorKind {
    /// The errno that stands for this kind.
    #[must_use]
    pub fn errno(self) -> Errno {
        match self {
            Self::Io => Errno::IO,
            Self::ReadOnly => Errno::ROFS,
            Self::Invalid => Errno::INVAL,
            Self::Unsupported => Errno::OPNOTSUPP,
            Self::NoSpace => Errno::NOSPC,
            Self::TimedOut => Errno::TIMEDOUT,
            Self::Gone => Errno::NODEV,
        }
    }
}

/// A failed operation of a block device.
#[derive(Debug)]
pub struct BlockError {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl BlockError {
    /// A failure that has no deeper cause.
    #[must_use]
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// A failure and its cause, which [`Error::source`] returns.
    #[must_use]
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// What the frontend answers by.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl Error for BlockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
