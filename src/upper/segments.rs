//! Extents as entries of the format, and back.

use super::extents::{Extent, Place};
use crate::format::lsmt::{DATA_START_SECTOR, SEGMENT_LENGTH_LIMIT, Segment};

/// Longest entry that is written, in sectors: whole pages, which the longest that an entry can hold are not.
pub(super) const ENTRY_SECTORS: u64 = (SEGMENT_LENGTH_LIMIT - SEGMENT_LENGTH_LIMIT % 8) as u64;

/// No entry can name these sectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unnamed;

/// Puts `extent` at the end of `segments` as entries of the index file.
pub(super) fn push_segments(extent: &Extent, segments: &mut Vec<Segment>) -> Result<(), Unnamed> {
    let mut at = extent.sectors.start;
    while at < extent.sectors.end {
        let length = (extent.sectors.end - at).min(ENTRY_SECTORS);
        let segment = match extent.place.sector() {
            Some(sector) => {
                let sector = sector.checked_add(at - extent.sectors.start).ok_or(Unnamed)?;
                Segment::new(at, u32::try_from(length).map_err(|_| Unnamed)?, sector, false, 0)
            }
            // Of zeroes the place says nothing. This one lies inside every data file, as readers want it to.
            None => {
                let length = u32::try_from(length).map_err(|_| Unnamed)?;
                Segment::new(at, length, DATA_START_SECTOR, true, 0)
            }
        };
        segments.push(segment.ok_or(Unnamed)?);
        at += length;
    }
    Ok(())
}

/// Entries for so many sectors in one place.
pub(super) fn entries_for(sectors: u64) -> usize {
    usize::try_from(sectors.div_ceil(ENTRY_SECTORS)).unwrap_or(usize::MAX)
}

/// The extent that an entry stands for.
pub(super) fn extent_of(segment: Segment) -> Extent {
    let place = if segment.zeroed() { Place::ZEROES } else { Place::data(segment.moffset()) };
    Extent { sectors: segment.offset()..segment.end(), place }
}
