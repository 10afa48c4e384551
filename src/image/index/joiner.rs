//! Joins visible pieces that continue one another into the segments of the table.

use super::mapping::{LENGTH_LIMIT, Mapping};

/// A stretch of the device that one layer's file holds in one piece. All in sectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) layer: u8,
    pub(super) moffset: u64,
}

impl Run {
    /// Takes `next` in, if it goes on where this ends, on the device as in the file.
    fn join(&mut self, next: &Self) -> bool {
        let joins = self.start + self.len == next.start
            && self.layer == next.layer
            && self.moffset + self.len == next.moffset
            && self.len + next.len <= LENGTH_LIMIT;
        if joins {
            self.len += next.len;
        }
        joins
    }
}

/// Takes pieces in ascending order.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    segments: Vec<Mapping>,
    pending: Option<Run>,
}

impl Joiner {
    /// With room for `segments`.
    pub(super) fn with_capacity(segments: usize) -> Self {
        Self { segments: Vec::with_capacity(segments), pending: None }
    }

    pub(super) fn push(&mut self, next: Run) {
        if !self.pending.as_mut().is_some_and(|last| last.join(&next)) {
            let ready = self.pending.replace(next);
            self.segments.extend(ready.and_then(|run| Mapping::new(&run)));
        }
    }

    pub(super) fn finish(mut self) -> Vec<Mapping> {
        self.segments.extend(self.pending.and_then(|run| Mapping::new(&run)));
        self.segments
    }
}
