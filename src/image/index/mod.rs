//! The merged in-memory index of a stack: which layer holds the bytes of a range, and where.

mod extent;
mod joiner;
mod mapping;
mod sweep;
mod table;

#[cfg(test)]
mod tests;

pub use extent::{Cursor, Extent, Extents};

use crate::{
    block::{ByteRange, SECTOR_BYTES},
    format::lsmt::{LAYER_COUNT_LIMIT, Segment},
};
use joiner::{Joiner, Run};
pub use mapping::{LAYER_BYTES_LIMIT, Mapping};
use sweep::sweep;
use table::Table;

/// Extents that are looked at for the end of a stretch of data.
const DATA_EXTENTS: usize = 64;

/// The visible segments of a whole stack. Immutable and shared by all queues.
///
/// Zeroed segments have done their work once they have hidden what lies below, and a hole reads as zeroes too, so
/// only data is kept.
#[derive(Debug)]
pub struct Index {
    table: Table,
    size_sectors: u64,
}

impl Index {
    /// Merges the sorted segment lists of `layers`, the lowest layer first, for a device of `size_bytes`, of which a last part of a
    /// sector does not count.
    ///
    /// What lies past the size is kept, as upstream does: a larger device over this one shows it.
    ///
    /// # Panics
    /// With more than [`LAYER_COUNT_LIMIT`] layers.
    #[must_use]
    pub fn merge<L: AsRef<[Segment]>>(layers: &[L], size_bytes: u64) -> Self {
        assert!(layers.len() <= LAYER_COUNT_LIMIT, "the caller has counted the layers");
        let size_sectors = size_bytes / SECTOR_BYTES;
        let top_first: Vec<&[Segment]> = layers.iter().rev().map(AsRef::as_ref).collect();
        let total = top_first.iter().map(|segments| segments.len()).sum();
        let mut joiner = Joiner::with_capacity(total);
        sweep(&top_first, |winner| {
            if !winner.zeroed {
                joiner.push(Run {
                    start: winner.start,
                    len: winner.end - winner.start,
                    layer: winner.rank,
                    moffset: winner.moffset,
                });
            }
        });
        Self { table: Table::new(joiner.finish()), size_sectors }
    }

    /// The extents of `range`, in order and without a gap; past what the layers have everything is zero.
    ///
    /// `cursor` remembers where this ended, so that a sequential reader does not search again.
    #[inline]
    pub fn resolve<'a>(&'a self, range: ByteRange, cursor: &'a mut Cursor) -> Extents<'a> {
        Extents::new(&self.table, range, cursor)
    }

    /// The first stretch of `range` that a layer has the bytes of; empty where all of it is zeroes. A stretch of many segments
    /// is cut short.
    #[must_use]
    pub fn next_data(&self, range: ByteRange) -> ByteRange {
        let (mut start, mut end) = (range.start(), range.start());
        let mut cursor = Cursor::default();
        for extent in self.resolve(range, &mut cursor).take(DATA_EXTENTS) {
            match extent {
                Extent::Data { len, .. } => end += len,
                Extent::Zero { .. } if end > start => break,
                Extent::Zero { len } => (start, end) = (start + len, start + len),
            }
        }
        ByteRange::between(start, end)
    }

    /// The segment that holds `sector`, or the next one after it.
    #[must_use]
    #[inline]
    pub fn lookup(&self, sector: u64, cursor: &mut Cursor) -> Option<Mapping> {
        cursor.seek(&self.table, sector)
    }

    /// Size of the device in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_sectors * SECTOR_BYTES
    }

    /// How far it goes, in bytes: to the end of the device, or of what the layers have where that is further.
    #[must_use]
    pub fn reach_bytes(&self) -> u64 {
        self.table.end().max(self.size_sectors) * SECTOR_BYTES
    }

    /// Number of segments held, after merging and joining.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.table.len()
    }

    /// Memory of the index in bytes, all included.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
    }
}
