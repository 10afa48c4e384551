//! The static search tree over the merged segments: built once, never changed.
//!
//! Keys are the *last* sector of a segment, so the first key not below a sector names the segment that holds it
//! or the next one after it. A node has 16 keys of 32 bits, one cache line, and is searched by counting the keys
//! below the sector, which the compiler turns into vector compares without a branch. 32 bits reach 2 TiB; every
//! such stretch of the device that holds data has a tree of its own, a [`Chunk`], and segments are cut where chunks meet.
//!
//! A leaf keeps the keys, the lengths and the places of its 16 segments in four neighbouring cache lines: 16 bytes a segment.
//! The levels above add 4/15 of a byte. All nodes lie in one array and all leaves in another, so a lookup
//! follows no pointer.

/// Keys of a node, and children too.
const FANOUT: usize = 16;

/// Levels above the leaves: 16^8 leaves are more than any memory holds.
const MAX_LEVELS: usize = 8;

/// Sectors of a chunk, as a power of two: what a 32-bit key can tell apart.
const CHUNK_BITS: u32 = 32;

/// Longest segment in sectors, so that a length fits beside a key.
pub(super) const MAX_LEN: u64 = 1 << 31;

/// Bits of the position inside a layer.
const MOFFSET_BITS: u32 = 55;

/// The layer is the highest byte of a place.
const RANK_SHIFT: u32 = 56;

/// A cache line of keys.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Keys([u32; FANOUT]);

impl Keys {
    const FULL: Self = Self([u32::MAX; FANOUT]);

    /// How many keys are below `key`.
    #[inline]
    fn below(&self, key: u32) -> usize {
        self.0.iter().map(|other| u32::from(*other < key)).sum::<u32>() as usize
    }
}

#[derive(Debug, Clone)]
struct Leaf {
    last: Keys,
    /// 0 where there is no segment.
    len: [u32; FANOUT],
    place: [u64; FANOUT],
}

const EMPTY_LEAF: Leaf = Leaf { last: Keys::FULL, len: [0; FANOUT], place: [0; FANOUT] };

/// One stretch of 2^32 sectors.
#[derive(Debug, Clone)]
struct Chunk {
    number: u32,
    /// Key of its last segment.
    last: u32,
    first_leaf: u32,
    end_leaf: u32,
    /// Levels above the leaves, the root first: where each begins in the array of nodes.
    levels: [u32; MAX_LEVELS],
    depth: u32,
}

/// A segment of the merged image, in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) rank: u8,
    pub(super) moffset: u64,
}

impl Found {
    pub(super) fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Where a segment lies in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    chunk: u32,
    leaf: u32,
    slot: u32,
}

#[derive(Debug, Default)]
pub(super) struct Tree {
    chunks: Vec<Chunk>,
    nodes: Vec<Keys>,
    leaves: Vec<Leaf>,
    segments: usize,
}

impl Tree {
    /// The first segment that ends after `sector`.
    #[inline]
    pub(super) fn search(&self, sector: u64) -> Option<Position> {
        let number = u32::try_from(sector >> CHUNK_BITS).ok()?;
        // Nearly every device has one chunk.
        let index = match self.chunks.as_slice() {
            [only] => usize::from(only.number < number),
            chunks => chunks.partition_point(|chunk| chunk.number < number),
        };
        let chunk = self.chunks.get(index)?;
        let chunk_index = u32::try_from(index).ok()?;
        #[expect(clippy::cast_possible_truncation, reason = "the bits above are the chunk's number")]
        let key = sector as u32;
        if chunk.number > number {
            return Some(Position { chunk: chunk_index, leaf: chunk.first_leaf, slot: 0 });
        }
        if key > chunk.last {
            let next = self.chunks.get(index + 1)?;
            return Some(Position { chunk: chunk_index + 1, leaf: next.first_leaf, slot: 0 });
        }
        let mut child = 0;
        for level in chunk.levels.iter().take(chunk.depth as usize) {
            child = child * FANOUT + self.nodes.get(*level as usize + child)?.below(key);
        }
        let leaf = chunk.first_leaf as usize + child;
        let slot = self.leaves.get(leaf)?.last.below(key);
        Some(Position {
            chunk: chunk_index,
            leaf: u32::try_from(leaf).ok()?,
            slot: u32::try_from(slot).ok()?,
        })
    }

    /// The segment at `position`.
    #[inline]
    pub(super) fn get(&self, position: Position) -> Option<Found> {
        let chunk = self.chunks.get(position.chunk as usize)?;
        let leaf = self.leaves.get(position.leaf as usize)?;
        let slot = position.slot as usize;
        let (last, len) = (*leaf.last.0.get(slot)?, *leaf.len.get(slot)?);
        let place = *leaf.place.get(slot)?;
        if len == 0 {
            return None;
        }
        let end = (u64::from(chunk.number) << CHUNK_BITS) + u64::from(last) + 1;
        let [.., rank] = place.to_le_bytes();
        Some(Found {
            start: end - u64::from(len),
            len: u64::from(len),
            rank,
            moffset: place & ((1 << MOFFSET_BITS) - 1),
        })
    }

    /// The segment after `position`.
    #[inline]
    pub(super) fn next(&self, position: Position) -> Option<Position> {
        let slot = position.slot as usize + 1;
        let leaf = self.leaves.get(position.leaf as usize)?;
        if leaf.len.get(slot).is_some_and(|len| *len != 0) {
            return Some(Position { slot: position.slot + 1, ..position });
        }
        if position.leaf + 1 < self.chunks.get(position.chunk as usize)?.end_leaf {
            return Some(Position { leaf: position.leaf + 1, slot: 0, ..position });
        }
        let next = self.chunks.get(position.chunk as usize + 1)?;
        Some(Position { chunk: position.chunk + 1, leaf: next.first_leaf, slot: 0 })
    }

    pub(super) fn segments(&self) -> usize {
        self.segments
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.chunks.capacity() * size_of::<Chunk>()
            + self.nodes.capacity() * size_of::<Keys>()
            + self.leaves.capacity() * size_of::<Leaf>()
    }
}

/// Takes segments in ascending order, joins those that continue one another, and builds the tree.
pub(super) struct TreeBuilder {
    tree: Tree,
    pending: Option<Found>,
    /// Used slots of the last leaf.
    filled: usize,
}

impl TreeBuilder {
    pub(super) fn with_capacity(segments: usize) -> Self {
        let leaves = Vec::with_capacity(segments.div_ceil(FANOUT));
        Self { tree: Tree { leaves, ..Tree::default() }, pending: None, filled: FANOUT }
    }

    pub(super) fn push(&mut self, next: Found) {
        if let Some(last) = &mut self.pending {
            let continues = last.end() == next.start
                && last.rank == next.rank
                && last.moffset + last.len == next.moffset
                && last.len + next.len <= MAX_LEN;
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
    fn place(&mut self, mut found: Found) {
        while found.len > 0 {
            let room = (1 << CHUNK_BITS) - found.start % (1 << CHUNK_BITS);
            let part = Found { len: found.len.min(room), ..found };
            self.place_in_chunk(part);
            found.start += part.len;
            found.moffset += part.len;
            found.len -= part.len;
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a sector has 50 bits, a length at most 32, a leaf 28"
    )]
    fn place_in_chunk(&mut self, part: Found) {
        let last_sector = part.end() - 1;
        let number = (last_sector >> CHUNK_BITS) as u32;
        let leaves = &mut self.tree.leaves;
        if self.tree.chunks.last().is_none_or(|chunk| chunk.number != number) {
            let (first_leaf, levels) = (leaves.len() as u32, [0; MAX_LEVELS]);
            self.tree.chunks.push(Chunk {
                number,
                last: 0,
                first_leaf,
                end_leaf: first_leaf,
                levels,
                depth: 0,
            });
            self.filled = FANOUT;
        }
        if self.filled == FANOUT {
            leaves.push(EMPTY_LEAF);
            self.filled = 0;
        }
        let slot = self.filled;
        if let Some(leaf) = leaves.last_mut()
            && let Some(last) = leaf.last.0.get_mut(slot)
            && let Some(len) = leaf.len.get_mut(slot)
            && let Some(place) = leaf.place.get_mut(slot)
        {
            *last = last_sector as u32;
            *len = part.len as u32;
            *place = part.moffset & ((1 << MOFFSET_BITS) - 1) | u64::from(part.rank) << RANK_SHIFT;
        }
        if let Some(chunk) = self.tree.chunks.last_mut() {
            chunk.last = last_sector as u32;
            chunk.end_leaf = leaves.len() as u32;
        }
        self.filled += 1;
        self.tree.segments += 1;
    }
}

/// Builds the levels above the leaves of one chunk, bottom up, and appends them root first.
fn build_levels(chunk: &mut Chunk, leaves: &[Leaf], nodes: &mut Vec<Keys>) {
    let own = leaves.get(chunk.first_leaf as usize..chunk.end_leaf as usize).unwrap_or_default();
    let mut below: Vec<u32> = own.iter().map(|leaf| greatest(&leaf.last, &leaf.len)).collect();
    let mut levels: Vec<Vec<Keys>> = Vec::new();
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
fn greatest(last: &Keys, len: &[u32; FANOUT]) -> u32 {
    last.0.iter().zip(len).filter(|(_, len)| **len != 0).map(|(last, _)| *last).max().unwrap_or(u32::MAX)
}
