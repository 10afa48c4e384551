//! Where the blocks of a tree lie.

use std::ops::Range;

use super::{BLOCK_BYTES, END_BYTES, HASH_BYTES, HASHES, VerityError};

/// More bytes than any blob has, and few enough for all sums here.
pub(super) const DATA_LIMIT_BYTES: u64 = 1 << 60;

/// The levels of a tree over so many bytes. Blocks are counted from the start of the data, whose last one may be partial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeShape {
    data_bytes: u64,
    data_blocks: u64,
    /// The blocks of each level of hashes, the lowest first: at most nine, each a 128th of the one below.
    levels: Vec<Range<u64>>,
}

impl TreeShape {
    /// That of a tree over `data_bytes`.
    ///
    /// # Errors
    /// [`VerityError::TooLong`].
    pub fn new(data_bytes: u64) -> Result<Self, VerityError> {
        if data_bytes > DATA_LIMIT_BYTES {
            return Err(VerityError::TooLong { data_bytes });
        }
        let data_blocks = data_bytes.div_ceil(BLOCK_BYTES);
        let (mut levels, mut below, mut first) = (Vec::new(), data_blocks, data_blocks);
        while below > 1 {
            below = below.div_ceil(HASHES);
            levels.push(first..first.saturating_add(below));
            first = first.saturating_add(below);
        }
        Ok(Self { data_bytes, data_blocks, levels })
    }

    /// What the tree is of, in bytes.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Blocks of data.
    #[must_use]
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// The numbers of the blocks of hashes: none where there is one block of data at most.
    #[must_use]
    pub fn tree_blocks(&self) -> Range<u64> {
        self.data_blocks..self.levels.last().map_or(self.data_blocks, |top| top.end)
    }

    /// The size of the tree in bytes.
    #[must_use]
    pub fn tree_bytes(&self) -> u64 {
        let blocks = self.tree_blocks();
        blocks.end.saturating_sub(blocks.start).saturating_mul(BLOCK_BYTES)
    }

    /// The block that has the hash of `block`, and where in it; `None` for the one at the top, and past it.
    #[must_use]
    pub fn parent(&self, block: u64) -> Option<(u64, Range<usize>)> {
        // The level of the block is the first that ends behind it; the data is below them all.
        let above = self.levels.iter().position(|level| block < level.start)?;
        let parents = self.levels.get(above)?;
        let first = match above.checked_sub(1) {
            Some(own) => self.levels.get(own)?.start,
            None => 0,
        };
        let index = block.checked_sub(first)?;
        let parent = parents.start.checked_add(index / HASHES)?;
        let at = usize::try_from(index % HASHES).ok()?.checked_mul(HASH_BYTES)?;
        Some((parent, at..at.checked_add(HASH_BYTES)?))
    }

    /// The levels, the lowest first.
    pub(super) fn levels(&self) -> &[Range<u64>] {
        &self.levels
    }

    /// The length of a block of data, of the tree, or of the end behind it, in bytes.
    pub(super) fn len_of(&self, block: u64) -> Option<usize> {
        let tree = self.tree_blocks();
        let left = self.data_bytes.saturating_sub(block.saturating_mul(BLOCK_BYTES));
        let len = match block {
            data if data < tree.start => left.min(BLOCK_BYTES),
            hashes if hashes < tree.end => BLOCK_BYTES,
            end if end == tree.end => END_BYTES,
            _ => return None,
        };
        usize::try_from(len).ok()
    }
}
