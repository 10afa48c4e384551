//! A blob with a Merkle tree, for tests of what proves it.

use bytes::Bytes;

use crate::format::verity::{BLOCK_BYTES, END_BYTES, TreeBuilder, TreeShape, Verity, VerityError};

/// Content, its tree, and the zeroes at the end.
pub(crate) struct BlobWithTree {
    /// All of it.
    pub(crate) bytes: Bytes,
    /// What is said of the tree.
    pub(crate) verity: Verity,
}

impl BlobWithTree {
    /// That of `content`, which is whole blocks.
    pub(crate) fn of(content: Vec<u8>) -> Self {
        let mut bytes = content;
        let shape = TreeShape::new(bytes.len() as u64).unwrap();
        let end = bytes.len() as u64 + shape.tree_bytes() + END_BYTES;
        let mut tree = Vec::new();
        let mut builder = TreeBuilder::new(shape);
        let mut put = |number: u64, block: &[u8; 4096]| {
            tree.push((number, *block));
            Ok::<(), VerityError>(())
        };
        builder.push(&bytes, &mut put).unwrap();
        let verity = Verity::new(builder.finish(&mut put).unwrap(), bytes.len() as u64).unwrap();
        bytes.resize(usize::try_from(end).unwrap(), 0);
        for (number, block) in tree {
            let at = usize::try_from(number * BLOCK_BYTES).unwrap();
            bytes[at..at + block.len()].copy_from_slice(&block);
        }
        Self { bytes: bytes.into(), verity }
    }

    /// Where the content ends.
    pub(crate) fn content_bytes(&self) -> usize {
        usize::try_from(self.verity.tree_offset()).unwrap()
    }
}
