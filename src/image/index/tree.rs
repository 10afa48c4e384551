//! The static search tree over the merged segments: built once, never changed.
//!
//! Keys are the *last* sector of a segment, so the first key not below a sector names the segment that holds it
//! or the next one after it. A node is searched by counting the keys below the sector with vector compares, without a
//! branch. Keys have 32 bits, which reach 2 TiB; every such stretch of the device that holds data has a tree of its own,
//! a [`Chunk`], and segments are cut where chunks meet.
//!
//! A leaf keeps the keys and the places of its segments side by side, 12 bytes a segment, of which a lookup touches two
//! cache lines. The levels above add a quarter of a byte. All nodes lie in one array and all leaves in another, so a lookup follows no pointer.

use super::{
    keys::{Count, Counted, Keys, dispatch, from_key, to_key},
    mapping::{Mapping, Place},
};

/// Children of an inner node: four cache lines of keys, which are loaded and compared side by side, so that a search
/// takes few steps that wait for one another: two above the leaves for 65,536 segments, three for 4 million.
pub(super) const FANOUT: usize = 64;

/// Segments of a leaf.
pub(super) const LEAF: usize = 16;

/// Levels above the leaves: 64^5 leaves are more than any memory holds.
const MAX_LEVELS: usize = 5;

/// Sectors of a chunk, as a power of two: what a 32-bit key can tell apart.
pub(super) const CHUNK_BITS: u32 = 32;

#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub(super) last: Keys<LEAF>,
    pub(super) place: [Option<Place>; LEAF],
}

pub(super) const EMPTY_LEAF: Leaf = Leaf { last: Keys::FULL, place: [None; LEAF] };

/// One stretch of 2^32 sectors.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub(super) number: u32,
    /// Key of its last segment.
    pub(super) last: i32,
    pub(super) first_leaf: u32,
    pub(super) end_leaf: u32,
    /// Levels above the leaves, the root first: where each begins in the array of nodes.
    pub(super) levels: [u32; MAX_LEVELS],
    pub(super) depth: u32,
}

impl Chunk {
    pub(super) fn starting_at(number: u32, first_leaf: u32) -> Self {
        let levels = [0; MAX_LEVELS];
        Self { number, last: i32::MIN, first_leaf, end_leaf: first_leaf, levels, depth: 0 }
    }
}

/// Where a segment lies in the tree: the chunk's number in bits 40 to 63, the leaf's in bits 8 to 39, the slot below.
///
/// One word, since a search must hand its result back in a register: a caller that copies a larger one out of memory
/// with wider loads than the stores before makes the processor wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position(u64);

impl Position {
    /// No segment.
    const NONE: Self = Self(u64::MAX);

    #[inline]
    fn new(chunk: usize, leaf: usize, slot: usize) -> Self {
        Self((chunk as u64) << 40 | (leaf as u64) << 8 | slot as u64)
    }

    #[inline]
    fn parts(self) -> (usize, usize, usize) {
        let [slot, leaf @ .., _, _, _] = self.0.to_le_bytes();
        ((self.0 >> 40) as usize, u32::from_le_bytes(leaf) as usize, usize::from(slot))
    }
}

/// One search, to be compiled for each kind of vector unit.
struct Search<'a> {
    tree: &'a Tree,
    sector: u64,
}

impl Counted for Search<'_> {
    type Output = Position;

    #[inline(always)]
    fn with<C: Count>(self, count: C) -> Self::Output {
        self.tree.descend(count, self.sector)
    }
}

#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) chunks: Vec<Chunk>,
    pub(super) nodes: Vec<Keys<FANOUT>>,
    pub(super) leaves: Vec<Leaf>,
    pub(super) segments: usize,
    /// What this processor can compare at once, detected when the tree is built.
    pub(super) arch: pulp::Arch,
}

impl Tree {
    /// The first segment that ends after `sector`; [`Tree::get`] says whether there is one.
    #[inline]
    pub(super) fn search(&self, sector: u64) -> Position {
        dispatch(self.arch, Search { tree: self, sector })
    }

    /// Must be inlined into [`Search`].
    #[inline(always)]
    fn descend<C: Count>(&self, count: C, sector: u64) -> Position {
        let number = sector >> CHUNK_BITS;
        #[expect(clippy::cast_possible_truncation, reason = "the bits above are the chunk's number")]
        let key = to_key(sector as u32);
        let (index, chunk, key) = match self.chunks.first() {
            // Nearly every device has one chunk.
            Some(first) if u64::from(first.number) == number => (0, first, key),
            _ => {
                let index = self.chunks.partition_point(|chunk| u64::from(chunk.number) < number);
                match self.chunks.get(index) {
                    Some(chunk) if u64::from(chunk.number) == number => (index, chunk, key),
                    _ => return self.first_of(index),
                }
            }
        };
        if key > chunk.last {
            return self.first_of(index + 1);
        }
        let mut child = 0;
        for level in chunk.levels.iter().take(chunk.depth as usize) {
            let Some(node) = self.nodes.get(*level as usize + child) else { return Position::NONE };
            child = child * FANOUT + count.below(node, key);
        }
        let at = chunk.first_leaf as usize + child;
        let Some(leaf) = self.leaves.get(at) else { return Position::NONE };
        Position::new(index, at, count.below(&leaf.last, key))
    }

    fn first_of(&self, index: usize) -> Position {
        match self.chunks.get(index) {
            Some(chunk) => Position::new(index, chunk.first_leaf as usize, 0),
            None => Position::NONE,
        }
    }

    /// The segment at `position`.
    #[inline]
    pub(super) fn get(&self, position: Position) -> Option<Mapping> {
        let (chunk, leaf, slot) = position.parts();
        let leaf = self.leaves.get(leaf)?;
        let place = (*leaf.place.get(slot)?)?;
        let base = u64::from(self.chunks.get(chunk)?.number) << CHUNK_BITS;
        let last = base + u64::from(from_key(*leaf.last.0.get(slot)?));
        Some(Mapping::ending_at(last, place))
    }

    /// The segment after `position`.
    #[inline]
    pub(super) fn next(&self, position: Position) -> Position {
        let (chunk, leaf, slot) = position.parts();
        let place = self.leaves.get(leaf).and_then(|leaf| leaf.place.get(slot + 1));
        if place.is_some_and(Option::is_some) {
            return Position::new(chunk, leaf, slot + 1);
        }
        if self.chunks.get(chunk).is_some_and(|chunk| leaf + 1 < chunk.end_leaf as usize) {
            return Position::new(chunk, leaf + 1, 0);
        }
        self.first_of(chunk + 1)
    }

    pub(super) fn segments(&self) -> usize {
        self.segments
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.chunks.capacity() * size_of::<Chunk>()
            + self.nodes.capacity() * size_of::<Keys<FANOUT>>()
            + self.leaves.capacity() * size_of::<Leaf>()
    }
}
