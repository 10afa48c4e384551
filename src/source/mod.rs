//! Immutable bytes addressed by range, wherever they lie: a local file, a registry, a cache in front of one.

mod blob;

pub use blob::{BlobSource, LocalFuture, Readiness, SourceError};
