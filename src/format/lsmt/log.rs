//! The log-structured writable layer: a data file that only grows, and an index file whose entries are in the order of time.
//!
//! ```text
//! data file:  | header 4K | payloads of writes, as they came |
//! index file: | header 4K | a segment for each write or discard, later ones over earlier ones |
//! ```

use super::{
    DATA_START_SECTOR, DEVICE_SECTOR_LIMIT, FileKind, Header, LsmtError, SEGMENT_BYTES, SLOT_BYTES, Segment,
    SegmentMap, SegmentRule, SlotPosition, SlotRule, UserTag, layer::require,
};
use crate::{block::SECTOR_BYTES, format::uuid::Uuid};

/// Most entries of an index file: upstream refuses more.
pub const LOG_ENTRY_LIMIT: u64 = 128_000_000;

/// Where the entries of an index file begin, in bytes.
const ENTRIES_START: u64 = SLOT_BYTES as u64;
const ENTRY: u64 = SEGMENT_BYTES as u64;

/// The header of a new data file of either kind. A virtual size of 0 is the size of the layer below.
#[must_use]
pub fn data_header(sparse: bool, uuid: Uuid, parent_uuid: Option<Uuid>, virtual_size_bytes: u64) -> Header {
    Header {
        position: SlotPosition::Header,
        kind: FileKind::Data,
        sealed: false,
        sparse,
        index_offset: 0,
        index_count: 0,
        virtual_size_bytes,
        uuid: Some(uuid),
        parent_uuid,
        user_tag: UserTag::default(),
    }
}

/// The header of the index file that belongs to a data file with the header `data`.
#[must_use]
pub fn index_header(data: &Header) -> Header {
    Header { kind: FileKind::Index, sparse: false, index_offset: ENTRIES_START, index_count: 0, ..*data }
}

/// Reads the first [`SLOT_BYTES`] of a data file that may be written; whether it is sparse is for the caller to look at.
///
/// # Errors
/// [`LsmtError::Slot`].
pub fn decode_data_header(slot: &[u8]) -> Result<Header, LsmtError> {
    let header = Header::decode(slot, 0)?;
    require(header.position == SlotPosition::Header, 0, SlotRule::Position)?;
    require(header.kind == FileKind::Data, 0, SlotRule::NotData)?;
    require(!header.sealed, 0, SlotRule::Sealed)?;
    Ok(header)
}

/// Reads the first [`SLOT_BYTES`] of an index file.
///
/// # Errors
/// [`LsmtError::Slot`].
pub fn decode_index_header(slot: &[u8]) -> Result<Header, LsmtError> {
    let header = Header::decode(slot, 0)?;
    require(header.position == SlotPosition::Header, 0, SlotRule::Position)?;
    require(header.kind == FileKind::Index, 0, SlotRule::NotIndex)?;
    require(!header.sealed, 0, SlotRule::Sealed)?;
    require(header.index_offset == ENTRIES_START, 0, SlotRule::IndexStart(header.index_offset))?;
    Ok(header)
}

/// Makes sure that the two headers are those of one layer. Their sizes of the device may differ after a crash in a resize.
///
/// # Errors
/// [`LsmtError::Mismatched`].
pub fn require_pair(data: &Header, index: &Header) -> Result<(), LsmtError> {
    match (data.uuid, index.uuid) {
        (Some(data), Some(index)) if data != index => Err(LsmtError::Mismatched { data, index }),
        _ => Ok(()),
    }
}

/// Reads the entries of an index file, in pieces of any size, and puts them over one another.
///
/// The tail may be torn, since upstream does not order the writes of the two files: an entry of zeroes, an entry whose data
/// lies past the end of the data file, or a part of an entry ends the log. What follows it does not count.
#[derive(Debug)]
pub struct LogReplay {
    /// One past the last whole sector of the data file.
    limit_sector: u64,
    segments: SegmentMap,
    /// Entries seen.
    count: u64,
    /// The entry that ended the log.
    torn_at: Option<u64>,
    /// The start of an entry that the pieces so far have cut.
    rest: Vec<u8>,
}

/// What an index file came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// The layer's segments. Tags, which mean nothing in a plain layer, are 0.
    pub segments: SegmentMap,
    /// Where the entries that count end, in bytes of the index file: there it is to be cut, and the next one goes.
    pub end_offset: u64,
    /// Whole entries after that.
    pub torn_entries: u64,
}

impl LogReplay {
    /// For an index file and a data file of these sizes in bytes.
    ///
    /// # Errors
    /// [`LsmtError::LogTooLong`].
    pub fn new(index_file_bytes: u64, data_file_bytes: u64) -> Result<Self, LsmtError> {
        let count = index_file_bytes.saturating_sub(ENTRIES_START) / ENTRY;
        if count > LOG_ENTRY_LIMIT {
            return Err(LsmtError::LogTooLong { count, limit: LOG_ENTRY_LIMIT });
        }
        let limit_sector = data_file_bytes / SECTOR_BYTES;
        Ok(Self { limit_sector, segments: SegmentMap::new(), count: 0, torn_at: None, rest: Vec::new() })
    }

    /// The next bytes of the index file, from [`SLOT_BYTES`] on.
    ///
    /// # Errors
    /// [`LsmtError::Segment`] where an entry is wrong in a way that a torn tail does not explain.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), LsmtError> {
        if !self.rest.is_empty() {
            let lacking = SEGMENT_BYTES.saturating_sub(self.rest.len()).min(bytes.len());
            let (lacking, after) = bytes.split_at_checked(lacking).unwrap_or_default();
            self.rest.extend_from_slice(lacking);
            bytes = after;
            let Ok(entry) = self.rest.as_slice().try_into() else { return Ok(()) };
            self.rest.clear();
            self.entry(entry)?;
        }
        let (entries, rest) = bytes.as_chunks::<SEGMENT_BYTES>();
        entries.iter().try_for_each(|entry| self.entry(*entry))?;
        self.rest.extend_from_slice(rest);
        Ok(())
    }

    /// What it came to; a part of an entry that is left over does not count.
    #[must_use]
    pub fn finish(self) -> Replayed {
        let counting = self.torn_at.unwrap_or(self.count);
        Replayed {
            segments: self.segments,
            end_offset: ENTRIES_START.saturating_add(counting.saturating_mul(ENTRY)),
            torn_entries: self.count.saturating_sub(counting),
        }
    }

    fn entry(&mut self, bytes: [u8; SEGMENT_BYTES]) -> Result<(), LsmtError> {
        let number = self.count;
        self.count = number.saturating_add(1);
        if self.torn_at.is_some() {
            return Ok(());
        }
        let segment = Segment::decode(&bytes).with_tag(0);
        if bytes == [0; SEGMENT_BYTES] || (!segment.is_padding() && segment.mend() > self.limit_sector) {
            self.torn_at = Some(number);
            return Ok(());
        }
        if segment.is_padding() {
            return Ok(());
        }
        self.check(segment).map_err(|rule| LsmtError::Segment {
            number,
            offset: ENTRIES_START.saturating_add(ENTRY.saturating_mul(number)),
            rule,
        })?;
        self.segments.insert(segment);
        Ok(())
    }

    fn check(&self, segment: Segment) -> Result<(), SegmentRule> {
        if segment.length() == 0 {
            return Err(SegmentRule::Empty);
        }
        if segment.end() > DEVICE_SECTOR_LIMIT {
            return Err(SegmentRule::Beyond { end: segment.end() });
        }
        if segment.moffset() < DATA_START_SECTOR {
            let (start, end) = (segment.moffset(), segment.mend());
            return Err(SegmentRule::Place { start, end, limit: self.limit_sector });
        }
        Ok(())
    }
}
