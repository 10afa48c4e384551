//! Checks and decodes one block at a time, with contexts that are made once.

use std::fmt;

use zstd::bulk::Decompressor;

use super::{super::crc, Algorithm, Block, BlockRule, Layout, ZfileError};

/// What the checksum of a block starts from.
pub const BLOCK_CRC_SEED: u32 = 100_007;

/// The contexts of the compressors. One for each thread; makes no allocation after its first ZSTD block.
#[derive(Default)]
pub struct Decoder {
    zstd: Option<Decompressor<'static>>,
}

impl Decoder {
    /// A decoder that has no contexts yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks `encoded`, the bytes of [`Block::encoded`], and fills `dest`, of the length of [`Block::content`].
    ///
    /// # Errors
    /// [`ZfileError::Block`]; then the content of `dest` is unspecified. Whether reading the bytes anew may help is
    /// the caller's to know.
    pub fn decode(
        &mut self,
        layout: &Layout,
        block: &Block,
        encoded: &[u8],
        dest: &mut [u8],
    ) -> Result<(), ZfileError> {
        self.decode_block(layout, block, encoded, dest).map_err(|rule| ZfileError::Block {
            number: block.number,
            offset: block.encoded.start(),
            rule,
        })
    }

    fn decode_block(
        &mut self,
        layout: &Layout,
        block: &Block,
        encoded: &[u8],
        dest: &mut [u8],
    ) -> Result<(), BlockRule> {
        let [encoded_bytes, decoded_bytes] = [encoded.len() as u64, dest.len() as u64];
        if (encoded_bytes, decoded_bytes) != (block.encoded.len(), block.content.len()) {
            return Err(BlockRule::Slices { encoded_bytes, decoded_bytes });
        }
        let compressed = if layout.verify() { strip_checksum(encoded)? } else { encoded };
        let decoded = match layout.algorithm() {
            Algorithm::Lz4 => {
                let capacity = i32::try_from(dest.len()).map_err(|_| BlockRule::Malformed)?;
                lz4::block::decompress_to_buffer(compressed, Some(capacity), dest)
            }
            Algorithm::Zstd => {
                self.zstd.get_or_insert_with(Decompressor::default).decompress_to_buffer(compressed, dest)
            }
        };
        match decoded {
            Ok(bytes) if bytes == dest.len() => Ok(()),
            Ok(bytes) => Err(BlockRule::Length { decoded_bytes: bytes as u64 }),
            Err(_) => Err(BlockRule::Malformed),
        }
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("zstd", &self.zstd.is_some()).finish()
    }
}

/// The block without its checksum, once that is known to be right.
fn strip_checksum(encoded: &[u8]) -> Result<&[u8], BlockRule> {
    let (compressed, stored) = encoded.split_last_chunk().ok_or(BlockRule::Malformed)?;
    let stored = u32::from_le_bytes(*stored);
    let computed = crc::raw(BLOCK_CRC_SEED, compressed);
    if stored == computed { Ok(compressed) } else { Err(BlockRule::Checksum { stored, computed }) }
}
