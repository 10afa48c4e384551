//! Why a writable layer cannot be opened or made.

use std::io;

use crate::format::{lsmt::LsmtError, uuid::Uuid};

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
    /// A file is not what it must be.
    #[error("{name}: not a file of a writable layer")]
    Format {
        /// The file.
        name: String,
        /// Where it is wrong, and the rule that it breaks.
        source: LsmtError,
    },
    /// The data file is of another kind.
    #[error("{name}: its header at offset 0 says that it is {}sparse", if *.sparse { "" } else { "not " })]
    Kind {
        /// The file.
        name: String,
        /// What it says.
        sparse: bool,
    },
    /// Somebody else has the layer open.
    #[error("{0}: another device or process has this writable layer open")]
    Busy(String),
    /// The device would have no size, or one that is not made of sectors.
    #[error("{name}: a device of {size_bytes} bytes, which are not one or more whole sectors of 512")]
    Size {
        /// The file.
        name: String,
        /// The size in bytes: the file's, or where that says 0 the one of the layers below.
        size_bytes: u64,
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
