//! Where the content of a sparse file lies: the four forms of the map, and what must hold of it.

use std::sync::Arc;

use super::{
    super::block::{BLOCK, Block},
    ArchiveField, ArchiveRule,
    header::{GNU_SPARSE, at},
    number,
    pax::{Records, SPARSE_MAP},
};
use crate::block::ByteRange;

/// Go's: an upper bound of what 1 MiB can hold.
const EXTENT_LIMIT: usize = 1 << 20;
/// Each form of the map is at most so long.
const LENGTH_LIMIT_BYTES: u64 = 1 << 20;
const LINE_FEED: u8 = b'\n';

/// How an entry says that it is sparse, and where its map is.
#[derive(Debug)]
pub(super) enum Form {
    /// In the header and in blocks after it.
    OldGnu,
    /// In records of pax: version 0.0 and 0.1.
    Records(Map),
    /// In lines before the content: version 1.0.
    Lines,
}

impl Form {
    /// What the records of a pax header say; `None` for a file that is not sparse.
    pub(super) fn of(records: &Records) -> Result<Option<Self>, ArchiveRule> {
        let version = |key: &[u8]| records.get(key);
        match (version(b"GNU.sparse.major"), version(b"GNU.sparse.minor")) {
            (Some(b"0"), Some(b"0" | b"1")) => Ok(Some(Self::Records(Map::of_records(records)?))),
            (None, None) if records.get(SPARSE_MAP).is_some() => {
                Ok(Some(Self::Records(Map::of_records(records)?)))
            }
            (Some(b"1"), Some(b"0")) => Ok(Some(Self::Lines)),
            _ if records.is_sparse() => Err(ArchiveRule::SparseVersion),
            _ => Ok(None),
        }
    }
}

/// Pairs of offset and length, not yet checked.
#[derive(Debug, Default)]
pub(super) struct Map {
    extents: Vec<(i64, i64)>,
}

impl Map {
    fn push(&mut self, offset: i64, length: i64) -> Result<(), ArchiveRule> {
        if self.extents.len() >= EXTENT_LIMIT {
            return Err(ArchiveRule::SparseLength);
        }
        self.extents.push((offset, length));
        Ok(())
    }

    fn of_records(records: &Records) -> Result<Self, ArchiveRule> {
        let malformed = ArchiveRule::SparseMap;
        let count = records.number(b"GNU.sparse.numblocks", ArchiveField::Sparse)?.ok_or(malformed)?;
        let mut map = Self::default();
        if let Some(text) = records.get(SPARSE_MAP) {
            let mut numbers = text.split(|byte| *byte == b',').map(number::decimal);
            while let Some(offset) = numbers.next() {
                let length = numbers.next().ok_or(malformed)?;
                map.push(offset.ok_or(malformed)?, length.ok_or(malformed)?)?;
            }
        }
        if u64::try_from(count) == Ok(map.extents.len() as u64) { Ok(map) } else { Err(malformed) }
    }

    /// The extents in order, neighbours joined and none empty, in a file of `size` of which the archive has `stored` bytes.
    pub(super) fn checked(&self, size: u64, stored: u64) -> Result<Arc<[ByteRange]>, ArchiveRule> {
        let mut extents: Vec<ByteRange> = Vec::new();
        let (mut end, mut mapped) = (0, 0_u64);
        for (offset, length) in &self.extents {
            let range = |offset, length| {
                ByteRange::new(u64::try_from(offset).ok()?, u64::try_from(length).ok()?).ok()
            };
            let extent =
                range(*offset, *length).filter(|extent| end <= extent.start() && extent.end() <= size);
            let extent = extent.ok_or(ArchiveRule::SparseMap)?;
            end = extent.end();
            mapped = mapped.saturating_add(extent.len());
            match extents.last_mut() {
                _ if extent.is_empty() => {}
                Some(last) if last.end() == extent.start() => *last = ByteRange::between(last.start(), end),
                _ => extents.push(extent),
            }
        }
        if mapped == stored { Ok(extents.into()) } else { Err(ArchiveRule::SparseContent { mapped, stored }) }
    }
}

/// The map of the old form while its blocks are read.
#[derive(Debug, Default)]
pub(super) struct OldGnuMap {
    map: Map,
    read_bytes: u64,
}

impl OldGnuMap {
    const PAIR_BYTES: usize = 24;

    /// The pairs in a header. Whether another block of them follows.
    pub(super) fn put_header(&mut self, header: &Block) -> Result<bool, ArchiveRule> {
        self.put(at(header, GNU_SPARSE))
    }

    /// The pairs in a block after the header. Whether another one follows.
    pub(super) fn put_block(&mut self, block: &Block) -> Result<bool, ArchiveRule> {
        self.put(block)
    }

    fn put(&mut self, table: &[u8]) -> Result<bool, ArchiveRule> {
        self.read_bytes = self.read_bytes.saturating_add(table.len() as u64);
        if self.read_bytes >= LENGTH_LIMIT_BYTES {
            return Err(ArchiveRule::SparseLength);
        }
        let mut pairs = table.chunks_exact(Self::PAIR_BYTES);
        for pair in pairs.by_ref().take_while(|pair| pair.first() != Some(&0)) {
            let (offset, length) = pair.split_at(Self::PAIR_BYTES / 2);
            let number = |field| number::field(field).ok_or(ArchiveRule::SparseMap);
            self.map.push(number(offset)?, number(length)?)?;
        }
        // Behind the pairs, all of them.
        let is_continued = table.chunks_exact(Self::PAIR_BYTES).remainder().first();
        Ok(is_continued.is_some_and(|flag| *flag > 0))
    }

    pub(super) fn into_map(self) -> Map {
        self.map
    }
}

/// The map in lines, one number each, while its blocks are read: how many pairs there are, and the pairs.
#[derive(Debug, Default)]
pub(super) struct LinesMap {
    text: Vec<u8>,
    lines: usize,
    wanted: Option<usize>,
}

impl LinesMap {
    /// The map, if it ends in this block.
    pub(super) fn put(&mut self, block: &Block) -> Result<Option<Map>, ArchiveRule> {
        self.text.extend_from_slice(block);
        self.lines = self.lines.saturating_add(block.iter().filter(|byte| **byte == LINE_FEED).count());
        if self.wanted.is_none() && self.lines > 0 {
            let count = self.numbers().next().flatten().ok_or(ArchiveRule::SparseMap)?;
            let count = usize::try_from(count).map_err(|_| ArchiveRule::SparseMap)?;
            self.wanted = Some(count.saturating_mul(2).saturating_add(1));
        }
        if self.wanted.is_some_and(|wanted| self.lines >= wanted) {
            return self.pairs().map(Some);
        }
        let next_bytes = (self.text.len() as u64).saturating_add(BLOCK);
        if next_bytes > LENGTH_LIMIT_BYTES { Err(ArchiveRule::SparseLength) } else { Ok(None) }
    }

    fn numbers(&self) -> impl Iterator<Item = Option<i64>> {
        self.text.split(|byte| *byte == LINE_FEED).map(number::decimal)
    }

    fn pairs(&self) -> Result<Map, ArchiveRule> {
        let mut map = Map::default();
        let mut numbers = self.numbers().take(self.wanted.unwrap_or_default()).skip(1);
        while let (Some(offset), Some(length)) = (numbers.next(), numbers.next()) {
            let number = |number: Option<i64>| number.ok_or(ArchiveRule::SparseMap);
            map.push(number(offset)?, number(length)?)?;
        }
        Ok(map)
    }
}
