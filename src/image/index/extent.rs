//! Walks the extents of a range: zeroes, or bytes of one layer.

use crate::block::{ByteRange, SECTOR_BYTES};

use super::tree::{Found, Position, Tree};

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

/// Where the last walk ended; belongs to one reader of one index.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cursor {
    place: Option<Place>,
}

/// A segment, and the sector from which a search would find it.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// One past the last sector of the segment before it.
    from: u64,
    position: Position,
    segment: Found,
}

impl Cursor {
    /// The first segment that ends after `sector`: the remembered one, its neighbour, or what a search finds.
    #[inline]
    fn seek(&mut self, tree: &Tree, sector: u64) -> Option<Found> {
        if let Some(place) = self.place
            && sector >= place.from
        {
            if sector < place.segment.end() {
                return Some(place.segment);
            }
            if let Some(next) = self.step(tree)
                && sector < next.end()
            {
                return Some(next);
            }
        }
        let position = tree.search(sector)?;
        let segment = tree.get(position)?;
        self.place = Some(Place { from: sector.min(segment.start), position, segment });
        Some(segment)
    }

    #[inline]
    fn step(&mut self, tree: &Tree) -> Option<Found> {
        let place = self.place?;
        let position = tree.next(place.position)?;
        let segment = tree.get(position)?;
        self.place = Some(Place { from: place.segment.end(), position, segment });
        Some(segment)
    }
}

/// The extents of a range, in order, without a gap.
#[derive(Debug)]
pub struct Extents<'a> {
    tree: &'a Tree,
    cursor: &'a mut Cursor,
    /// The segment that ends after `at`, if any.
    next: Option<Found>,
    at: u64,
    end: u64,
}

impl<'a> Extents<'a> {
    #[inline]
    pub(super) fn new(tree: &'a Tree, range: ByteRange, cursor: &'a mut Cursor) -> Self {
        let next = if range.is_empty() { None } else { cursor.seek(tree, range.start() / SECTOR_BYTES) };
        Self { tree, cursor, next, at: range.start(), end: range.end() }
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
        let Some(segment) = self.next else {
            self.at = self.end;
            return Some(Extent::Zero { len: left });
        };
        let (start, end) = (segment.start * SECTOR_BYTES, segment.end() * SECTOR_BYTES);
        if self.at < start {
            let len = left.min(start - self.at);
            self.at += len;
            return Some(Extent::Zero { len });
        }
        let skipped = self.at - start;
        let len = left.min(end - self.at);
        self.at += len;
        if self.at == end && self.at < self.end {
            self.next = self.cursor.step(self.tree);
        }
        Some(Extent::Data { layer: segment.rank, offset: segment.moffset * SECTOR_BYTES + skipped, len })
    }
}
