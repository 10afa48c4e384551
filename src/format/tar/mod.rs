//! Tar, for two purposes: the [`envelope`] that makes a registry take an overlaybd blob for a layer, and the [`archive`] of
//! files that an ordinary layer is. [`members`] finds those of an archive that is read in place.

mod block;

pub mod archive;
pub mod envelope;
pub mod members;

pub use envelope::{ALIGNMENT, Envelope, HEAD_BYTES, SecondMember, TarError};
