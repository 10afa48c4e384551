//! A read-only LSMT layer: where its parts lie and which segments it has.

use super::super::foreign::Foreign;
use super::{
    DATA_START_SECTOR, DEVICE_SECTOR_LIMIT, FileKind, Header, LsmtError, SEGMENT_BYTES, SLOT_BYTES, Segment,
    SegmentRule, SlotPosition, SlotRule,
};
use crate::block::{ByteRange, SECTOR_BYTES};

/// Most segments that a read-only layer may have, padding included: upstream refuses more, so no layer has them.
pub const SEGMENT_COUNT_LIMIT: u64 = 1_000_000;

/// Bytes that may lie unused between index and trailer, exclusive. Sealing pads the index to a sector, committing
/// counts its padding as segments: a larger gap means that the count is wrong.
pub const INDEX_SLACK_LIMIT_BYTES: u64 = SECTOR_BYTES;

const SLOT: u64 = SLOT_BYTES as u64;
const SEGMENT: u64 = SEGMENT_BYTES as u64;

/// The checked header and trailer of a read-only layer, from which its index is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerLayout {
    header: Header,
    trailer: Header,
    index: ByteRange,
}

/// A read-only layer: sorted segments that do not overlap and whose data lies inside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOnlyLayer {
    layout: LayerLayout,
    segments: Vec<Segment>,
}

impl LayerLayout {
    /// Where the trailer of a file of `size_bytes` is: its last [`SLOT_BYTES`], at any alignment.
    ///
    /// # Errors
    /// [`LsmtError::TooSmall`] where header and trailer do not both fit.
    pub fn trailer_range(size_bytes: u64) -> Result<ByteRange, LsmtError> {
        match size_bytes.checked_sub(SLOT) {
            Some(start) if start >= SLOT => Ok(ByteRange::between(start, size_bytes)),
            _ => Err(LsmtError::TooSmall { size_bytes }),
        }
    }

    /// As [`Self::trailer_range`], of a file that begins with `head`, which may tell what a short one is instead.
    ///
    /// # Errors
    /// As of [`Self::trailer_range`], and [`SlotRule::Foreign`].
    pub fn trailer_range_of(head: &[u8], size_bytes: u64) -> Result<ByteRange, LsmtError> {
        Self::trailer_range(size_bytes).map_err(|error| match Foreign::of(head) {
            Some(foreign) => LsmtError::Slot { offset: 0, rule: SlotRule::Foreign(foreign) },
            None => error,
        })
    }

    /// Checks the first and the last [`SLOT_BYTES`] of a file of `size_bytes` against each other and the size.
    ///
    /// # Errors
    /// [`LsmtError`], never [`LsmtError::Segment`].
    pub fn decode(header: &[u8], trailer: &[u8], size_bytes: u64) -> Result<Self, LsmtError> {
        let trailer_offset = Self::trailer_range(size_bytes)?.start();
        let header = Header::decode(header, 0)?;
        require(header.position == SlotPosition::Header, 0, SlotRule::Position)?;
        require(header.kind == FileKind::Data, 0, SlotRule::NotData)?;
        let trailer = Header::decode(trailer, trailer_offset)?;
        require(trailer.position == SlotPosition::Trailer, trailer_offset, SlotRule::Position)?;
        require(trailer.kind == FileKind::Data, trailer_offset, SlotRule::NotData)?;
        require(trailer.sealed, trailer_offset, SlotRule::Unsealed)?;
        let index = index_range(&trailer, trailer_offset)?;
        Ok(Self { header, trailer, index })
    }

    /// The header, of which only magic numbers, version and kind were checked.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The trailer, whose fields count.
    #[must_use]
    pub fn trailer(&self) -> &Header {
        &self.trailer
    }

    /// The bytes of the file that hold the index.
    #[must_use]
    pub fn index_range(&self) -> ByteRange {
        self.index
    }

    /// Reads the bytes of [`LayerLayout::index_range`]. Padding is dropped and tags, which mean nothing in a plain
    /// layer, become 0.
    ///
    /// # Errors
    /// [`LsmtError::IndexLength`] and [`LsmtError::Segment`].
    pub fn decode_index(&self, bytes: &[u8]) -> Result<ReadOnlyLayer, LsmtError> {
        let given_bytes = bytes.len() as u64;
        if given_bytes != self.index.len() {
            return Err(LsmtError::IndexLength {
                offset: self.index.start(),
                given_bytes,
                wanted_bytes: self.index.len(),
            });
        }
        let (entries, _) = bytes.as_chunks::<SEGMENT_BYTES>();
        let limit_sector = self.index.start() / SECTOR_BYTES;
        let mut segments = Vec::with_capacity(entries.len());
        let mut previous_end = 0;
        for (number, entry) in (0..).zip(entries) {
            let segment = Segment::decode(entry).with_tag(0);
            if segment.is_padding() {
                continue;
            }
            check_segment(segment, previous_end, limit_sector).map_err(|rule| LsmtError::Segment {
                number,
                // The entry lies inside the index, whose end is known not to overflow.
                offset: self.index.start().saturating_add(SEGMENT.saturating_mul(number)),
                rule,
            })?;
            previous_end = segment.end();
            segments.push(segment);
        }
        Ok(ReadOnlyLayer { layout: *self, segments })
    }
}

impl ReadOnlyLayer {
    /// The header and trailer.
    #[must_use]
    pub fn layout(&self) -> &LayerLayout {
        &self.layout
    }

    /// The segments, by offset.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Gives the segments away, by offset.
    #[must_use]
    pub fn into_segments(self) -> Vec<Segment> {
        self.segments
    }

    /// Size of the device in bytes; 0 means that the layer below decides. Segments may reach past it.
    #[must_use]
    pub fn virtual_size_bytes(&self) -> u64 {
        self.layout.trailer.virtual_size_bytes
    }
}

/// Size in bytes of the device that layers of `sizes` make, the lowest first: that of the highest that says one, and 0 where none
/// does. How much is seen depends on it, and nothing else: what any layer maps past it is there for a larger one that comes over all.
pub fn device_bytes(mut sizes: impl DoubleEndedIterator<Item = u64>) -> u64 {
    sizes.rfind(|size| *size > 0).unwrap_or(0)
}

pub(super) fn require(holds: bool, offset: u64, rule: SlotRule) -> Result<(), LsmtError> {
    if holds { Ok(()) } else { Err(LsmtError::Slot { offset, rule }) }
}

fn index_range(trailer: &Header, trailer_offset: u64) -> Result<ByteRange, LsmtError> {
    let Header { index_offset, index_count: count, .. } = *trailer;
    if count > SEGMENT_COUNT_LIMIT {
        return Err(LsmtError::TooManySegments { offset: trailer_offset, count, limit: SEGMENT_COUNT_LIMIT });
    }
    let index = ByteRange::new(index_offset, count.saturating_mul(SEGMENT)).ok().filter(|index| {
        let slack = trailer_offset.checked_sub(index.end());
        index_offset >= SLOT
            && index_offset.is_multiple_of(SECTOR_BYTES)
            && slack.is_some_and(|slack| slack < INDEX_SLACK_LIMIT_BYTES)
    });
    index.ok_or(LsmtError::IndexPlace { offset: trailer_offset, index_offset, count })
}

/// Data lies from sector 8 up to the index; a zeroed segment has none, but its place must still be inside.
fn check_segment(segment: Segment, previous_end: u64, limit: u64) -> Result<(), SegmentRule> {
    if segment.length() == 0 {
        return Err(SegmentRule::Empty);
    }
    if segment.end() > DEVICE_SECTOR_LIMIT {
        return Err(SegmentRule::Beyond { end: segment.end() });
    }
    if segment.offset() < previous_end {
        return Err(SegmentRule::Disorder { offset: segment.offset(), previous_end });
    }
    if segment.moffset() < DATA_START_SECTOR || segment.mend() > limit {
        return Err(SegmentRule::Place { start: segment.moffset(), end: segment.mend(), limit });
    }
    Ok(())
}
