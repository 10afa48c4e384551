//! Why there is no tree where one is said to be.

use super::{BLOCK_BYTES, shape::DATA_LIMIT_BYTES};

/// The rule that a tree, or what is said of it, breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerityError {
    /// Three fields, each as it would be written.
    #[error("it is not `sha256:DIGEST;{BLOCK_BYTES};OFFSET`")]
    Form,
    /// The blocks are those of the cache.
    #[error("its blocks are not of {BLOCK_BYTES} bytes")]
    BlockSize,
    /// The tree begins with a block.
    #[error("its tree at {offset} is not at a multiple of {BLOCK_BYTES} from {BLOCK_BYTES} on")]
    Offset {
        /// Where it is said to be, in bytes.
        offset: u64,
    },
    /// More than any blob has.
    #[error("{data_bytes} bytes are more than the {DATA_LIMIT_BYTES} that a tree may be of")]
    TooLong {
        /// What it is said to be of, in bytes.
        data_bytes: u64,
    },
    /// The tree is the last that a blob has.
    #[error("with its tree the blob has {expected_bytes} bytes, and not {size_bytes}")]
    Size {
        /// Size of a blob with such a tree, in bytes.
        expected_bytes: u64,
        /// Size of the blob in bytes.
        size_bytes: u64,
    },
    /// Not as many bytes as a tree was begun for.
    #[error("a tree of {expected_bytes} bytes was begun, and {data_bytes} came")]
    Length {
        /// What was said at its beginning, in bytes.
        expected_bytes: u64,
        /// What came, in bytes.
        data_bytes: u64,
    },
}
