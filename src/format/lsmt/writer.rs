//! Makes a read-only layer: where each part of the device goes in the file, and what stands around the data.

use super::{
    DATA_START_SECTOR, FileKind, Header, LsmtError, SEGMENT_COUNT_LIMIT, SEGMENT_LENGTH_LIMIT, Segment,
    SlotPosition, UserTag,
};
use crate::{block::SECTOR_BYTES, format::uuid::Uuid};

/// Entries of an index are filled up to a multiple of this, which takes 4096 bytes.
const ENTRIES_MULTIPLE: usize = 256;

/// Most segments of a layer that is written: what is left of [`SEGMENT_COUNT_LIMIT`], which counts the padding.
pub const SEGMENTS_WRITTEN_LIMIT: u64 =
    SEGMENT_COUNT_LIMIT / ENTRIES_MULTIPLE as u64 * ENTRIES_MULTIPLE as u64;

/// Sectors that upstream copies at once, each with an entry that is then joined to its neighbours.
const UPSTREAM_PIECE_SECTORS: u32 = 64;

/// Sectors of 4096 bytes, in which file systems and the page cache read.
const PAGE_SECTORS: u64 = 8;

/// How data is laid out in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Without gaps, and with entries cut where upstream's tools cut them: its bytes are the same.
    AsUpstream,
    /// Every sector keeps its place in a page of 4096 bytes, so that an aligned page of the device lies in one page of the
    /// file, and in one compressed block. The gaps, at most 7 sectors before a segment, are zeroes.
    Aligned,
}

/// What a layer says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerIdentity {
    /// Its UUID; `None` is written as the null one.
    pub uuid: Option<Uuid>,
    /// That of the layer below.
    pub parent_uuid: Option<Uuid>,
    /// Size of the device in bytes; 0 means that the layer below decides.
    pub virtual_size_bytes: u64,
    /// Free text.
    pub user_tag: UserTag,
}

/// The parts of a layer's file after its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerEnd {
    /// Sector at which the index begins. The file is filled up to there with zeroes.
    pub index_sector: u64,
    /// The index.
    pub index: Vec<u8>,
    /// The trailer, of [`SLOT_BYTES`](super::SLOT_BYTES).
    pub trailer: Vec<u8>,
}

/// Notes the parts of a layer in the order of the device and says where each goes. The file is: [`LayerIdentity::header`],
/// the data from sector [`DATA_START_SECTOR`] on, and the [`LayerEnd`]. It takes 16 bytes of memory for each segment.
#[derive(Debug)]
pub struct LayerWriter {
    packing: Packing,
    segments: Vec<Segment>,
    next_sector: u64,
}

impl LayerIdentity {
    /// The slot of [`SLOT_BYTES`](super::SLOT_BYTES) at the start of the file.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        self.slot(SlotPosition::Header, 0, 0)
    }

    fn slot(&self, position: SlotPosition, index_offset: u64, index_count: u64) -> Vec<u8> {
        let header = Header {
            position,
            kind: FileKind::Data,
            sealed: true,
            sparse: false,
            index_offset,
            index_count,
            virtual_size_bytes: self.virtual_size_bytes,
            uuid: self.uuid,
            parent_uuid: self.parent_uuid,
            user_tag: self.user_tag,
        };
        header.encode()
    }
}

impl LayerWriter {
    /// A layer without data.
    #[must_use]
    pub fn new(packing: Packing) -> Self {
        Self { packing, segments: Vec::new(), next_sector: DATA_START_SECTOR }
    }

    /// A layer whose data is in the file already, up to `next_sector`; [`LayerWriter::placed`] says where which of it is.
    #[must_use]
    pub fn of_written(packing: Packing, next_sector: u64) -> Self {
        Self { packing, segments: Vec::new(), next_sector }
    }

    /// Notes a segment that has its place in the file.
    ///
    /// # Errors
    /// [`LsmtError::IndexFull`] and [`LsmtError::Unnamed`].
    pub fn placed(&mut self, segment: Segment) -> Result<(), LsmtError> {
        self.push(segment.offset(), segment.length(), segment.moffset(), segment.zeroed(), segment.tag())
    }

    /// Notes `length` sectors of data at `offset` of the device, and says at which sector of the file they go. What lies
    /// between the data before and there is zeroes.
    ///
    /// Parts of one segment of upstream's must be given in multiples of 64 sectors to come out as upstream's.
    ///
    /// # Errors
    /// [`LsmtError::IndexFull`] and [`LsmtError::Unnamed`].
    pub fn data(&mut self, offset: u64, length: u32, tag: u8) -> Result<u64, LsmtError> {
        let start = match self.packing {
            Packing::AsUpstream => self.next_sector,
            Packing::Aligned => {
                let step = (offset % PAGE_SECTORS).wrapping_sub(self.next_sector) % PAGE_SECTORS;
                self.next_sector.saturating_add(step)
            }
        };
        let mut done = 0_u32;
        while done < length {
            let piece = length.saturating_sub(done).min(UPSTREAM_PIECE_SECTORS);
            let [offset, place] = [offset, start].map(|at| at.saturating_add(u64::from(done)));
            self.push(offset, piece, place, false, tag)?;
            done = done.saturating_add(piece);
        }
        self.next_sector = start.saturating_add(u64::from(length));
        Ok(start)
    }

    /// Notes `length` sectors at `offset` of the device that read as zeroes and take no room.
    ///
    /// # Errors
    /// [`LsmtError::IndexFull`] and [`LsmtError::Unnamed`].
    pub fn zeroed(&mut self, offset: u64, length: u32, tag: u8) -> Result<(), LsmtError> {
        self.push(offset, length, self.next_sector, true, tag)
    }

    /// Sector of the file after the last of the data so far.
    #[must_use]
    pub fn next_sector(&self) -> u64 {
        self.next_sector
    }

    /// Segments so far.
    #[must_use]
    pub fn segment_count(&self) -> u64 {
        self.segments.len() as u64
    }

    /// What follows the data.
    #[must_use]
    pub fn finish(self, identity: &LayerIdentity) -> LayerEnd {
        let index_sector = match self.packing {
            Packing::AsUpstream => self.next_sector,
            // So that it can be read in whole pages.
            Packing::Aligned => self.next_sector.next_multiple_of(PAGE_SECTORS),
        };
        let count = self.segments.len().next_multiple_of(ENTRIES_MULTIPLE);
        let padding = std::iter::repeat(Segment::PADDING);
        let index: Vec<u8> =
            self.segments.into_iter().chain(padding).take(count).flat_map(Segment::encode).collect();
        let index_offset = index_sector.saturating_mul(SECTOR_BYTES);
        let trailer = identity.slot(SlotPosition::Trailer, index_offset, count as u64);
        LayerEnd { index_sector, index, trailer }
    }

    /// Adds an entry, or makes the last one longer where the new one continues it. Upstream joins them only below the
    /// longest length, not up to it.
    fn push(&mut self, offset: u64, length: u32, place: u64, zeroed: bool, tag: u8) -> Result<(), LsmtError> {
        if let Some(last) = self.segments.last_mut()
            && (last.end(), last.mend(), last.zeroed(), last.tag()) == (offset, place, zeroed, tag)
            && let Some(sum) = last.length().checked_add(length).filter(|sum| *sum < SEGMENT_LENGTH_LIMIT)
            && let Some(longer) = Segment::new(last.offset(), sum, last.moffset(), zeroed, tag)
        {
            *last = longer;
            return Ok(());
        }
        if self.segment_count() >= SEGMENTS_WRITTEN_LIMIT {
            return Err(LsmtError::IndexFull { limit: SEGMENTS_WRITTEN_LIMIT });
        }
        let segment = Segment::new(offset, length, place, zeroed, tag);
        self.segments.push(segment.ok_or(LsmtError::Unnamed { offset, length, place })?);
        Ok(())
    }
}

/// The bytes that make the data file with this header a read-only layer when they are appended to it: its index, which
/// begins at its end, `data_file_bytes`, zeroes up to a sector, and a trailer. The header stays as it is. The file must end
/// with a whole sector.
///
/// # Errors
/// [`LsmtError::IndexFull`].
pub fn seal(header: &Header, segments: &[Segment], data_file_bytes: u64) -> Result<Vec<u8>, LsmtError> {
    let index_count = segments.len() as u64;
    if index_count > SEGMENT_COUNT_LIMIT {
        return Err(LsmtError::IndexFull { limit: SEGMENT_COUNT_LIMIT });
    }
    let trailer = Header {
        position: SlotPosition::Trailer,
        sealed: true,
        index_offset: data_file_bytes,
        index_count,
        ..*header
    };
    let mut end: Vec<u8> = segments.iter().flat_map(|segment| segment.encode()).collect();
    let filled = (end.len() as u64).next_multiple_of(SECTOR_BYTES);
    end.resize(usize::try_from(filled).unwrap_or(0), 0);
    end.extend(trailer.encode());
    Ok(end)
}
