//! Tells right blocks of a blob from wrong ones.

use super::{TreeShape, digest_of, hash_of};
use crate::format::oci::Digest;

/// The rule that a block breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WrongBlock {
    /// A block is as long as it is said to be.
    #[error("block {block} has {len} bytes, and not {expected_len}")]
    Length {
        /// Its number.
        block: u64,
        /// Its length in bytes.
        len: usize,
        /// What the shape of the tree says.
        expected_len: usize,
    },
    /// Its hash is the one in the block above.
    #[error("the hash of block {block} is not the one that block {parent} of the Merkle tree has for it")]
    Hash {
        /// Its number.
        block: u64,
        /// That of the block that has its hash.
        parent: u64,
    },
    /// The hash of the topmost block makes the digest.
    #[error("block {block} at the top of the Merkle tree does not lead to the digest of the annotation")]
    Root {
        /// Its number.
        block: u64,
    },
    /// Behind the tree the archive ends.
    #[error("block {block} is not the zeroes at the end")]
    End {
        /// Its number.
        block: u64,
    },
    /// Data, tree and the end are all that there is.
    #[error("there is no block {block}")]
    Outside {
        /// Its number.
        block: u64,
    },
}

/// The shape of a tree and the digest that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    shape: TreeShape,
    digest: Digest,
}

impl Verifier {
    /// That of the tree of this shape whose descriptor has this digest.
    #[must_use]
    pub fn new(shape: TreeShape, digest: Digest) -> Self {
        Self { shape, digest }
    }

    /// Where the blocks lie.
    #[must_use]
    pub fn shape(&self) -> &TreeShape {
        &self.shape
    }

    /// Says whether `bytes` are those of `block`. `parent` has the bytes of the block that [`TreeShape::parent`] names, which were
    /// found right; it is not looked at for a block without one. The zeroes behind the tree are its last block.
    ///
    /// # Errors
    /// [`WrongBlock`], also where `parent` is too short.
    pub fn check(&self, block: u64, bytes: &[u8], parent: &[u8]) -> Result<(), WrongBlock> {
        let expected_len = self.shape.len_of(block).ok_or(WrongBlock::Outside { block })?;
        if bytes.len() != expected_len {
            return Err(WrongBlock::Length { block, len: bytes.len(), expected_len });
        }
        if block == self.shape.tree_blocks().end {
            return match bytes.iter().all(|byte| *byte == 0) {
                true => Ok(()),
                false => Err(WrongBlock::End { block }),
            };
        }
        let hash = hash_of(bytes);
        let is_right = match self.shape.parent(block) {
            Some((_, place)) => parent.get(place).is_some_and(|expected| expected == hash),
            None => digest_of(self.shape.data_bytes(), &hash) == self.digest,
        };
        match (is_right, self.shape.parent(block)) {
            (true, _) => Ok(()),
            (false, Some((parent, _))) => Err(WrongBlock::Hash { block, parent }),
            (false, None) => Err(WrongBlock::Root { block }),
        }
    }
}
