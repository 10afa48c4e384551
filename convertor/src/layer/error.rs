//! Why a blob does not lead to an archive.

use std::io;

use super::Compression;

/// What is wrong with a blob, and where. Offsets are in bytes from the start of the blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The blob could not be read.
    #[error("layer at offset {offset}: it cannot be read")]
    Io {
        /// Where the bytes lie that were wanted.
        offset: u64,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The blob has the magic bytes of a compression that OCI does not know.
    #[error("layer at offset 0: it is compressed with {0}, and only gzip, zstd and none are known")]
    Unsupported(&'static str),
    /// A decoder could not be made.
    #[error("layer: no decoder for {compression}: {reason}")]
    Decoder {
        /// Of what.
        compression: Compression,
        /// In the words of the decoder.
        reason: String,
    },
    /// A member of gzip or frame of zstd is damaged.
    #[error("layer at offset {offset}: {compression} is damaged at or before it, since {start}: {reason}")]
    Damaged {
        /// What it is compressed with.
        compression: Compression,
        /// Where the member or frame starts.
        start: u64,
        /// How far it was read.
        offset: u64,
        /// In the words of the decoder.
        reason: String,
    },
    /// The blob ends inside of a member or frame.
    #[error("layer at offset {offset}: it ends here, inside of {compression} that starts at {start}")]
    Truncated {
        /// What it is compressed with.
        compression: Compression,
        /// Where the member or frame starts.
        start: u64,
        /// Length of the blob.
        offset: u64,
    },
    /// After a member or frame comes what is none.
    #[error("layer at offset {offset}: what follows the compressed data is no {compression}")]
    Trailing {
        /// What it is compressed with.
        compression: Compression,
        /// Where it begins.
        offset: u64,
    },
}
