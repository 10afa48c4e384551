//! Compresses one block at a time, with contexts that are made once.

use std::fmt;

use zstd::bulk::Compressor;

use super::{
    super::crc,
    Algorithm, BLOCK_CRC_SEED, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, TABLE_LIMIT_BYTES,
    layout::{CHECKSUM_BYTES, ENTRY_BYTES},
};

/// The level that upstream's tools use.
const ZSTD_LEVEL: i32 = 3;

/// How the blocks of a ZFile are made. A checksum follows every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockFormat {
    algorithm: Algorithm,
    block_size: u32,
}

/// Why a block or a file cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Blocks have a power of two from 4 to 64 KiB.
    #[error("block size {0} is not a power of two from 4096 to 65536")]
    BlockSize(u32),
    /// A block other than the last is not whole, or none.
    #[error("a block of {len} bytes, in a file of blocks of {block_size}")]
    BlockLength {
        /// Its length in bytes.
        len: usize,
        /// The block size in bytes.
        block_size: u32,
    },
    /// Upstream's reader has a buffer of 64 KiB, so that data which does not shrink cannot be read back in such blocks.
    #[error(
        "a block of 64 KiB does not shrink and takes {0} bytes, more than the 65536 that overlaybd's reader takes; \
         use blocks of 32 KiB or less"
    )]
    DoesNotShrink(u64),
    /// The table of its blocks would be longer than [`TABLE_LIMIT_BYTES`].
    #[error(
        "more than 67108864 blocks of {0} bytes, whose table no reader here holds in memory; use larger blocks"
    )]
    TooManyBlocks(u32),
    /// The library has failed, which only a lack of memory explains.
    #[error("the compressor has failed: {0}")]
    Library(String),
}

impl Default for BlockFormat {
    /// The blocks that are read fastest.
    fn default() -> Self {
        Self { algorithm: Algorithm::Lz4, block_size: 4096 }
    }
}

impl BlockFormat {
    /// Blocks of `block_size` bytes of the content.
    ///
    /// # Errors
    /// [`EncodeError::BlockSize`].
    pub fn new(algorithm: Algorithm, block_size: u32) -> Result<Self, EncodeError> {
        let sound = block_size.is_power_of_two() && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size);
        if sound { Ok(Self { algorithm, block_size }) } else { Err(EncodeError::BlockSize(block_size)) }
    }

    /// The compressor.
    #[must_use]
    pub fn algorithm(self) -> Algorithm {
        self.algorithm
    }

    /// Bytes of the content in a block; the last may have fewer.
    #[must_use]
    pub fn block_size(self) -> u32 {
        self.block_size
    }

    /// Most bytes of content that a file of such blocks can have.
    #[must_use]
    pub fn content_limit_bytes(self) -> u64 {
        (TABLE_LIMIT_BYTES / ENTRY_BYTES).saturating_mul(u64::from(self.block_size))
    }

    fn block_bytes(self) -> usize {
        self.block_size as usize
    }
}

/// Compresses blocks. One for each thread.
pub struct Encoder {
    format: BlockFormat,
    zstd: Option<Compressor<'static>>,
    room: Vec<u8>,
}

impl Encoder {
    /// An encoder of such blocks.
    ///
    /// # Errors
    /// [`EncodeError::Library`].
    pub fn new(format: BlockFormat) -> Result<Self, EncodeError> {
        let (bound, zstd) = match format.algorithm {
            Algorithm::Lz4 => (lz4::block::compress_bound(format.block_bytes()).map_err(library)?, None),
            Algorithm::Zstd => {
                let compressor = Compressor::new(ZSTD_LEVEL).map_err(library)?;
                (zstd::zstd_safe::compress_bound(format.block_bytes()), Some(compressor))
            }
        };
        Ok(Self { format, zstd, room: vec![0; bound] })
    }

    /// Compresses `content`, one block, and appends it with its checksum to `out`; returns the bytes that this took.
    ///
    /// # Errors
    /// [`EncodeError::BlockLength`] and [`EncodeError::DoesNotShrink`].
    pub fn encode(&mut self, content: &[u8], out: &mut Vec<u8>) -> Result<u32, EncodeError> {
        let BlockFormat { block_size, .. } = self.format;
        if content.is_empty() || content.len() > self.format.block_bytes() {
            return Err(EncodeError::BlockLength { len: content.len(), block_size });
        }
        let len = match &mut self.zstd {
            Some(zstd) => zstd.compress_to_buffer(content, self.room.as_mut_slice()),
            None => lz4::block::compress_to_buffer(content, None, false, &mut self.room),
        };
        let compressed = self.room.get(..len.map_err(library)?).unwrap_or_default();
        let taken = (compressed.len() as u64).saturating_add(u64::from(CHECKSUM_BYTES));
        let taken = u32::try_from(taken)
            .ok()
            .filter(|taken| *taken <= BLOCK_SIZE_MAX)
            .ok_or(EncodeError::DoesNotShrink(taken))?;
        out.extend_from_slice(compressed);
        out.extend_from_slice(&crc::raw(BLOCK_CRC_SEED, compressed).to_le_bytes());
        Ok(taken)
    }
}

fn library(error: impl fmt::Display) -> EncodeError {
    EncodeError::Library(error.to_string())
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("format", &self.format).finish_non_exhaustive()
    }
}
