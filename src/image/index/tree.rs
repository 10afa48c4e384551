//! The static search tree over the merged segments: built once, never changed.
//!
//! Keys are the *last* sector of a segment, so the first key not below a sector names the segment that holds it
//! or the next one after it. A node is searched by counting the keys below the sector with vector compares, without a
//! branch. Keys have 32 bits, which reach 2 TiB; every
//! such stretch of the device that holds data has a tree of its own, a [`Chunk`], and segments are cut where chunks meet.
//!
//! A leaf keeps the keys and the places of its segments side by side, 12 bytes a segment. The levels above add an eighth
//! of a byte. All nodes lie in one array and all leaves in another, so a lookup follows no pointer.

use super::keys::{Count, Counted, Keys, dispatch, from_key, to_key};

/// Children of an inner node: four cache lines of keys, which are loaded and compared side by side, so that a search
/// takes few steps that wait for one another: two above the leaves for 131,072 segments, three for 8 million.
const FANOUT: usize = 64;

/// Segments of a leaf.
const LEAF: usize = 32;

/// Levels above the leaves: 64^5 leaves are more than any memory holds.
const MAX_LEVELS: usize = 5;

/// Sectors of a chunk, as a power of two: what a 32-bit key can tell apart.
const CHUNK_BITS: u32 = 32;

/// Longest segment in sectors, so that length, layer and position share a word.
const LENGTH_LIMIT: u64 = (1 << 16) - 1;

/// Bits of a position inside a layer's file, in sectors: layers reach 512 TiB.
const MOFFSET_BITS: u32 = 40;

/// The layer is above the position, the length above the layer.
const RANK_SHIFT: u32 = MOFFSET_BITS;
const LENGTH_SHIFT: u32 = 48;

/// Size that the file of a layer must not exceed, in sectors.
pub(super) const LAYER_SECTORS_LIMIT: u64 = 1 << MOFFSET_BITS;

#[derive(Debug, Clone)]
struct Leaf {
    last: Keys<LEAF>,
    /// 0 where there is no segment.
    place: [u64; LEAF],
}

impl Leaf {
    #[inline]
    fn mapping(&self, chunk: &Chunk, slot: usize) -> Option<Mapping> {
        let (last, place) = (*self.last.0.get(slot)?, *self.place.get(slot)?);
        if place == 0 {
            return None;
        }
        let end = (u64::from(chunk.number) << CHUNK_BITS) + u64::from(from_key(last)) + 1;
        let len = place >> LENGTH_SHIFT;
        let [_, _, _, _, _, layer, ..] = place.to_le_bytes();
        Some(Mapping { start: end - len, len, layer, moffset: place & (LAYER_SECTORS_LIMIT - 1) })
    }
}

const EMPTY_LEAF: Leaf = Leaf { last: Keys::FULL, place: [0; LEAF] };

/// One stretch of 2^32 sectors.
#[derive(Debug, Clone)]
struct Chunk {
    number: u32,
    /// Key of its last segment.
    last: i32,
    first_leaf: u32,
    end_leaf: u32,
    /// Levels above the leaves, the root first: where each begins in the array of nodes.
    levels: [u32; MAX_LEVELS],
    depth: u32,
}

/// A segment of the merged image. All positions and lengths are in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// First sector on the device.
    pub start: u64,
    /// Sectors covered, at least one.
    pub len: u64,
    /// Position of the layer from the top of the stack, 0 being the highest.
    pub layer: u8,
    /// First sector in the layer's LSMT file.
    pub moffset: u64,
}

impl Mapping {
    /// One past the last sector on the device.
    #[must_use]
    #[inline]
    pub fn end(&self) -> u64 {
        self.start + self.len
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
    chunks: Vec<Chunk>,
    nodes: Vec<Keys<FANOUT>>,
    leaves: Vec<Leaf>,
    segments: usize,
    /// What this processor can compare at once, detected when the tree is built.
    arch: pulp::Arch,
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
        // Nearly every device has one chunk.
        let index = match self.chunks.as_slice() {
            [only] => usize::from(u64::from(only.number) < number),
            chunks => chunks.partition_point(|chunk| u64::from(chunk.number) < number),
        };
        let Some(chunk) = self.chunks.get(index) else { return Position::NONE };
        #[expect(clippy::cast_possible_truncation, reason = "the bits above are the chunk's number")]
        let key = if u64::from(chunk.number) > number { i32::MIN } else { to_key(sector as u32) };
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
        self.leaves.get(leaf)?.mapping(self.chunks.get(chunk)?, slot)
    }

    /// The segment after `position`.
    #[inline]
    pub(super) fn next(&self, position: Position) -> Position {
        let (chunk, leaf, slot) = position.parts();
        let place = self.leaves.get(leaf).and_then(|leaf| leaf.place.get(slot + 1));
        if place.is_some_and(|place| *place != 0) {
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

/// Takes segments in ascending order, joins those that continue one another, and builds the tree.
pub(super) struct TreeBuilder {
    tree: Tree,
    pending: Option<Mapping>,
    /// Used slots of the last leaf.
    filled: usize,
}

impl TreeBuilder {
    pub(super) fn with_capacity(segments: usize) -> Self {
        let leaves = Vec::with_capacity(segments.div_ceil(LEAF));
        Self { tree: Tree { leaves, ..Tree::default() }, pending: None, filled: LEAF }
    }

    pub(super) fn push(&mut self, next: Mapping) {
        if let Some(last) = &mut self.pending {
            let continues = last.end() == next.start
                && last.layer == next.layer
                && last.moffset + last.len == next.moffset
                && last.len + next.len <= LENGTH_LIMIT;
            if continues {
                last.len += next.len;
                return;
            }
        }
        if let Some(ready) = self.pending.replace(next) {
            self.place(ready);
        }
    }

    pub(super) fn finish(mut self) -> Tree {
        if let Some(ready) = self.pending.take() {
            self.place(ready);
        }
        for chunk in &mut self.tree.chunks {
            build_levels(chunk, &self.tree.leaves, &mut self.tree.nodes);
        }
        self.tree.chunks.shrink_to_fit();
        self.tree.nodes.shrink_to_fit();
        self.tree.leaves.shrink_to_fit();
        self.tree
    }

    /// Cuts `found` where chunks meet and puts the parts into leaves.
    fn place(&mut self, mut found: Mapping) {
        while found.len > 0 {
            let room = (1 << CHUNK_BITS) - found.start % (1 << CHUNK_BITS);
            let part = Mapping { len: found.len.min(room), ..found };
            self.place_in_chunk(part);
            found.start += part.len;
            found.moffset += part.len;
            found.len -= part.len;
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a sector has 50 bits, the number of a leaf 28")]
    fn place_in_chunk(&mut self, part: Mapping) {
        let last_sector = part.end() - 1;
        let number = (last_sector >> CHUNK_BITS) as u32;
        let leaves = &mut self.tree.leaves;
        if self.tree.chunks.last().is_none_or(|chunk| chunk.number != number) {
            let (first_leaf, levels) = (leaves.len() as u32, [0; MAX_LEVELS]);
            self.tree.chunks.push(Chunk {
                number,
                last: i32::MIN,
                first_leaf,
                end_leaf: first_leaf,
                levels,
                depth: 0,
            });
            self.filled = LEAF;
        }
        if self.filled == LEAF {
            leaves.push(EMPTY_LEAF);
            self.filled = 0;
        }
        let slot = self.filled;
        if let Some(leaf) = leaves.last_mut()
            && let Some(last) = leaf.last.0.get_mut(slot)
            && let Some(place) = leaf.place.get_mut(slot)
        {
            *last = to_key(last_sector as u32);
            *place = part.moffset | u64::from(part.layer) << RANK_SHIFT | part.len << LENGTH_SHIFT;
        }
        if let Some(chunk) = self.tree.chunks.last_mut() {
            chunk.last = to_key(last_sector as u32);
            chunk.end_leaf = leaves.len() as u32;
        }
        self.filled += 1;
        self.tree.segments += 1;
    }
}

/// Builds the levels above the leaves of one chunk, bottom up, and appends them root first.
fn build_levels(chunk: &mut Chunk, leaves: &[Leaf], nodes: &mut Vec<Keys<FANOUT>>) {
    let own = leaves.get(chunk.first_leaf as usize..chunk.end_leaf as usize).unwrap_or_default();
    let mut below: Vec<i32> = own.iter().map(greatest).collect();
    let mut levels: Vec<Vec<Keys<FANOUT>>> = Vec::new();
    while below.len() > 1 {
        let (mut level, mut maxima) = (Vec::new(), Vec::new());
        for children in below.chunks(FANOUT) {
            let mut keys = Keys::FULL;
            keys.0.iter_mut().zip(children).for_each(|(key, child)| *key = *child);
            level.push(keys);
            maxima.extend(children.last());
        }
        levels.push(level);
        below = maxima;
    }
    chunk.depth = 0;
    for (start, level) in chunk.levels.iter_mut().zip(levels.iter().rev()) {
        *start = u32::try_from(nodes.len()).expect("fewer nodes than leaves, whose number has 28 bits");
        nodes.extend_from_slice(level);
        chunk.depth += 1;
    }
}

/// Key of the last segment in a leaf.
fn greatest(leaf: &Leaf) -> i32 {
    let used = leaf.last.0.iter().zip(leaf.place).filter(|(_, place)| *place != 0);
    used.map(|(last, _)| *last).max().unwrap_or(i32::MAX)
}
