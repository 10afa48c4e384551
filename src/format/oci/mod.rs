//! OCI and Docker documents: which manifest of an index to take, and which blobs of a manifest are overlaybd layers.
//!
//! Give the body that a registry answered to [`Document::decode`]. An [`Index`] is narrowed by [`Index::select`] to the
//! descriptor of one manifest, which is fetched and decoded in turn; [`Manifest::layers`] then lists the layers, or says
//! why this image cannot be served as a device.

mod digest;
mod document;
mod error;
mod layer;
mod platform;
#[cfg(test)]
mod tests;

pub use super::lsmt::LAYER_COUNT_LIMIT;
pub use digest::{Digest, DigestError};
pub use document::{DOCUMENT_LIMIT_BYTES, Descriptor, Document, Index, MANIFEST_MEDIA_TYPES, Manifest};
pub use error::{LayerRule, OciError, Unsupported};
pub use layer::{FS_TYPE, Layer};
pub use platform::{Platform, PlatformError};
