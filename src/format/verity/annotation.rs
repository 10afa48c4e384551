//! What the descriptor of a layer says of the tree in its blob.

use std::{fmt, str::FromStr};

use super::{BLOCK_BYTES, END_BYTES, TreeShape, VerityError};
use crate::format::oci::Digest;

/// The annotation's key. What containerd's snapshotters are told of a layer are annotations with this beginning.
pub const VERITY: &str = "containerd.io/snapshot/stratabd/verity";

/// The tree of a blob, as its descriptor has it: `sha256:DIGEST;4096;OFFSET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Verity {
    digest: Digest,
    tree_offset: u64,
}

impl Verity {
    /// The tree with this digest, as fs-verity measures it, over the first `tree_offset` bytes of its blob, behind which it lies.
    ///
    /// # Errors
    /// [`VerityError::Offset`] and [`VerityError::TooLong`].
    pub fn new(digest: Digest, tree_offset: u64) -> Result<Self, VerityError> {
        TreeShape::new(tree_offset)?;
        match tree_offset > 0 && tree_offset.is_multiple_of(BLOCK_BYTES) {
            true => Ok(Self { digest, tree_offset }),
            false => Err(VerityError::Offset { offset: tree_offset }),
        }
    }

    /// The digest, which covers the size of what the tree is of.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Where the tree lies in the blob, in bytes; what is before it is what it is of.
    #[must_use]
    pub fn tree_offset(&self) -> u64 {
        self.tree_offset
    }

    /// The shape of the tree in a blob of `size_bytes`.
    ///
    /// # Errors
    /// [`VerityError::Size`] where that is not what a blob with such a tree has.
    pub fn shape_in(&self, size_bytes: u64) -> Result<TreeShape, VerityError> {
        let shape = TreeShape::new(self.tree_offset)?;
        let expected_bytes = self.tree_offset.saturating_add(shape.tree_bytes()).saturating_add(END_BYTES);
        match expected_bytes == size_bytes {
            true => Ok(shape),
            false => Err(VerityError::Size { expected_bytes, size_bytes }),
        }
    }
}

impl fmt::Display for Verity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};{BLOCK_BYTES};{}", self.digest, self.tree_offset)
    }
}

impl FromStr for Verity {
    type Err = VerityError;

    fn from_str(text: &str) -> Result<Self, VerityError> {
        let mut fields = text.split(';');
        let mut field = || fields.next().ok_or(VerityError::Form);
        let digest: Digest = field()?.parse().map_err(|_| VerityError::Form)?;
        let block_bytes: u64 = field()?.parse().map_err(|_| VerityError::Form)?;
        let tree_offset: u64 = field()?.parse().map_err(|_| VerityError::Form)?;
        if block_bytes != BLOCK_BYTES {
            return Err(VerityError::BlockSize);
        }
        let verity = Self::new(digest, tree_offset)?;
        // Two texts never mean the same: nobody reads one of them in another way.
        if verity.to_string() == text { Ok(verity) } else { Err(VerityError::Form) }
    }
}
