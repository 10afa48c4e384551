//! Walks the extents of a range: zeroes, or bytes of one layer.

use crate::block::{ByteRange, SECTOR_BYTES};

use super::{mapping::Mapping, table::Table};

/// A stretch of a resolved range; lengths and offsets are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Reads as zeroes.
    Zero {
        /// Length.
        len: u64,
    },
    /// Lies in a layer.
    Data {
        /// Position from the top of the stack, 0 being the highest layer.
        layer: u8,
        /// Start inside the layer's LSMT file.
        offset: u64,
        /// Length.
        len: u64,
    },
}

impl Extent {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Zero { len } | Self::Data { len, .. } => *len,
        }
    }

    /// Whether it holds no byte, which no extent of [`Extents`] does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How far ahead of the last walk's start a new one may be to count as a sequential one, in sectors: 1 MiB.
const NEAR_SECTORS: u64 = 2048;

/// Where the last walk was; belongs to one reader of one index.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cursor {
    /// Where the last walk began, in sectors. Known before the search is, so that a processor can overlap the searches
    /// of a random reader, and predict that they are none of a sequential one.
    started: u64,
    place: Option<Place>,
}

/// A segment, and the sector from which a search would find it.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// At least the end of the segment before it.
    from: u64,
    number: usize,
    segment: Mapping,
}

impl Cursor {
    /// The first segment that ends after `sector`: the remembered one, its neighbour, or what a search finds.
    #[inline]
    pub(super) fn seek(&mut self, table: &Table, sector: u64) -> Option<Mapping> {
        let near = sector.wrapping_sub(std::mem::replace(&mut self.started, sector)) < NEAR_SECTORS;
        if near && let Some(found) = self.seek_near(table, sector) {
            return Some(found);
        }
        let number = table.search(sector);
        let segment = table.get(number)?;
        self.place = Some(Place { from: sector, number, segment });
        Some(segment)
    }

    #[inline]
    fn seek_near(&mut self, table: &Table, sector: u64) -> Option<Mapping> {
        let place = self.place.filter(|place| sector >= place.from)?;
        if sector < place.segment.end() {
            return Some(place.segment);
        }
        self.step(table).filter(|next| sector < next.end())
    }

    #[inline]
    fn step(&mut self, table: &Table) -> Option<Mapping> {
        let place = self.place?;
        let number = place.number + 1;
        let segment = table.get(number)?;
        self.place = Some(Place { from: place.segment.end(), number, segment });
        Some(segment)
    }
}

/// The extents of a range, in order, without a gap.
#[derive(Debug)]
pub struct Extents<'a> {
    table: &'a Table,
    cursor: &'a mut Cursor,
    /// The segment that ends after `at`, if any, or that ends there.
    next: Option<Mapping>,
    at: u64,
    end: u64,
}

impl<'a> Extents<'a> {
    #[inline]
    pub(super) fn new(table: &'a Table, range: ByteRange, cursor: &'a mut Cursor) -> Self {
        let next = if range.is_empty() { None } else { cursor.seek(table, range.start() / SECTOR_BYTES) };
        Self { table, cursor, next, at: range.start(), end: range.end() }
    }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    #[inline]
    fn next(&mut self) -> Option<Extent> {
        if self.at >= self.end {
            return None;
        }
        let left = self.end - self.at;
        if self.next.is_some_and(|segment| segment.end() * SECTOR_BYTES <= self.at) {
            self.next = self.cursor.step(self.table);
        }
        let Some(segment) = self.next else {
            self.at = self.end;
            return Some(Extent::Zero { len: left });
        };
        let (start, end) = (segment.start() * SECTOR_BYTES, segment.end() * SECTOR_BYTES);
        if self.at < start {
            let len = left.min(start - self.at);
            self.at += len;
            return Some(Extent::Zero { len });
        }
        let skipped = self.at - start;
        let len = left.min(end - self.at);
        self.at += len;
        Some(Extent::Data { layer: segment.layer(), offset: segment.moffset() * SECTOR_BYTES + skipped, len })
    }
}
