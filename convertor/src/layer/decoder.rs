//! One decoder for each compression, all of them driven by the same loop.

use std::{fmt, io::Read};

use flate2::{Decompress, FlushDecompress, Status};
use zstd::{
    stream::raw::{self, Operation},
    zstd_safe::DParameter,
};

use super::{LayerError, source::Source};

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b, 8];
const GZIP_WINDOW_BITS: u8 = 15;
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// After a first byte from 0x50 to 0x5f.
const ZSTD_SKIPPABLE_MAGIC: &[u8] = &[0x2a, 0x4d, 0x18];
/// 128 MiB: what `zstd -d` takes without being asked to.
const ZSTD_WINDOW_LOG_LIMIT: u32 = 27;
const BZIP2_MAGIC: &[u8] = b"BZh";
const XZ_MAGIC: &[u8] = &[0xfd, b'7', b'z', b'X'];

/// What a blob is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// It is not.
    None,
    /// RFC 1952: members one after the other.
    Gzip,
    /// RFC 8878: frames one after the other.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no compression",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

impl Compression {
    /// As many bytes as tell it.
    pub(super) const MAGIC_BYTES: usize = 4;

    /// What a blob that begins with `head` is compressed with.
    pub(crate) fn of(head: &[u8]) -> Self {
        let is_skippable = matches!(head, [0x50..=0x5f, rest @ ..] if rest.starts_with(ZSTD_SKIPPABLE_MAGIC));
        if head.starts_with(GZIP_MAGIC) {
            Self::Gzip
        } else if head.starts_with(ZSTD_MAGIC) || is_skippable {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// Decodes one member or frame after the other.
pub(super) struct Decoder {
    compression: Compression,
    /// Where the member or frame starts that is being decoded; there is none before the first and after each.
    start: Option<u64>,
    codec: Codec,
}

enum Codec {
    None,
    Gzip(Decompress),
    Zstd(raw::Decoder<'static>),
}

/// What one call of a codec did.
struct Step {
    taken: usize,
    filled: usize,
    has_ended: bool,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = (self.compression, self.start);
        f.debug_tuple("Decoder").field(&fields).finish_non_exhaustive()
    }
}

impl Decoder {
    /// The one for a blob that begins with `head`, of [`Compression::MAGIC_BYTES`] or all of it.
    pub(super) fn of(head: &[u8]) -> Result<Self, LayerError> {
        let compression = Compression::of(head);
        let codec = match compression {
            Compression::None if head.starts_with(BZIP2_MAGIC) => {
                return Err(LayerError::Unsupported("bzip2"));
            }
            Compression::None if head.starts_with(XZ_MAGIC) => return Err(LayerError::Unsupported("xz")),
            Compression::None => Codec::None,
            Compression::Gzip => Codec::Gzip(Decompress::new_gzip(GZIP_WINDOW_BITS)),
            Compression::Zstd => {
                let decoder = raw::Decoder::new().and_then(|mut decoder| {
                    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_LIMIT))?;
                    Ok(decoder)
                });
                let reason =
                    |error: std::io::Error| LayerError::Decoder { compression, reason: error.to_string() };
                Codec::Zstd(decoder.map_err(reason)?)
            }
        };
        Ok(Self { compression, start: None, codec })
    }

    pub(super) fn compression(&self) -> Compression {
        self.compression
    }

    /// Decodes into `dest`, which has room; 0 at the end.
    pub(super) fn fill<R: Read>(
        &mut self,
        source: &mut Source<R>,
        dest: &mut [u8],
    ) -> Result<usize, LayerError> {
        let compression = self.compression;
        loop {
            let offset = source.offset();
            let wanted = if self.start.is_none() { Compression::MAGIC_BYTES } else { 1 };
            let input = source.peek(wanted)?;
            let start = match self.start {
                Some(start) => start,
                None if input.is_empty() => return Ok(0),
                None if Compression::of(input) != compression && compression != Compression::None => {
                    return Err(LayerError::Trailing { compression, offset });
                }
                None => *self.start.insert(offset),
            };
            let is_end = input.is_empty();
            let step = self.codec.step(input, dest);
            let step = step.map_err(|reason| LayerError::Damaged { compression, start, offset, reason })?;
            source.take(step.taken);
            if step.has_ended {
                self.start = None;
                self.codec.begin();
            }
            match step {
                Step { filled: 1.., .. } => return Ok(step.filled),
                Step { has_ended: false, .. } if is_end => {
                    return Err(LayerError::Truncated { compression, start, offset });
                }
                Step { has_ended: false, taken: 0, .. } => {
                    let reason = "the decoder stands still".to_owned();
                    return Err(LayerError::Damaged { compression, start, offset, reason });
                }
                _ => {}
            }
        }
    }
}

impl Codec {
    /// Gets ready for the next member; frames need nothing.
    fn begin(&mut self) {
        if let Self::Gzip(decoder) = self {
            *decoder = Decompress::new_gzip(GZIP_WINDOW_BITS);
        }
    }

    fn step(&mut self, input: &[u8], dest: &mut [u8]) -> Result<Step, String> {
        match self {
            Self::None => {
                let len = input.len().min(dest.len());
                dest.split_at_mut(len).0.copy_from_slice(input.split_at(len).0);
                // Any byte may be the last.
                Ok(Step { taken: len, filled: len, has_ended: true })
            }
            Self::Gzip(decoder) => {
                let counts = |decoder: &Decompress| (decoder.total_in(), decoder.total_out());
                let (taken, filled) = counts(decoder);
                let status = decoder.decompress(input, dest, FlushDecompress::None);
                let status = status.map_err(|error| error.to_string())?;
                let (now_taken, now_filled) = counts(decoder);
                let since = |now: u64, then: u64| usize::try_from(now.saturating_sub(then)).unwrap_or(0);
                Ok(Step {
                    taken: since(now_taken, taken),
                    filled: since(now_filled, filled),
                    has_ended: status == Status::StreamEnd,
                })
            }
            Self::Zstd(decoder) => {
                let status = decoder.run_on_buffers(input, dest).map_err(|error| error.to_string())?;
                let (taken, filled) = (status.bytes_read, status.bytes_written);
                Ok(Step { taken, filled, has_ended: status.remaining == 0 })
            }
        }
    }
}
