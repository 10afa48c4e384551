//! The tar envelope that makes a registry take an overlaybd blob for a layer.
//!
//! Two forms exist: a plain ustar header of 512 bytes before the payload, and three blocks: a pax header, its one-block
//! body that holds the size, and the file's header. What follows the payload is padding that no reader needs. The longer
//! form is the one that is written.

mod writer;

pub use writer::{ALIGNMENT, SecondMember};

use super::{
    super::field::Fields,
    block::{BLOCK, BLOCK_BYTES, Block, checksum_matches},
};
use crate::block::ByteRange;

/// Bytes from the start of a file that [`Envelope::detect`] wants, or all of a smaller file: the three blocks of the
/// longer form and the first block of the payload.
pub const HEAD_BYTES: usize = 2048;

const REGULAR: u8 = b'0';
const REGULAR_OLD: u8 = 0;
const PAX_LOCAL: u8 = b'x';
const PAX_GLOBAL: u8 = b'g';

/// Where the payload lies inside a tar file. Both in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// First byte of the payload.
    pub payload_offset: u64,
    /// Length of the payload.
    pub payload_len: u64,
}

/// Why a file that starts as a tar cannot hold a layer. Offsets are in bytes from the start of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The file ends inside its tar headers.
    #[error("tar header at offset {offset}: the file ends here")]
    Truncated {
        /// Where the missing block should start.
        offset: u64,
    },
    /// The block after a pax header and its body is not a tar header.
    #[error("tar header at offset {offset}: magic, version or checksum is wrong after a pax header")]
    Header {
        /// Where the block starts.
        offset: u64,
    },
    /// The size field is not a number in octal.
    #[error("tar header at offset {offset}: its size is not an octal number")]
    Octal {
        /// Where the header starts.
        offset: u64,
    },
    /// The entry is not a regular file, so this is no envelope but an ordinary tar archive.
    #[error(
        "tar header at offset {offset}: type {kind:#04x} is not a regular file, so this is no overlaybd layer"
    )]
    Kind {
        /// Where the header starts.
        offset: u64,
        /// The type flag.
        kind: u8,
    },
    /// A pax body takes exactly one block in every overlaybd file, and upstream reads no other.
    #[error("tar header at offset {offset}: a pax body of {len} bytes is not 1 to 512 bytes long")]
    PaxLength {
        /// Where the pax header starts.
        offset: u64,
        /// The claimed length in bytes.
        len: u64,
    },
    /// A pax record is not `length key=value` and a line feed, or its size is not a decimal number.
    #[error("pax body at offset {offset}: a record is malformed")]
    PaxRecord {
        /// Where the body starts.
        offset: u64,
    },
    /// Neither the pax body nor the header names a size.
    #[error("tar header at offset {offset}: the payload has no size")]
    Empty {
        /// Where the header of the payload starts.
        offset: u64,
    },
    /// The payload does not fit.
    #[error("tar payload at offset {offset}: {len} bytes reach past the end of the file at {size_bytes}")]
    Outside {
        /// Where the payload starts.
        offset: u64,
        /// The claimed length in bytes.
        len: u64,
        /// The file's size in bytes.
        size_bytes: u64,
    },
}

impl Envelope {
    /// Looks for an envelope in the first [`HEAD_BYTES`] of a file of `size_bytes`.
    ///
    /// `None` means that the file is not a tar: its first block lacks the magic or the version, or its checksum is
    /// wrong, as upstream sees it. Such a file is read as it is, and whatever reads it says what is wrong with it.
    ///
    /// # Errors
    /// [`TarError`] where the file is a tar that cannot be the envelope of a layer.
    pub fn detect(head: &[u8], size_bytes: u64) -> Result<Option<Self>, TarError> {
        let Some((block, rest)) = head.split_first_chunk() else { return Ok(None) };
        let Some(first) = Header::decode(block) else { return Ok(None) };
        let pax = match first.kind {
            PAX_LOCAL | PAX_GLOBAL => Some(PaxBlocks::decode(&first, rest)?),
            _ => None,
        };
        let (file, offset) = match &pax {
            Some(pax) => (&pax.file, PaxBlocks::FILE_HEADER_OFFSET),
            None => (&first, 0),
        };
        if !matches!(file.kind, REGULAR | REGULAR_OLD) {
            return Err(TarError::Kind { offset, kind: file.kind });
        }
        let stated = file.size.ok_or(TarError::Octal { offset })?;
        let pax_size = pax.as_ref().and_then(|pax| pax.size).filter(|size| *size > 0);
        let payload_len = pax_size.unwrap_or(stated);
        if payload_len == 0 {
            return Err(TarError::Empty { offset });
        }
        let payload_offset = if pax.is_some() { PaxBlocks::PAYLOAD_OFFSET } else { BLOCK };
        match ByteRange::new(payload_offset, payload_len) {
            Ok(range) if range.end() <= size_bytes => Ok(Some(Self { payload_offset, payload_len })),
            _ => Err(TarError::Outside { offset: payload_offset, len: payload_len, size_bytes }),
        }
    }
}

/// The fields of a ustar header that matter here.
struct Header {
    size: Option<u64>,
    kind: u8,
}

impl Header {
    /// `None` where the block is not a ustar header or fails its checksum.
    fn decode(block: &Block) -> Option<Self> {
        let mut fields = Fields::new(block);
        let _name_mode_owner: &[u8; 124] = fields.array()?;
        let size: &[u8; 12] = fields.array()?;
        let _mtime: &[u8; 12] = fields.array()?;
        let checksum: &[u8; 8] = fields.array()?;
        let kind = fields.u8()?;
        let _link_name: &[u8; 100] = fields.array()?;
        let magic: &[u8; 5] = fields.array()?;
        let _terminator = fields.u8()?;
        let version: &[u8; 2] = fields.array()?;
        let genuine = magic == b"ustar" && version == b"00" && checksum_matches(block, octal(checksum)?);
        genuine.then(|| Self { size: octal(size), kind })
    }
}

/// The two blocks that follow a pax header.
struct PaxBlocks {
    size: Option<u64>,
    file: Header,
}

impl PaxBlocks {
    const BODY_OFFSET: u64 = BLOCK;
    const FILE_HEADER_OFFSET: u64 = 2 * BLOCK;
    const PAYLOAD_OFFSET: u64 = 3 * BLOCK;

    fn decode(pax: &Header, rest: &[u8]) -> Result<Self, TarError> {
        let truncated = |offset| TarError::Truncated { offset };
        let (body, rest) = rest.split_first_chunk::<BLOCK_BYTES>().ok_or(truncated(Self::BODY_OFFSET))?;
        let file = rest.first_chunk().ok_or(truncated(Self::FILE_HEADER_OFFSET))?;
        let len = pax.size.ok_or(TarError::Octal { offset: 0 })?;
        let records = usize::try_from(len).ok().filter(|len| *len > 0).and_then(|len| body.get(..len));
        let records = records.ok_or(TarError::PaxLength { offset: 0, len })?;
        let malformed = TarError::PaxRecord { offset: Self::BODY_OFFSET };
        let file = Header::decode(file).ok_or(TarError::Header { offset: Self::FILE_HEADER_OFFSET })?;
        Ok(Self { size: pax_size(records).ok_or(malformed)?, file })
    }
}

/// The value of the last `size` record, if there is one; the outer `None` stands for malformed records.
fn pax_size(mut records: &[u8]) -> Option<Option<u64>> {
    let mut size = None;
    while !records.is_empty() {
        let digits = records.iter().position(|byte| *byte == b' ')?;
        let len = usize::try_from(decimal(records.get(..digits)?)?).ok()?;
        let (record, rest) = records.split_at_checked(len)?;
        let record = record.get(digits..)?.strip_prefix(b" ")?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = record.split_at_checked(equals)?;
        if key == b"size" {
            size = Some(decimal(value.strip_prefix(b"=")?)?);
        }
        records = rest;
    }
    Some(size)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    number(digits, 10)
}

/// An octal field: spaces, digits, then spaces or NULs to its end.
fn octal(field: &[u8]) -> Option<u64> {
    let is_filler = |byte: &u8| matches!(*byte, b' ' | 0);
    let start = field.iter().position(|byte| *byte != b' ')?;
    let field = field.get(start..)?;
    let end = field.iter().position(is_filler).unwrap_or(field.len());
    let (digits, filler) = field.split_at_checked(end)?;
    if filler.iter().all(is_filler) { number(digits, 8) } else { None }
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    // The library would take a sign.
    if digits.iter().all(u8::is_ascii_digit) {
        u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
