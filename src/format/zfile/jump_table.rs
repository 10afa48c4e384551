//! Where each compressed block of a ZFile is: 4 bytes a block and 8 bytes for every 1024 blocks in memory.

use super::{super::crc, Layout, SLOT_BYTES, ZfileError, layout::ENTRY_BYTES};
use crate::block::ByteRange;

/// Blocks that share a base. The largest group then spans 1024 blocks of at most 65,861 bytes, 67 MB, so a distance
/// from the base fits in 32 bits with room to spare.
const GROUP_BLOCKS: usize = 1024;

/// The checked table of block sizes, as positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JumpTable {
    layout: Layout,
    /// Where the first block of each group starts in the file.
    bases: Vec<u64>,
    /// How far each block starts after its group's base.
    deltas: Vec<u32>,
}

/// One block: where it is in the file and what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its number, from 0.
    pub number: u32,
    /// Its bytes in the file, checksum included.
    pub encoded: ByteRange,
    /// The bytes of the content that it decodes to.
    pub content: ByteRange,
}

/// Neighbouring blocks that together hold a range of the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Numbers of the blocks, never empty.
    pub blocks: std::ops::RangeInclusive<u32>,
    /// Their bytes in the file, checksums included.
    pub encoded: ByteRange,
}

impl JumpTable {
    /// Reads the bytes of [`Layout::index_range`].
    ///
    /// # Errors
    /// [`ZfileError::IndexLength`], [`ZfileError::IndexChecksum`], [`ZfileError::EncodedSize`] and
    /// [`ZfileError::DataEnd`].
    pub fn decode(layout: Layout, bytes: &[u8]) -> Result<Self, ZfileError> {
        let offset = layout.index_range().start();
        let wanted_bytes = layout.index_range().len();
        let given_bytes = bytes.len() as u64;
        if given_bytes != wanted_bytes {
            return Err(ZfileError::IndexLength { offset, given_bytes, wanted_bytes });
        }
        if let Some(stored) = layout.index_crc() {
            let computed = crc::raw(0, bytes);
            if stored != computed {
                return Err(ZfileError::IndexChecksum { offset, stored, computed });
            }
        }
        let (entries, _) = bytes.as_chunks::<4>();
        let allowed = layout.encoded_min()..=layout.encoded_max();
        let mut bases = Vec::with_capacity(entries.len().div_ceil(GROUP_BLOCKS));
        let mut deltas = Vec::with_capacity(entries.len());
        let mut start = SLOT_BYTES as u64;
        for (group, entries) in (0_u32..).step_by(GROUP_BLOCKS).zip(entries.chunks(GROUP_BLOCKS)) {
            bases.push(start);
            let mut delta = 0_u32;
            for (number, entry) in (group..).zip(entries) {
                let encoded_bytes = u32::from_le_bytes(*entry);
                if !allowed.contains(&encoded_bytes) {
                    let offset = offset.saturating_add(ENTRY_BYTES.saturating_mul(u64::from(number)));
                    return Err(ZfileError::EncodedSize { number, offset, encoded_bytes });
                }
                deltas.push(delta);
                // The sizes are within bounds, so a group cannot overflow; see GROUP_BLOCKS.
                delta = delta.saturating_add(encoded_bytes);
            }
            start = start.saturating_add(u64::from(delta));
        }
        if start != offset {
            return Err(ZfileError::DataEnd { offset, data_end: start });
        }
        Ok(Self { layout, bases, deltas })
    }

    /// How the blocks are made.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes of memory that the table takes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of_val(self.bases.as_slice()).saturating_add(size_of_val(self.deltas.as_slice()))
    }

    /// The block of this number, or `None` past the last.
    #[must_use]
    #[inline]
    pub fn block(&self, number: u32) -> Option<Block> {
        let start = self.start(number)?;
        // The blocks end where the table starts: that was checked.
        let end = number
            .checked_add(1)
            .and_then(|next| self.start(next))
            .unwrap_or(self.layout.index_range().start());
        let size = u64::from(self.layout.block_size());
        // There are no more blocks than the content needs, so neither product overflows.
        let content = u64::from(number).saturating_mul(size);
        let content_end = content.saturating_add(size).min(self.layout.content_bytes());
        Some(Block {
            number,
            encoded: ByteRange::between(start, end),
            content: ByteRange::between(content, content_end),
        })
    }

    /// The blocks that hold the bytes `content` of the content: `None` where it is empty or reaches past the end.
    #[must_use]
    #[inline]
    pub fn plan(&self, content: ByteRange) -> Option<Plan> {
        let last_byte = content.end().checked_sub(1).filter(|_| !content.is_empty())?;
        let size = self.layout.block_size();
        let number = |byte: u64| u32::try_from(byte >> size.trailing_zeros()).ok();
        let blocks = number(content.start())?..=number(last_byte)?;
        if content.end() > self.layout.content_bytes() {
            return None;
        }
        let first = self.block(*blocks.start())?;
        let last = self.block(*blocks.end())?;
        Some(Plan { blocks, encoded: ByteRange::between(first.encoded.start(), last.encoded.end()) })
    }

    #[inline]
    fn start(&self, number: u32) -> Option<u64> {
        let at = usize::try_from(number).ok()?;
        let delta = self.deltas.get(at)?;
        let base = self.bases.get(at / GROUP_BLOCKS)?;
        // Every start lies before the table, whose place in the file is a 64-bit number.
        Some(base.wrapping_add(u64::from(*delta)))
    }
}
