//! Sectors of the data file that nothing points to any more, gathered into whole blocks of the file system below.

use std::{collections::BTreeMap, ops::Range};

/// What can be punched out now, and the parts of blocks whose other sectors are still in use.
///
/// A block that is dead in part has a living sector, so that there are at most about as many parts as extents in the map.
#[derive(Debug)]
pub(super) struct DeadSpace {
    block_sectors: u64,
    /// Start and end of runs of whole blocks; no two touch.
    blocks: BTreeMap<u64, u64>,
    whole_sectors: u64,
    /// Start and end of runs inside one block; no two of the same block touch.
    parts: BTreeMap<u64, u64>,
}

impl DeadSpace {
    /// None yet, in a file whose file system has blocks of `block_sectors`.
    pub(super) fn new(block_sectors: u64) -> Self {
        let block_sectors = block_sectors.max(1);
        Self { block_sectors, blocks: BTreeMap::new(), whole_sectors: 0, parts: BTreeMap::new() }
    }

    /// Adds sectors that nobody reads any more.
    pub(super) fn add(&mut self, dead: Range<u64>) {
        if dead.is_empty() {
            return;
        }
        let Range { start, end } = join(&mut self.parts, dead);
        let first = start.next_multiple_of(self.block_sectors);
        let last = end - end % self.block_sectors;
        if first < last {
            self.whole_sectors += last - first;
            let run = join(&mut self.blocks, first..last);
            self.blocks.insert(run.start, run.end);
        }
        let parts = if first <= last { [start..first, last..end] } else { [start..end, end..end] };
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            self.parts.insert(part.start, part.end);
        }
    }

    /// Sectors in whole blocks.
    pub(super) fn whole_sectors(&self) -> u64 {
        self.whole_sectors
    }

    /// Takes the first run of whole blocks.
    pub(super) fn take_run(&mut self) -> Option<Range<u64>> {
        let (start, end) = self.blocks.pop_first()?;
        self.whole_sectors -= end - start;
        Some(start..end)
    }
}

/// Takes the neighbours of `run` out of `runs`, and returns it together with them.
fn join(runs: &mut BTreeMap<u64, u64>, run: Range<u64>) -> Range<u64> {
    let Range { mut start, mut end } = run;
    if let Some((before, _)) = runs.range(..start).next_back().filter(|(_, end)| **end == start) {
        start = *before;
        runs.remove(&start);
    }
    if let Some(after) = runs.remove(&end) {
        end = after;
    }
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_blocks(dead: &mut DeadSpace) -> Vec<Range<u64>> {
        std::iter::from_fn(|| dead.take_run()).collect()
    }

    #[test]
    fn a_block_is_given_out_when_its_last_sector_has_died() {
        let mut dead = DeadSpace::new(8);
        dead.add(8..12);
        dead.add(13..16);
        assert_eq!(dead.whole_sectors(), 0);
        dead.add(12..13);
        assert_eq!(dead.whole_sectors(), 8);
        dead.add(4..8);
        dead.add(18..35);
        assert_eq!(take_blocks(&mut dead), [8..16, 24..32]);
        assert_eq!((dead.whole_sectors(), take_blocks(&mut dead)), (0, Vec::new()));
        dead.add(32 + 3..40);
        dead.add(16..18);
        assert_eq!(take_blocks(&mut dead), [16..24, 32..40]);
        assert_eq!(dead.parts.into_iter().collect::<Vec<_>>(), [(4, 8)]);
    }

    #[test]
    fn every_block_of_a_file_that_dies_sector_by_sector_is_given_out_once() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut sectors: Vec<u64> = (0..800).collect();
        random.shuffle(&mut sectors);
        let mut dead = DeadSpace::new(8);
        let mut given = Vec::new();
        for sector in sectors {
            dead.add(sector..sector + 1);
            if random.u8(0..20) == 0 {
                given.extend(take_blocks(&mut dead).into_iter().flatten());
            }
        }
        given.extend(take_blocks(&mut dead).into_iter().flatten());
        given.sort_unstable();
        assert_eq!(given, (0..800).collect::<Vec<_>>());
        assert!(dead.parts.is_empty());
    }
}
