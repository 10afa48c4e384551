//! The header and the trailer of a ZFile: the same 96 bytes in a 512-byte slot.

use super::{
    super::{crc, field::Fields},
    SlotRule, ZfileError,
};

/// Size of the slot that a header or a trailer takes, in bytes.
pub const SLOT_BYTES: usize = 512;

const MAGIC0: [u8; 8] = *b"ZFile\x00\x01\x00";
const MAGIC1: [u8; 16] = *b"tuji.yyf@Alibaba";
/// Bytes of the slot that have a meaning; readers never check the field that says so.
const USED_BYTES: u32 = 96;
/// Where the digest stands: the digest is taken of the slot with these bytes as zeroes.
const DIGEST_OFFSET: usize = 28;

/// The flags that have a meaning. The writers of 2021 left garbage in all other bits, so they are masked away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(u64);

impl Flags {
    /// The slot is for the start of the file.
    pub const HEADER: Self = Self(1 << 0);
    /// The file holds data.
    pub const DATA: Self = Self(1 << 1);
    /// Writing was finished; set in trailers.
    pub const SEALED: Self = Self(1 << 2);
    /// A header that was rewritten at the end, so that no trailer need be read.
    pub const FINAL: Self = Self(1 << 3);
    /// The digest of the slot and the checksum of the table are present.
    pub const DIGESTS: Self = Self(1 << 4);
    /// The table of sizes is compressed; never written.
    pub const COMPRESSED_INDEX: Self = Self(1 << 5);
    const KNOWN: u64 = (1 << 6) - 1;

    /// The known flags of a word.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & Self::KNOWN)
    }

    /// Whether all of `other` are set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A decoded header or trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which slot this is and what can be relied on.
    pub flags: Flags,
    /// Where the table of sizes starts, in bytes from the start of the file. Garbage unless final or trailer, as are
    /// the next three.
    pub index_offset: u64,
    /// Number of blocks.
    pub index_count: u64,
    /// Size of the content in bytes.
    pub content_bytes: u64,
    /// Checksum of the table.
    pub index_crc: u32,
    /// Size of a block of the content in bytes.
    pub block_size: u32,
    /// The compressor's number: 1 is LZ4, 2 is ZSTD.
    pub algorithm: u8,
    /// The compressor's level, for information only.
    pub level: u8,
    /// Whether blocks need a dictionary; never written.
    pub uses_dictionary: bool,
    /// Size of the dictionary between header and blocks in bytes; never written other than 0.
    pub dictionary_bytes: u32,
    /// Whether a checksum follows every block.
    pub verify: bool,
}

/// Whether a file that starts with `head` is a ZFile, by its magic numbers alone.
#[must_use]
pub fn is_zfile(head: &[u8]) -> bool {
    let mut fields = Fields::new(head);
    fields.array() == Some(&MAGIC0) && fields.array() == Some(&MAGIC1)
}

impl Header {
    /// Reads the slot of [`SLOT_BYTES`] that starts at `offset` of its file: checks the magic numbers, and the digest
    /// where the slot says that it has one. Reserved bytes are ignored.
    ///
    /// # Errors
    /// [`ZfileError::Slot`].
    pub fn decode(slot: &[u8], offset: u64) -> Result<Self, ZfileError> {
        let refused = |rule| ZfileError::Slot { offset, rule };
        let slot: &[u8; SLOT_BYTES] = slot.first_chunk().ok_or(refused(SlotRule::Short))?;
        if !is_zfile(slot) {
            return Err(refused(SlotRule::Magic));
        }
        let (header, stored) = Self::decode_fields(slot).ok_or(refused(SlotRule::Short))?;
        let computed = digest(slot);
        if header.flags.contains(Flags::DIGESTS) && stored != computed {
            return Err(refused(SlotRule::Digest { stored, computed }));
        }
        Ok(header)
    }

    /// All fields and the stored digest.
    fn decode_fields(slot: &[u8; SLOT_BYTES]) -> Option<(Self, u32)> {
        let mut fields = Fields::new(slot);
        let _magic: &[u8; 24] = fields.array()?;
        let _used_bytes = fields.u32()?;
        let digest = fields.u32()?;
        let flags = Flags::from_bits(fields.u64()?);
        let [index_offset, index_count, content_bytes] = [fields.u64()?, fields.u64()?, fields.u64()?];
        let index_crc = fields.u32()?;
        let _reserved = fields.u32()?;
        let block_size = fields.u32()?;
        let [algorithm, level, use_dictionary, _padding] = *fields.array()?;
        let _reserved = fields.u32()?;
        let dictionary_bytes = fields.u32()?;
        let header = Self {
            flags,
            index_offset,
            index_count,
            content_bytes,
            index_crc,
            block_size,
            algorithm,
            level,
            uses_dictionary: use_dictionary != 0,
            dictionary_bytes,
            verify: fields.u8()? != 0,
        };
        Some((header, digest))
    }

    /// The slot of [`SLOT_BYTES`] bytes, with its digest.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let [before, after] = self.encode_around_digest();
        let zeroes = [0; SLOT_BYTES];
        let tail = zeroes.get(USED_BYTES as usize..).unwrap_or_default();
        let digest =
            [before.as_slice(), &[0; 4], &after, tail].iter().fold(0, |sum, part| crc::raw(sum, part));
        [before.as_slice(), &digest.to_le_bytes(), &after, tail].concat()
    }

    /// The used bytes before the digest and those after it.
    fn encode_around_digest(&self) -> [Vec<u8>; 2] {
        let mut before = Vec::with_capacity(SLOT_BYTES);
        before.extend(MAGIC0);
        before.extend(MAGIC1);
        before.extend(USED_BYTES.to_le_bytes());
        let mut after = Vec::with_capacity(SLOT_BYTES);
        for word in [self.flags.0, self.index_offset, self.index_count, self.content_bytes] {
            after.extend(word.to_le_bytes());
        }
        after.extend(self.index_crc.to_le_bytes());
        after.extend([0; 4]);
        after.extend(self.block_size.to_le_bytes());
        after.extend([self.algorithm, self.level, u8::from(self.uses_dictionary), 0]);
        after.extend([0; 4]);
        after.extend(self.dictionary_bytes.to_le_bytes());
        after.push(u8::from(self.verify));
        after.extend([0; 7]);
        [before, after]
    }
}

/// The digest of a slot, whatever its digest field holds.
fn digest(slot: &[u8; SLOT_BYTES]) -> u32 {
    let (before, rest) = slot.split_at(DIGEST_OFFSET);
    let after = rest.split_at_checked(4).map_or(rest, |(_, after)| after);
    [before, &[0; 4], after].iter().fold(0, |sum, part| crc::raw(sum, part))
}
