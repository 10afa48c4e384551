//! The engine: a stack of read-only layers as one block device.
//!
//! [`Image::open`] opens 1 to 255 layers concurrently, each a blob behind a [`BlobSource`](crate::source::BlobSource),
//! and merges their indexes into one. An [`Image`] is shared by all its devices; each of their [queues](ImageQueue) reads on
//! its own reactor, and waits only for the blobs that a request needs. On the way to bytes that are near, only the cache of
//! decoded blocks takes a lock, that of one shard for a moment.

mod decoded;
mod device;
mod error;
pub mod index;
mod layer;
mod metrics;
mod open_image;
mod read;
mod standing;
pub mod superblock;

pub use device::{DECODED_CACHE_BYTES, Image, ImageOptions, ImageQueue};
pub use error::{ImageError, LayerError};
pub use layer::{Compression, DamagedBlock, Layer, LayerDescription, VerifyReport};
pub use metrics::{ClassMetrics, ImageMetrics, ReadMetrics, SourceClass};
