//! Why a manifest does not lead to a device.

use std::sync::Arc;

use super::{DOCUMENT_LIMIT_BYTES, LAYER_COUNT_LIMIT};
use crate::format::verity::VerityError;

/// A kind of overlaybd layer that exists but is not served yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// The layer is an index into an ordinary tar layer.
    #[error("TurboOCI layers")]
    TurboOci,
    /// The topmost layer holds a trace of what to read ahead.
    #[error("acceleration layers")]
    Acceleration,
}

/// The rule that the descriptor of a layer breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayerRule {
    /// The annotation names a digest.
    #[error("its annotation {annotation} is not a digest")]
    NotDigest {
        /// The annotation's key.
        annotation: &'static str,
    },
    /// The annotation names a size.
    #[error("its annotation {annotation} is not a decimal number")]
    NotSize {
        /// The annotation's key.
        annotation: &'static str,
    },
    /// An annotation says the same as the descriptor.
    #[error("its annotation {annotation} contradicts the descriptor")]
    Contradiction {
        /// The annotation's key.
        annotation: &'static str,
    },
    /// The annotation says where the blob has a Merkle tree.
    #[error("its annotation {annotation}: {rule}")]
    Verity {
        /// The annotation's key.
        annotation: &'static str,
        /// What is wrong with it.
        rule: VerityError,
    },
    /// The format's version is one that is known.
    #[error("its overlaybd version {0:?} is not known, only 0.1.0 is")]
    Version(String),
    /// The blob is the layer of an image.
    #[error("its media type {0:?} is not that of a layer")]
    MediaType(String),
    /// All layers or none are of overlaybd.
    #[error("it is an ordinary layer among overlaybd layers")]
    Ordinary,
}

/// Why a document does not lead to a device.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// A body longer than any manifest.
    #[error("manifest of {0} bytes is longer than {DOCUMENT_LIMIT_BYTES}")]
    TooLong(usize),
    /// Not JSON, or not with the fields that a manifest has.
    #[error("manifest is malformed at line {}, column {}", .0.line(), .0.column())]
    Malformed(#[source] Arc<serde_json::Error>),
    /// Neither a manifest nor an index.
    #[error("media type {0:?} is neither an image manifest nor an image index")]
    Kind(String),
    /// An older schema, or a newer one.
    #[error("manifest schema version {0} is not supported, only 2 is")]
    SchemaVersion(u64),
    /// No manifest of the index is for the wanted platform.
    #[error("image index has no manifest for {wanted}, only for: {offered}")]
    NoPlatform {
        /// What was wanted.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// The manifest lists no layer.
    #[error("image has no layers")]
    NoLayers,
    /// More layers than a stack may have.
    #[error("image has {0} layers, more than the {LAYER_COUNT_LIMIT} that a stack may have")]
    TooManyLayers(usize),
    /// None of the layers is of overlaybd.
    #[error(
        "this is an ordinary OCI image, not an overlaybd one: `ublk-ctl add` converts it, unless `--no-convert` is given, \
         and `ublk-ctl convert IMAGE TARGET` makes one of it elsewhere"
    )]
    Ordinary,
    /// The image needs what is not there yet.
    #[error("image uses {0}, which are not yet supported")]
    Unsupported(Unsupported),
    /// One layer breaks a rule.
    #[error("layer {number} of the image: {rule}")]
    Layer {
        /// Its number, from 0 at the bottom.
        number: usize,
        /// What is wrong with it.
        rule: LayerRule,
    },
}

impl From<serde_json::Error> for OciError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(Arc::new(error))
    }
}
