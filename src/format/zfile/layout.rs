//! Where the parts of a ZFile lie and how its blocks are made, checked against the size of the file.

use super::{Flags, Header, SLOT_BYTES, SlotRule, ZfileError};
use crate::block::ByteRange;

/// Smallest block of the content in bytes: no tool writes a smaller one.
pub const BLOCK_SIZE_MIN: u32 = 4096;

/// Largest block of the content in bytes: upstream refuses more when it reads.
pub const BLOCK_SIZE_MAX: u32 = 65536;

/// Most blocks of a file: upstream refuses more. A table this long has 4 GB, and the file must hold it.
pub const BLOCK_COUNT_LIMIT: u64 = 1_000_000_000;

/// Longest table of blocks that is held in memory, in bytes of the file: 4 for each of 64 Mi blocks, which have at least 256 GiB of
/// content. No longer one is written either.
pub const TABLE_LIMIT_BYTES: u64 = 256 << 20;

/// Bytes of the checksum after a block.
pub(super) const CHECKSUM_BYTES: u32 = 4;
/// Bytes of an entry of the table of sizes.
pub(super) const ENTRY_BYTES: u64 = 4;

const SLOT: u64 = SLOT_BYTES as u64;

/// A compressor whose blocks can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// One LZ4 block, without a frame.
    Lz4,
    /// One ZSTD frame.
    Zstd,
}

/// What the first bytes of a ZFile come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The header was rewritten at the end and says it all.
    Complete(Layout),
    /// The trailer in these bytes of the file says it.
    TrailerAt(ByteRange),
}

/// Everything that the header or trailer in use says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    algorithm: Algorithm,
    verify: bool,
    block_size: u32,
    block_count: u32,
    content_bytes: u64,
    index: ByteRange,
    index_crc: Option<u32>,
}

impl Start {
    /// Reads the first [`SLOT_BYTES`] of a ZFile of `size_bytes`.
    ///
    /// # Errors
    /// [`ZfileError::TooSmall`] and [`ZfileError::Slot`].
    pub fn decode(head: &[u8], size_bytes: u64) -> Result<Self, ZfileError> {
        let header = Header::decode(head, 0)?;
        require(header.flags.contains(Flags::HEADER), 0, SlotRule::Position)?;
        require(header.flags.contains(Flags::DATA), 0, SlotRule::NotData)?;
        if header.flags.contains(Flags::FINAL) {
            // What follows the table is not read then, so a file without its trailer is whole.
            return Layout::new(&header, 0, size_bytes).map(Self::Complete);
        }
        Layout::trailer_range(size_bytes).map(Self::TrailerAt)
    }
}

impl Layout {
    fn trailer_range(size_bytes: u64) -> Result<ByteRange, ZfileError> {
        match size_bytes.checked_sub(SLOT) {
            Some(start) if start >= SLOT => Ok(ByteRange::between(start, size_bytes)),
            _ => Err(ZfileError::TooSmall { size_bytes }),
        }
    }

    /// Reads the bytes that [`Start::TrailerAt`] names, of a ZFile of `size_bytes`.
    ///
    /// # Errors
    /// [`ZfileError::TooSmall`] and [`ZfileError::Slot`].
    pub fn from_trailer(trailer: &[u8], size_bytes: u64) -> Result<Self, ZfileError> {
        let offset = Self::trailer_range(size_bytes)?.start();
        let header = Header::decode(trailer, offset)?;
        require(!header.flags.contains(Flags::HEADER), offset, SlotRule::Position)?;
        require(header.flags.contains(Flags::DATA), offset, SlotRule::NotData)?;
        require(header.flags.contains(Flags::SEALED), offset, SlotRule::Unsealed)?;
        Self::new(&header, offset, offset)
    }

    /// The layout that the slot at `offset` tells, whose table must end by `limit`.
    fn new(header: &Header, offset: u64, limit: u64) -> Result<Self, ZfileError> {
        let refused = |rule| ZfileError::Slot { offset, rule };
        let algorithm = match header.algorithm {
            1 => Algorithm::Lz4,
            2 => Algorithm::Zstd,
            other => return Err(refused(SlotRule::Algorithm(other))),
        };
        require(!header.uses_dictionary && header.dictionary_bytes == 0, offset, SlotRule::Dictionary)?;
        require(!header.flags.contains(Flags::COMPRESSED_INDEX), offset, SlotRule::CompressedIndex)?;
        let Header { block_size, index_offset, index_count: count, content_bytes, .. } = *header;
        let sound = block_size.is_power_of_two() && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size);
        require(sound, offset, SlotRule::BlockSize(block_size))?;
        require(count <= BLOCK_COUNT_LIMIT, offset, SlotRule::TooManyBlocks(count))?;
        let block_count = u32::try_from(count).map_err(|_| refused(SlotRule::TooManyBlocks(count)))?;
        let enough = content_bytes.div_ceil(u64::from(block_size)) == count;
        require(enough, offset, SlotRule::BlockCount { count, content_bytes, block_size })?;
        let index = ByteRange::new(index_offset, count.saturating_mul(ENTRY_BYTES))
            .ok()
            .filter(|index| index.start() >= SLOT && index.end() <= limit)
            .ok_or(refused(SlotRule::IndexPlace { index_offset, count }))?;
        let index_crc = header.flags.contains(Flags::DIGESTS).then_some(header.index_crc);
        Ok(Self {
            algorithm,
            verify: header.verify,
            block_size,
            block_count,
            content_bytes,
            index,
            index_crc,
        })
    }

    /// The compressor of all blocks.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether a checksum follows every block. Then it is always checked.
    #[must_use]
    pub fn verify(&self) -> bool {
        self.verify
    }

    /// Size of a block of the content in bytes; the last block may be shorter.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Number of blocks.
    #[must_use]
    pub fn block_count(&self) -> u32 {
        self.block_count
    }

    /// Size of the content in bytes.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// The bytes of the file that hold the table of sizes.
    #[must_use]
    pub fn index_range(&self) -> ByteRange {
        self.index
    }

    /// The checksum of the table, where there is one.
    #[must_use]
    pub fn index_crc(&self) -> Option<u32> {
        self.index_crc
    }

    /// Fewest bytes that a block takes in the file: at least one, and its checksum.
    pub(super) fn encoded_min(&self) -> u32 {
        if self.verify { CHECKSUM_BYTES.saturating_add(1) } else { 1 }
    }

    /// Most bytes that a block takes in the file. Data that does not shrink grows: LZ4 by at most n/255 + 16 bytes,
    /// ZSTD by at most n/256 + 62 for blocks of 4 KiB and more; and the checksum follows.
    pub(super) fn encoded_max(&self) -> u32 {
        self.block_size
            .saturating_add(self.block_size / 255)
            .saturating_add(64)
            .saturating_add(CHECKSUM_BYTES)
    }
}

fn require(holds: bool, offset: u64, rule: SlotRule) -> Result<(), ZfileError> {
    if holds { Ok(()) } else { Err(ZfileError::Slot { offset, rule }) }
}
