//! Builds the search tree from segments in ascending order.

use super::{
    keys::{Keys, to_key},
    mapping::Place,
    tree::{CHUNK_BITS, Chunk, EMPTY_LEAF, FANOUT, LEAF, Leaf, Tree},
};

/// A stretch of the device that one layer's file holds in one piece. All in sectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) layer: u8,
    pub(super) moffset: u64,
}

impl Run {
    fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Takes segments in ascending order, joins those that continue one another, and builds the tree.
pub(super) struct TreeBuilder {
    tree: Tree,
    pending: Option<Run>,
    /// Used slots of the last leaf.
    filled: usize,
}

impl TreeBuilder {
    pub(super) fn with_capacity(segments: usize) -> Self {
        let leaves = Vec::with_capacity(segments.div_ceil(LEAF));
        Self { tree: Tree { leaves, ..Tree::default() }, pending: None, filled: LEAF }
    }

    pub(super) fn push(&mut self, next: Run) {
        if let Some(last) = &mut self.pending {
            let continues = last.end() == next.start
                && last.layer == next.layer
                && last.moffset + last.len == next.moffset
                && last.len + next.len <= Place::LENGTH_LIMIT;
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

    /// Cuts `run` where chunks meet and puts the parts into leaves.
    fn place(&mut self, mut run: Run) {
        while run.len > 0 {
            let room = (1 << CHUNK_BITS) - run.start % (1 << CHUNK_BITS);
            let part = Run { len: run.len.min(room), ..run };
            self.place_in_chunk(part);
            run.start += part.len;
            run.moffset += part.len;
            run.len -= part.len;
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a sector has 50 bits, the number of a leaf 28")]
    fn place_in_chunk(&mut self, part: Run) {
        let last_sector = part.end() - 1;
        let (number, key) = ((last_sector >> CHUNK_BITS) as u32, to_key(last_sector as u32));
        let leaves = &mut self.tree.leaves;
        if self.tree.chunks.last().is_none_or(|chunk| chunk.number != number) {
            self.tree.chunks.push(Chunk::starting_at(number, leaves.len() as u32));
            self.filled = LEAF;
        }
        if self.filled == LEAF {
            leaves.push(EMPTY_LEAF);
            self.filled = 0;
        }
        if let Some(leaf) = leaves.last_mut()
            && let Some(last) = leaf.last.0.get_mut(self.filled)
            && let Some(place) = leaf.place.get_mut(self.filled)
        {
            *last = key;
            *place = Place::new(part.moffset, part.layer, part.len);
        }
        if let Some(chunk) = self.tree.chunks.last_mut() {
            chunk.last = key;
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
    let used = leaf.last.0.iter().zip(leaf.place).filter(|(_, place)| place.is_some());
    used.map(|(last, _)| *last).max().unwrap_or(i32::MAX)
}
