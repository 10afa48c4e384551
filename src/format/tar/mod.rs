//! Tar: the [`envelope`] that makes a registry take an overlaybd blob for a layer.

pub mod envelope;

pub use envelope::{Envelope, HEAD_BYTES, TarError};
