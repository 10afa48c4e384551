//! Tar, for two purposes: the [`envelope`] that makes a registry take an overlaybd blob for a layer, and the [`archive`] of
//! files that an ordinary layer is.

mod block;

pub mod archive;
pub mod envelope;

pub use envelope::{ALIGNMENT, Envelope, HEAD_BYTES, SecondMember, TarError};
