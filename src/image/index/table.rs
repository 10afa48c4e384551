//! The merged segments in ascending order, under a directory that says where a search begins.
//!
//! The device is cut in stretches of one size, as many as segments or fewer; the directory knows the first segment that ends
//! after the start of each. A search reads two neighbouring entries and mostly has one or two segments to count among,
//! without a branch that depends on them. Where segments crowd in a few stretches it is a binary search of those of one
//! stretch, so that it never takes more steps than a binary search of them all. Each search waits for memory twice and has few
//! instructions, so that a processor overlaps several of them; a tree of wide nodes with vector compares was slower and
//! larger in code.

use super::mapping::Mapping;

/// Segments that a search counts among rather than halves.
const WINDOW: usize = 2;

/// Built once, never changed.
#[derive(Debug)]
pub(super) struct Table {
    segments: Box<[Mapping]>,
    /// For each stretch the number of its first segment, and at the end those of one stretch more, which has none.
    first: Box<[u32]>,
    /// Sectors of a stretch, as a power of two.
    stretch_bits: u32,
}

impl Table {
    /// Of segments in ascending order that do not overlap.
    ///
    /// # Panics
    /// With 2^32 segments or more: 255 layers of at most a million make at most twice as many visible ones.
    pub(super) fn new(segments: Vec<Mapping>) -> Self {
        let end = segments.last().map_or(0, |last| last.end());
        let most = segments.len().max(1) as u64;
        let stretch_bits = (0..u64::BITS).find(|bits| end >> bits <= most).unwrap_or_default();
        let stretches = (end >> stretch_bits) + 1;
        let mut at = 0;
        let first = (0..=stretches).map(|stretch| {
            let rest = segments.get(at..).unwrap_or_default();
            at += rest.iter().take_while(|segment| segment.end() <= stretch << stretch_bits).count();
            u32::try_from(at).expect("fewer segments than 2^32")
        });
        Self { first: first.collect(), segments: segments.into_boxed_slice(), stretch_bits }
    }

    /// The number of the first segment that ends after `sector`; that of no segment where there is none.
    #[inline]
    pub(super) fn search(&self, sector: u64) -> usize {
        let stretch = usize::try_from(sector >> self.stretch_bits).unwrap_or(usize::MAX - 1);
        let (Some(from), Some(to)) = (self.first.get(stretch), self.first.get(stretch + 1)) else {
            return self.segments.len();
        };
        let (from, to) = (*from as usize, *to as usize);
        let passed = match self.segments.get(from..from + WINDOW) {
            // From number `to` on all segments end later, so that counting them does no harm.
            Some([one, two]) if to - from <= WINDOW => {
                usize::from(one.end() <= sector) + usize::from(two.end() <= sector)
            }
            _ => self.segments.get(from..to).unwrap_or_default().partition_point(|one| one.end() <= sector),
        };
        from + passed
    }

    /// A segment by its number.
    #[inline]
    pub(super) fn get(&self, number: usize) -> Option<Mapping> {
        self.segments.get(number).copied()
    }

    /// One past the last sector of the last segment.
    pub(super) fn end(&self) -> u64 {
        self.segments.last().map_or(0, |last| last.end())
    }

    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.segments) + size_of_val(&*self.first)
    }
}
