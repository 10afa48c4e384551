//! An index in the making: segments that are put over one another in the order of time.

use std::collections::BTreeMap;

use super::Segment;

/// Ordered segments that do not overlap. A segment that is inserted takes the place of all that it covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentMap {
    by_offset: BTreeMap<u64, Segment>,
}

impl SegmentMap {
    /// A map of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `segment` over what is there. What it covers in part is cut, and in two where it lies in the middle.
    pub fn insert(&mut self, segment: Segment) {
        let (start, end) = (segment.offset(), segment.end());
        let before = self.by_offset.range(..start).next_back().map(|(_, before)| *before);
        if let Some(before) = before.filter(|before| before.end() > start) {
            self.put(before.within(0, start));
            self.put(before.within(end, u64::MAX));
        }
        while let Some((&covered_start, &covered)) = self.by_offset.range(start..end).next() {
            self.by_offset.remove(&covered_start);
            self.put(covered.within(end, u64::MAX));
        }
        self.put(Some(segment));
    }

    /// Whether a segment has one of the sectors `start..end` of the device.
    #[must_use]
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        self.by_offset.range(..end).next_back().is_some_and(|(_, last)| last.end() > start)
    }

    /// What the segments have of the sectors `start..end` of the device, by offset.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Segment> + '_ {
        let before = self.by_offset.range(..start).next_back();
        // A range that ends before it starts has nothing, and none at all could be made of it.
        let inside = self.by_offset.range(start..end.max(start));
        before.into_iter().chain(inside).filter_map(move |(_, segment)| segment.within(start, end))
    }

    /// The segments, by offset.
    pub fn iter(&self) -> impl Iterator<Item = Segment> + '_ {
        self.by_offset.values().copied()
    }

    /// Number of segments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_offset.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_offset.is_empty()
    }

    /// Gives the segments away, by offset.
    #[must_use]
    pub fn into_segments(self) -> Vec<Segment> {
        self.by_offset.into_values().collect()
    }

    fn put(&mut self, segment: Option<Segment>) {
        if let Some(segment) = segment {
            self.by_offset.insert(segment.offset(), segment);
        }
    }
}
