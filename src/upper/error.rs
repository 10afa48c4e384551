//! Why a writable layer cannot be opened or made.

use std::{io, time::Duration};

use rustix::io::Errno;

use super::Medium;
use crate::{
    block::{BlockError, ErrorKind},
    format::{
        lsmt::{JournalError, LsmtError},
        uuid::Uuid,
    },
};

/// A writable layer cannot be opened or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpperError {
    /// The file system failed.
    #[error("{name}: cannot {action} a file of a writable layer")]
    Io {
        /// The file.
        name: String,
        /// What was being done.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The journal of a layer cannot be kept or read.
    #[error("{name}: cannot {action} the journal of a writable layer")]
    JournalFile {
        /// The journal, or its folder.
        name: String,
        /// What was being done.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The journal that a process has left is not what it must be.
    #[error(
        "{name}: this journal of writes that were completed and not flushed cannot be used; without the file they are lost, and \
         the layer can be opened"
    )]
    Journal {
        /// The journal.
        name: String,
        /// Where it is wrong, and the rule that it breaks.
        source: JournalError,
    },
    /// A file is not what it must be.
    #[error("{name}: not a file of a writable layer")]
    Format {
        /// The file.
        name: String,
        /// Where it is wrong, and the rule that it breaks.
        source: LsmtError,
    },
    /// The file system has blocks that are too large for a sparse layer.
    #[error(
        "{name}: the blocks of its file system have {block_bytes} bytes, and those of a sparse layer at most 4096: use a \
         log-structured layer here"
    )]
    FileBlocks {
        /// The file.
        name: String,
        /// Size of a block in bytes.
        block_bytes: u64,
    },
    /// A sparse file has too many runs of data.
    #[error("{name}: it has more than {limit} runs of data")]
    Fragmented {
        /// The file.
        name: String,
        /// Most that a layer may have.
        limit: usize,
    },
    /// Somebody else has the layer open, to write to it or to read it as one that is sealed.
    #[error("{0}: another device or process has this layer open")]
    Busy(String),
    /// The device would have no size, or one that is not made of sectors.
    #[error(
        "{name}: a device of {size_bytes} bytes, which are not whole sectors of 512, or none, or too many"
    )]
    Size {
        /// The file.
        name: String,
        /// The size in bytes: the file's, or where that says 0 the one of the layers below.
        size_bytes: u64,
    },
    /// The device would not be made of whole blocks.
    #[error(
        "{name}: a device of {size_bytes} bytes is not made of whole blocks of {block_bytes}, which it shows"
    )]
    Blocks {
        /// The file.
        name: String,
        /// The size in bytes.
        size_bytes: u64,
        /// The logical block of the device in bytes.
        block_bytes: u32,
    },
    /// The device would be smaller than it is.
    #[error(
        "{name}: the device has {device_bytes} bytes and does not shrink to {size_bytes} while it is there: shrink the \
         file system, remove the device, and use `layer resize --shrink`"
    )]
    Shrinks {
        /// The file.
        name: String,
        /// The size in bytes that was asked for.
        size_bytes: u64,
        /// The size of the device in bytes.
        device_bytes: u64,
    },
    /// A sync has failed, now or before: nobody knows which size is durable.
    #[error("{name}: the device cannot be given another size")]
    Unresized {
        /// The file.
        name: String,
        /// What is in the way.
        source: BlockError,
    },
    /// What a dead process has left cannot be made durable.
    #[error("{name}: what was written last cannot be made durable")]
    Unsettled {
        /// The file.
        name: String,
        /// What is in the way.
        source: BlockError,
    },
    /// Writes that were under way have not ended in time. They go on, and so do later ones.
    #[error("{name}: what is being written has not ended after {} ms: nothing was changed, and writes go on", limit.as_millis())]
    Undrained {
        /// The file.
        name: String,
        /// How long was waited.
        limit: Duration,
    },
    /// A layer that is to come over another has something in it.
    #[error("{0}: a layer that takes the place of another must be empty")]
    NotEmpty(String),
    /// A layer that is to come over another makes a device of another size.
    #[error("{name}: it is for a device of {size_bytes} bytes, and this one has {device_bytes}")]
    OtherSize {
        /// The file.
        name: String,
        /// The size that it says, in bytes.
        size_bytes: u64,
        /// The size of the device in bytes.
        device_bytes: u64,
    },
    /// A layer cannot be made a read-only one.
    #[error("{name}: cannot be sealed")]
    Seal {
        /// The file.
        name: String,
        /// The rule that is in the way.
        source: LsmtError,
    },
    /// What was written cannot be made durable, or there is no room for the end of the layer.
    #[error("{name}: cannot be sealed")]
    Unsealed {
        /// The file.
        name: String,
        /// What is in the way.
        source: BlockError,
    },
    /// The layer was made over another one.
    #[error(
        "{name}: its parent is {parent}, but the layer below it is {below}; give the layers that it was made over"
    )]
    Parent {
        /// The upper of the two.
        name: String,
        /// The UUID that it names.
        parent: Uuid,
        /// The UUID of the layer below.
        below: Uuid,
    },
}

/// What an answer of the file system means for a request.
pub(super) fn kind_of(error: &io::Error) -> ErrorKind {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    }
}

/// An operation of the file system has failed while a layer was opened, made or sealed.
pub(super) fn failed<M: Medium>(file: &M, action: &'static str, source: io::Error) -> UpperError {
    UpperError::Io { name: file.to_string(), action, source }
}

/// A file breaks a rule of the format.
pub(super) fn wrong<M: Medium>(file: &M, source: LsmtError) -> UpperError {
    UpperError::Format { name: file.to_string(), source }
}
