//! Immutable bytes addressed by range, wherever they lie: a local file, a registry, a cache in front of one.

mod blob;
mod boot;
mod file;
mod local_file;
mod origin;
mod refutation;
mod registry_origin;
mod uncached;

pub use blob::{BlobSource, DirectMark, LocalFuture, Place, Readiness, SourceError};
pub use boot::{BOOT_ID_PATH, boot_id};
pub use file::{FileSource, check_bounds, open_regular};
pub use local_file::{FileLock, LocalFile};
pub use origin::{BoxFuture, Origin, Urgency, WrongLength, check_length};
pub use refutation::Refutation;
pub use registry_origin::RegistryOrigin;
pub use uncached::Uncached;
