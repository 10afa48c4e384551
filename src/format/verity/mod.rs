//! A Merkle tree that lies in a blob behind what it is of: what was read of a part is proven right without the rest.
//!
//! The construction is that of fs-verity, with SHA-256, blocks of 4096 bytes and no salt, over the first bytes of the blob, up to
//! the tree. Its hash blocks lie upside down: those of the lowest level first, the one at the top last. So each block, of
//! data or of hashes, is known by its number in the blob, and what proves a block has a higher number than the block itself.
//!
//! [`Verity`] is what a layer's descriptor says of the tree, [`TreeShape`] where its blocks lie, [`Verifier`] tells right
//! blocks from wrong ones, and [`TreeBuilder`] makes them.

mod annotation;
mod builder;
mod error;
mod shape;
#[cfg(test)]
mod tests;
mod verifier;

pub use annotation::{VERITY, Verity};
pub use builder::TreeBuilder;
pub use error::VerityError;
pub use shape::TreeShape;
pub use verifier::{Verifier, WrongBlock};

use sha2::{Digest as _, Sha256};

use super::oci::Digest;

/// Bytes of a block: what a cache keeps and checks on its own, and a page of the systems that this runs on.
pub const BLOCK_BYTES: u64 = BLOCK_LEN as u64;
const BLOCK_LEN: usize = 4096;

/// Bytes of a hash.
const HASH_BYTES: usize = 32;
/// Hashes of a block.
const HASHES: u64 = (BLOCK_LEN / HASH_BYTES) as u64;

/// Zeroes behind the tree: the end of the archive that a blob is.
pub const END_BYTES: u64 = 1024;

/// The bytes of a block.
pub type Block = [u8; BLOCK_LEN];

type Hash = [u8; HASH_BYTES];

/// The hash of a block, which counts with zeroes up to its end.
fn hash_of(bytes: &[u8]) -> Hash {
    let missing = BLOCK_LEN.saturating_sub(bytes.len());
    let mut hash = Sha256::new_with_prefix(bytes);
    hash.update([0; BLOCK_LEN].get(..missing).unwrap_or_default());
    hash.finalize().into()
}

/// The digest that the kernel would measure of a file of so many bytes with this hash at the top of its tree.
fn digest_of(data_bytes: u64, root: &Hash) -> Digest {
    // Version, SHA-256, the logarithm of the block's size, no salt, a field that is reserved; and after the size and the root
    // room for a longer hash, for a salt and what else may come.
    let head = [1, 1, 12, 0, 0, 0, 0, 0];
    let hash = Sha256::new().chain_update(head).chain_update(data_bytes.to_le_bytes()).chain_update(root);
    Digest::from_hash(hash.chain_update([0; 208]).finalize().into())
}
