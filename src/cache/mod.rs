//! The shared cache: a source that remembers.
//!
//! One folder holds the bytes of blobs by digest; all devices of a process, and several processes, share it. A read of
//! present bytes is a look at a bitmap and a read of a file, in the caller's thread and without a lock; what another
//! process or boot has left is first held against its checksum, once. A miss becomes a fetch on the cache's own thread,
//! shared by all who want the same bytes, wherever they wait.
//!
//! Where things are: [`presence`](self) and `ledger` say what is present, in memory and on disk; `flight` and `fetch`
//! bring what is missing; `stream` decides how much; `lock` keeps processes apart; `folder` and `shelves` keep others out;
//! `evict` keeps the limit. A disk that fails or is full makes the cache slower, never wrong: reads go on with the bytes as
//! they arrive, and a blob whose entry cannot be opened is read past the cache until it can, by `late`.
//!
//! What is present is only as true as its origin as long as parts are missing: single ranges of a blob cannot be checked
//! against its digest. The checksums of the formats above are, and what they refute is forgotten by
//! [`BlobSource::invalidate`]. Once a blob is whole, `verify` holds it against its digest. Where the blob has a Merkle tree, each
//! part is proven before it gets here, and by `prove` when another process or boot has left it.
//!
//! [`BlobSource::invalidate`]: crate::source::BlobSource::invalidate

mod blob;
mod budget;
mod config;
#[cfg(test)]
mod crash_tests;
mod doors;
mod entry;
mod error;
mod evict;
mod fetch;
mod files;
mod flight;
mod folder;
mod grain;
mod guard;
mod holdings;
mod key;
mod late;
mod ledger;
mod lock;
mod map_file;
mod medium;
mod metrics;
mod open;
mod presence;
mod prove;
mod request;
mod shelves;
mod sparse;
mod store;
mod stream;
#[cfg(test)]
mod tests;
mod verify;
mod writes;

pub use blob::CachedBlob;
pub use config::CacheConfig;
pub use error::CacheError;
pub use folder::{PrivateFolder, Untrusted};
pub use map_file::{MapError, MapHeader, MapKind, Sums, decode_map, decode_sectors};
pub use metrics::CacheMetrics;
pub use store::Cache;
