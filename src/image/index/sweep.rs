//! Merges the segment lists of a stack in one sweep over the device, from its first sector to its last.
//!
//! A heap holds the next segment of every layer by its start; layers whose segment has begun are kept in a set ordered by
//! height. At each position the highest layer of the set wins until its segment ends or a higher one begins.
//! Every segment enters the heap at most once for each time a higher one interrupts it, so the work is
//! `O(segments * log layers)` whatever the stack looks like, and the stack is never walked recursively.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::format::lsmt::Segment;

/// Sector positions have 50 bits, so a position and a rank of 8 bits fit one comparable word.
const RANK_BITS: u32 = 8;

/// One winner of the sweep. All fields are in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Winner {
    /// First sector on the device.
    pub(crate) start: u64,
    /// One past the last sector.
    pub(crate) end: u64,
    /// Position from the top of the stack, 0 being the highest layer.
    pub(crate) rank: u8,
    /// Where the data lies in the layer; of no meaning where `zeroed`.
    pub(crate) moffset: u64,
    /// Reads as zeroes and hides what lies below.
    pub(crate) zeroed: bool,
}

/// Calls `emit` for every visible piece, in ascending order.
///
/// `layers` is ordered from the top, at most 256 long; each list is sorted and free of overlaps, as the decoder has checked.
pub(crate) fn sweep(layers: &[&[Segment]], mut emit: impl FnMut(Winner)) {
    let mut cursors: Vec<std::slice::Iter<'_, Segment>> = layers.iter().map(|layer| layer.iter()).collect();
    let mut heads = Heads::new(&cursors);
    let mut begun = RankSet::default();
    let mut at = 0;
    loop {
        while let Some(rank) = heads.pop_if(|start, _| start <= at) {
            begun.insert(rank);
        }
        let Some(rank) = begun.first() else {
            match heads.next_start() {
                Some(start) => at = start,
                None => return,
            }
            continue;
        };
        let Some(segment) = cursors.get_mut(usize::from(rank)).and_then(|rest| pass(rest, at)) else {
            begun.remove(rank);
            continue;
        };
        if segment.offset() > at {
            begun.remove(rank);
            heads.push(segment.offset(), rank);
            continue;
        }
        let mut end = segment.end();
        // Lower layers that begin under this segment join the set; a higher one cuts it short.
        while let Some(lower) = heads.pop_if(|start, other| start < end && other > rank) {
            begun.insert(lower);
        }
        if let Some(start) = heads.next_start() {
            end = end.min(start);
        }
        let skipped = if segment.zeroed() { 0 } else { at - segment.offset() };
        emit(Winner {
            start: at,
            end,
            rank,
            moffset: segment.moffset().saturating_add(skipped),
            zeroed: segment.zeroed(),
        });
        at = end;
    }
}

/// The first segment that does not end at or before `at`; those before it are passed for good.
fn pass(rest: &mut std::slice::Iter<'_, Segment>, at: u64) -> Option<Segment> {
    loop {
        let segment = *rest.as_slice().first()?;
        if segment.end() > at {
            return Some(segment);
        }
        rest.next();
    }
}

/// The layers whose next segment has not begun, by its start, the highest layer first among equals.
struct Heads(BinaryHeap<Reverse<u64>>);

impl Heads {
    fn new(cursors: &[std::slice::Iter<'_, Segment>]) -> Self {
        let mut heads = Self(BinaryHeap::with_capacity(cursors.len()));
        for (rank, rest) in (0..=u8::MAX).zip(cursors) {
            if let Some(first) = rest.as_slice().first() {
                heads.push(first.offset(), rank);
            }
        }
        heads
    }

    fn push(&mut self, start: u64, rank: u8) {
        self.0.push(Reverse(start << RANK_BITS | u64::from(rank)));
    }

    fn next_start(&self) -> Option<u64> {
        self.0.peek().map(|Reverse(head)| head >> RANK_BITS)
    }

    fn pop_if(&mut self, wanted: impl FnOnce(u64, u8) -> bool) -> Option<u8> {
        let Reverse(head) = *self.0.peek()?;
        let [rank, ..] = head.to_le_bytes();
        if !wanted(head >> RANK_BITS, rank) {
            return None;
        }
        self.0.pop();
        Some(rank)
    }
}

/// A set of ranks that knows its smallest member.
#[derive(Default)]
struct RankSet([u64; 4]);

impl RankSet {
    fn insert(&mut self, rank: u8) {
        if let Some(word) = self.0.get_mut(usize::from(rank >> 6)) {
            *word |= 1 << (rank & 63);
        }
    }

    fn remove(&mut self, rank: u8) {
        if let Some(word) = self.0.get_mut(usize::from(rank >> 6)) {
            *word &= !(1 << (rank & 63));
        }
    }

    fn first(&self) -> Option<u8> {
        let (base, word) = (0..=u8::MAX).step_by(64).zip(self.0).find(|(_, word)| *word != 0)?;
        u8::try_from(word.trailing_zeros()).ok().map(|bit| base + bit)
    }
}
