//! Why an image cannot be opened, or a layer cannot be read.

use crate::{
    block::{BlockError, ErrorKind},
    format::{lsmt::LsmtError, tar::TarError, zfile::ZfileError},
    source::SourceError,
};

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is nothing to open.
    #[error("an image needs at least one layer")]
    NoLayers,
    /// The stack is higher than the format allows.
    #[error("{count} layers are more than the {limit} that an image may have")]
    TooManyLayers {
        /// Layers given.
        count: usize,
        /// Layers allowed.
        limit: usize,
    },
    /// The index of the stack would take more memory than is granted.
    #[error("the layers have {count} segments or more together, and an image may have {limit}")]
    TooManySegments {
        /// Segments of the layers that had been read by then.
        count: usize,
        /// Segments allowed.
        limit: usize,
    },
    /// No layer says how large the device is.
    #[error("none of the layers has a virtual size, or the highest that has one less than a sector")]
    NoSize,
    /// One layer cannot be opened.
    #[error("layer {name} cannot be opened")]
    Layer {
        /// The blob's name.
        name: String,
        /// What is wrong with it.
        source: LayerError,
    },
    /// A layer was not what its digest says, and the image is made of what was read of it.
    #[error(
        "{blob} was another blob than that of its digest when the image was opened: detach it and attach it again"
    )]
    Refuted {
        /// The digest.
        blob: String,
    },
    /// The first sectors of the device cannot be read.
    #[error("the file system's superblock cannot be read")]
    Superblock(#[from] BlockError),
}

/// What is wrong with one layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// Its bytes cannot be had.
    #[error("its bytes cannot be read")]
    Source(#[from] SourceError),
    /// Its tar envelope is wrong.
    #[error("its tar envelope is wrong")]
    Tar(#[from] TarError),
    /// It is a damaged ZFile, or one that is not supported. Offsets count from the start of the ZFile.
    #[error("its ZFile is wrong, {start} bytes into the blob")]
    Zfile {
        /// Where the ZFile starts in the blob, in bytes.
        start: u64,
        /// The rule and the offset.
        source: ZfileError,
    },
    /// It is no LSMT layer, or a damaged one. Offsets count from the start of the LSMT file.
    #[error("its LSMT layer is wrong")]
    Lsmt(#[from] LsmtError),
    /// A part of it lies outside.
    #[error("{len} bytes at offset {offset} are outside its content of {content_bytes} bytes")]
    Outside {
        /// Start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the LSMT file in bytes.
        content_bytes: u64,
    },
    /// The merged index and the layer disagree; checks at open rule this out.
    #[error("the index names bytes that the layer does not have")]
    Inconsistent,
    /// It claims to be larger than the index can address.
    #[error("its content of {content_bytes} bytes is larger than the {limit_bytes} that are supported")]
    TooLarge {
        /// Size of the LSMT file in bytes.
        content_bytes: u64,
        /// Largest size in bytes.
        limit_bytes: u64,
    },
    /// Its table of compressed blocks would take more memory than is granted.
    #[error("its table of blocks has {table_bytes} bytes, more than the {limit_bytes} that are supported")]
    TableTooLarge {
        /// Size of the table in the file, in bytes.
        table_bytes: u64,
        /// Largest size in bytes.
        limit_bytes: u64,
    },
    /// The reactor's pool cannot hold one run of blocks.
    #[error("no buffer can be had")]
    Buffer(#[from] crate::reactor::BufferError),
}

impl LayerError {
    /// Whether the bytes arrived and broke a rule, so that other bytes from the origin might keep it.
    pub(super) fn is_about_content(&self) -> bool {
        matches!(self, Self::Tar(_) | Self::Zfile { .. } | Self::Lsmt(_) | Self::Outside { .. })
    }

    /// The error of a read, with the name of the blob that failed it.
    pub(super) fn in_blob(self, name: &str) -> BlockError {
        match self {
            Self::Source(error) => error.into(),
            other => BlockError::with_source(ErrorKind::Io, format!("{name}: cannot be read"), other),
        }
    }
}
