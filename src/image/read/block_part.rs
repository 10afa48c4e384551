//! The parts of a request that lie in compressed blocks.

use crate::image::{LayerError, decoded::BlockKey, layer::Layer};

/// Some bytes of one block and where they go.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockPart {
    /// The block.
    pub(super) key: BlockKey,
    /// Start in the decoded block, in bytes.
    pub(super) within: u32,
    /// Length in bytes.
    pub(super) len: u32,
    /// Start in the step's destination, in bytes.
    pub(super) dest: u32,
}

impl BlockPart {
    /// Its part of the destination.
    pub(super) fn place<'a>(&self, dest: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let start = self.dest as usize;
        dest.get_mut(start..start + self.len as usize)
    }

    /// Copies it out of its decoded block; `None` where the block or the destination is too short.
    pub(super) fn copy(&self, block: &[u8], dest: &mut [u8]) -> Option<()> {
        let start = self.within as usize;
        self.place(dest)?.copy_from_slice(block.get(start..start + self.len as usize)?);
        Some(())
    }
}

/// The error of a part that lies outside its layer, which opening the layer has ruled out.
pub(super) fn outside() -> LayerError {
    LayerError::Inconsistent
}

/// Cuts `len` bytes at `offset` of the LSMT file of the layer of this rank, which go to `dest`, into parts of single blocks.
pub(super) fn cut(
    parts: &mut Vec<BlockPart>,
    (rank, layer): (u8, &Layer),
    block_bytes: u32,
    (offset, len, dest): (u64, usize, usize),
) -> Option<()> {
    let size = u64::from(block_bytes);
    let mut number = u32::try_from(offset >> block_bytes.trailing_zeros()).ok()?;
    let mut within = u32::try_from(offset & (size - 1)).ok()?;
    let first = BlockKey::new(rank, layer, number);
    let (mut left, mut at) = (u32::try_from(len).ok()?, u32::try_from(dest).ok()?);
    while left > 0 {
        let part = left.min(block_bytes - within);
        parts.push(BlockPart { key: BlockKey { block: number, ..first }, within, len: part, dest: at });
        left -= part;
        at += part;
        number = number.checked_add(1)?;
        within = 0;
    }
    Some(())
}
