//! What stands around the blocks of a ZFile: the slot before them, and after them the table of their sizes and a slot.

use super::{super::crc, Algorithm, BlockFormat, EncodeError, Flags, Header, SLOT_BYTES};

/// Keeps count of the blocks of a file that is being written. It takes four bytes of memory for each.
///
/// The file is: [`Writer::start`], the blocks in order, [`Tail::index`], [`Tail::trailer`]. Whoever can go back then
/// writes [`Tail::header`] over the start, so that readers need not look for the trailer.
#[derive(Debug)]
pub struct Writer {
    format: BlockFormat,
    index: Vec<u8>,
    content_bytes: u64,
    encoded_bytes: u64,
}

/// The end of a file, and its final start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// The table of the sizes of blocks.
    pub index: Vec<u8>,
    /// The slot at the end, of [`SLOT_BYTES`].
    pub trailer: Vec<u8>,
    /// The slot at the start, of [`SLOT_BYTES`], which says all that the trailer says.
    pub header: Vec<u8>,
}

impl Writer {
    /// A file without blocks.
    #[must_use]
    pub fn new(format: BlockFormat) -> Self {
        Self { format, index: Vec::new(), content_bytes: 0, encoded_bytes: 0 }
    }

    /// The slot of [`SLOT_BYTES`] that the file begins with.
    #[must_use]
    pub fn start(&self) -> Vec<u8> {
        let flags = Flags::HEADER.union(Flags::DATA).union(Flags::DIGESTS);
        Self::new(self.format).slot(flags, 0, 0)
    }

    /// Notes the next block: `content_bytes` of the content, `encoded_bytes` in the file with its checksum.
    ///
    /// # Errors
    /// [`EncodeError::BlockLength`] where a block follows a short one, and [`EncodeError::TooManyBlocks`].
    pub fn add(&mut self, content_bytes: u32, encoded_bytes: u32) -> Result<(), EncodeError> {
        let block_size = self.format.block_size();
        let follows_a_short_one = !self.content_bytes.is_multiple_of(u64::from(block_size));
        if follows_a_short_one || content_bytes == 0 || content_bytes > block_size {
            return Err(EncodeError::BlockLength { len: content_bytes as usize, block_size });
        }
        if self.content_bytes >= self.format.content_limit_bytes() {
            return Err(EncodeError::TooManyBlocks(block_size));
        }
        self.index.extend_from_slice(&encoded_bytes.to_le_bytes());
        // Neither overflows: there are at most 64 Mi blocks of 64 KiB.
        self.content_bytes = self.content_bytes.saturating_add(u64::from(content_bytes));
        self.encoded_bytes = self.encoded_bytes.saturating_add(u64::from(encoded_bytes));
        Ok(())
    }

    /// Bytes of the content so far.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Bytes of the file that the blocks take so far.
    #[must_use]
    pub fn encoded_bytes(&self) -> u64 {
        self.encoded_bytes
    }

    /// What follows the last block.
    #[must_use]
    pub fn finish(self) -> Tail {
        let index_offset = self.encoded_bytes.saturating_add(SLOT_BYTES as u64);
        let index_crc = crc::raw(0, &self.index);
        let shared = Flags::DATA.union(Flags::DIGESTS);
        Tail {
            trailer: self.slot(shared.union(Flags::SEALED), index_offset, index_crc),
            header: self.slot(shared.union(Flags::HEADER).union(Flags::FINAL), index_offset, index_crc),
            index: self.index,
        }
    }

    fn count(&self) -> u64 {
        (self.index.len() / 4) as u64
    }

    fn slot(&self, flags: Flags, index_offset: u64, index_crc: u32) -> Vec<u8> {
        let header = Header {
            flags,
            index_offset,
            index_count: self.count(),
            content_bytes: self.content_bytes,
            index_crc,
            block_size: self.format.block_size(),
            algorithm: match self.format.algorithm() {
                Algorithm::Lz4 => 1,
                Algorithm::Zstd => 2,
            },
            level: 0,
            uses_dictionary: false,
            dictionary_bytes: 0,
            verify: true,
        };
        header.encode()
    }
}
