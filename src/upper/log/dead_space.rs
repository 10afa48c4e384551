//! Sectors of the data file that nothing points to any more, gathered into whole blocks of the file system below.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// What can be given back now, what has been, and the parts of blocks whose other sectors are still in use.
///
/// A block that is dead in part has a living sector, so that there are at most about as many parts as extents in the map.
#[derive(Debug)]
pub(super) struct DeadSpace {
    block_sectors: u64,
    /// What the file system still keeps.
    blocks: Runs,
    /// What it has been given back.
    holes: Runs,
    /// Start and end of runs inside one block; no two of the same block touch.
    parts: BTreeMap<u64, u64>,
    /// What is left of the run that is being written again.
    reused: Range<u64>,
}

/// Runs of whole blocks; no two touch.
#[derive(Debug, Default)]
struct Runs {
    /// Their ends.
    by_start: BTreeMap<u64, u64>,
    /// Their lengths and starts.
    by_length: BTreeSet<(u64, u64)>,
    sectors: u64,
}

impl DeadSpace {
    /// None yet, in a file whose file system has blocks of `block_sectors`.
    pub(super) fn new(block_sectors: u64) -> Self {
        let (blocks, holes, parts) = (Runs::default(), Runs::default(), BTreeMap::new());
        Self { block_sectors: block_sectors.max(1), blocks, holes, parts, reused: 0..0 }
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
            self.blocks.add(first..last);
        }
        let parts = if first <= last { [start..first, last..end] } else { [start..end, end..end] };
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            self.parts.insert(part.start, part.end);
        }
    }

    /// Sectors in whole blocks that are not given back.
    pub(super) fn whole_sectors(&self) -> u64 {
        self.blocks.sectors
    }

    /// Sectors that [`DeadSpace::reuse`] may give out.
    pub(super) fn reusable_sectors(&self) -> u64 {
        self.blocks.sectors + self.holes.sectors + (self.reused.end - self.reused.start)
    }

    /// Takes the first run of whole blocks that are not given back.
    pub(super) fn take_run(&mut self) -> Option<Range<u64>> {
        self.blocks.take_first()
    }

    /// Adds whole blocks that have been given back, to be used again all the same.
    pub(super) fn add_hole(&mut self, run: Range<u64>) {
        self.holes.add(run);
    }

    /// Takes sectors to be used again: `length` from a multiple of `unit` on, or if `may_be_less`, the most that there are in
    /// one place; and those before them that must stay unused.
    ///
    /// They come from the longest run until that is used up, so that there are few runs and long ones.
    pub(super) fn reuse(
        &mut self,
        length: u64,
        unit: u64,
        may_be_less: bool,
    ) -> Option<(Range<u64>, Range<u64>)> {
        let longest = [&self.reused, &self.blocks.longest(), &self.holes.longest()]
            .map(|run| place(run, length, unit).map_or(0, |found| found.end - found.start));
        let [current, kept, given_back] = longest;
        let wanted = if may_be_less { current.max(kept).max(given_back) } else { length };
        if wanted == 0 || longest.iter().all(|found| *found < wanted) {
            return None;
        }
        if current < wanted {
            // What the file system keeps takes no new room.
            let runs = if kept >= wanted { &mut self.blocks } else { &mut self.holes };
            let next = runs.take_longest();
            let rest = std::mem::replace(&mut self.reused, next);
            self.add(rest);
        }
        let found = place(&self.reused, length, unit)?;
        let skipped = self.reused.start..found.start;
        self.reused.start = found.end;
        Some((found, skipped))
    }
}

impl Runs {
    fn add(&mut self, run: Range<u64>) {
        let Range { start, end } = join(&mut self.by_start, run.clone());
        for neighbour in
            [start..run.start, run.end..end].into_iter().filter(|neighbour| !neighbour.is_empty())
        {
            self.by_length.remove(&(neighbour.end - neighbour.start, neighbour.start));
        }
        self.by_start.insert(start, end);
        self.by_length.insert((end - start, start));
        self.sectors += run.end - run.start;
    }

    fn longest(&self) -> Range<u64> {
        self.by_length.last().map_or(0..0, |(length, start)| *start..start + length)
    }

    fn take_longest(&mut self) -> Range<u64> {
        let longest = self.longest();
        self.remove(longest.clone());
        longest
    }

    fn take_first(&mut self) -> Option<Range<u64>> {
        let first = self.by_start.first_key_value().map(|(start, end)| *start..*end)?;
        self.remove(first.clone());
        Some(first)
    }

    fn remove(&mut self, run: Range<u64>) {
        if self.by_start.remove(&run.start).is_some() {
            self.by_length.remove(&(run.end - run.start, run.start));
            self.sectors -= run.end - run.start;
        }
    }
}

/// At most `length` sectors of `run`, from a multiple of `unit` on, and whole units where there are fewer.
fn place(run: &Range<u64>, length: u64, unit: u64) -> Option<Range<u64>> {
    let start = run.start.checked_next_multiple_of(unit)?;
    let there = run.end.saturating_sub(start);
    let length = if there < length { there - there % unit } else { length };
    (length > 0).then(|| start..start + length)
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

    #[test]
    fn room_is_given_out_once_and_whole_where_it_is_there() {
        let mut random = fastrand::Rng::with_seed(4);
        let mut dead = DeadSpace::new(8);
        let mut in_use: Vec<Range<u64>> = (0..100).map(|block| block * 8..block * 8 + 8).collect();
        for _ in 0..20_000 {
            match random.u8(0..4) {
                0 | 1 if !in_use.is_empty() => {
                    let at = random.usize(0..in_use.len());
                    dead.add(in_use.swap_remove(at));
                }
                2 => {
                    if let Some(run) = dead.take_run() {
                        dead.add_hole(run);
                    }
                }
                _ => {
                    let unit = *random.choice(&[1, 8]).unwrap();
                    let length = random.u64(1..4) * unit;
                    let may_be_less = random.bool();
                    let Some((found, skipped)) = dead.reuse(length, unit, may_be_less) else { continue };
                    assert!(found.start.is_multiple_of(unit) && skipped.end == found.start);
                    assert!(found.end - found.start == length || may_be_less, "{found:?} of {length}");
                    dead.add(skipped);
                    assert!(in_use.iter().all(|other| other.end <= found.start || found.end <= other.start));
                    in_use.push(found);
                }
            }
        }
        in_use.into_iter().for_each(|run| dead.add(run));
        let mut left: Vec<u64> = take_blocks(&mut dead).into_iter().flatten().collect();
        left.extend(dead.reused.clone());
        while let Some(run) = dead.holes.take_first() {
            left.extend(run);
        }
        left.extend(std::mem::take(&mut dead.parts).into_iter().flat_map(|(start, end)| start..end));
        left.sort_unstable();
        assert_eq!(left, (0..800).collect::<Vec<_>>(), "nothing is lost");
    }
}
