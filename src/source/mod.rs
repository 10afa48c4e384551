//! Immutable bytes addressed by range, wherever they lie: a local file, a registry, a cache in front of one.

mod blob;
#[cfg(test)]
mod blob_with_tree;
mod boot;
mod file;
mod local_file;
mod origin;
mod proof;
mod refutation;
mod registry_origin;
mod uncached;
mod verified;

pub use crate::format::verity::{Verity, VerityError, WrongBlock};
pub use blob::{BlobSource, DirectMark, LocalFuture, Place, Readiness, SourceError};
#[cfg(test)]
pub(crate) use blob_with_tree::BlobWithTree;
pub use boot::{BOOT_ID_PATH, boot_id};
pub use file::{FileSource, check_bounds, open_regular};
pub use local_file::{FileLock, LocalFile};
pub use origin::{BoxFuture, Origin, Urgency, WrongLength, check_length};
pub use proof::{Blocks, Proof, ProofPath, Verdict, blocks_in, blocks_of};
pub use refutation::Refutation;
pub use registry_origin::RegistryOrigin;
pub use uncached::Uncached;
pub use verified::{ProofMetrics, VerifiedOrigin};
