//! Which sectors of the device the layer has, and where: an ordered map of extents that do not overlap.

use std::{collections::BTreeMap, num::NonZeroU64, ops::Range};

/// Where the bytes of a run of sectors are. In the map it takes 8 bytes: no data lies at sector 0 of a file, where the header is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(Option<NonZeroU64>);

impl Place {
    /// Nowhere: they read as zeroes, whatever lies below.
    pub(super) const ZEROES: Self = Self(None);

    /// In the data file from this sector on. Sector 0, which holds no data, stands for zeroes.
    pub(super) fn data(sector: u64) -> Self {
        Self(NonZeroU64::new(sector))
    }

    /// The sector of the data file; `None` for zeroes.
    pub(super) fn sector(self) -> Option<u64> {
        self.0.map(NonZeroU64::get)
    }

    /// The place of what follows `sectors` later.
    fn after(self, sectors: u64) -> Self {
        Self(self.0.map(|sector| sector.saturating_add(sectors)))
    }
}

/// A run of sectors of the device and their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) sectors: Range<u64>,
    pub(super) place: Place,
}

impl Extent {
    /// The part within `sectors`, which overlap it.
    fn within(&self, sectors: &Range<u64>) -> Self {
        let start = self.sectors.start.max(sectors.start);
        let place = self.place.after(start.saturating_sub(self.sectors.start));
        Self { sectors: start..self.sectors.end.min(sectors.end), place }
    }

    /// Its sectors of the data file, if it has any.
    pub(super) fn data(&self) -> Option<Range<u64>> {
        let start = self.place.sector()?;
        Some(start..start.saturating_add(self.sectors.end.saturating_sub(self.sectors.start)))
    }
}

/// A piece of a range that was looked up: an extent, or what the layer does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// The layer has it.
    Extent(Extent),
    /// It is for the layers below.
    Hole(Range<u64>),
}

/// The map. Each extent takes 24 bytes and its share of the tree; neighbours that continue each other are one.
#[derive(Debug, Default)]
pub(super) struct ExtentMap(BTreeMap<u64, Stored>);

#[derive(Debug, Clone, Copy)]
struct Stored {
    end: u64,
    place: Place,
}

impl ExtentMap {
    /// Number of extents.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts `extent` over whatever is there, and names the sectors of the data file that nothing points to any more.
    pub(super) fn insert(&mut self, extent: Extent, mut superseded: impl FnMut(Range<u64>)) {
        if extent.sectors.is_empty() {
            return;
        }
        self.carve(&extent.sectors, &mut superseded);
        let Extent { sectors: Range { start, end }, place } = extent;
        let mut joined = Stored { end, place };
        if let Some((_, next)) = self.0.range(end..=end).next()
            && next.place == place.after(end.saturating_sub(start))
        {
            joined.end = next.end;
            self.0.remove(&end);
        }
        if let Some((before, previous)) = self.0.range_mut(..start).next_back()
            && previous.end == start
            && place == previous.place.after(start.saturating_sub(*before))
        {
            previous.end = joined.end;
            return;
        }
        self.0.insert(start, joined);
    }

    /// Forgets `sectors`.
    pub(super) fn remove(&mut self, sectors: &Range<u64>) {
        self.carve(sectors, &mut |_| ());
    }

    /// Takes `sectors` out of every extent.
    fn carve(&mut self, sectors: &Range<u64>, superseded: &mut impl FnMut(Range<u64>)) {
        while let Some(old) = self.overlapping(sectors) {
            if old.sectors.start < sectors.start {
                if let Some(stored) = self.0.get_mut(&old.sectors.start) {
                    stored.end = sectors.start;
                }
            } else {
                self.0.remove(&old.sectors.start);
            }
            if old.sectors.end > sectors.end {
                let rest = old.within(&(sectors.end..old.sectors.end));
                self.0.insert(sectors.end, Stored { end: rest.sectors.end, place: rest.place });
            }
            if let Some(data) = old.within(sectors).data() {
                superseded(data);
            }
        }
    }

    /// The last extent that shares a sector with `sectors`.
    fn overlapping(&self, sectors: &Range<u64>) -> Option<Extent> {
        let (start, stored) = self.0.range(..sectors.end).next_back()?;
        (stored.end > sectors.start).then(|| stored.at(*start))
    }

    /// The extents from the first that ends after `sector`, as they are, in order.
    pub(super) fn from(&self, sector: u64) -> impl Iterator<Item = Extent> {
        let before = self.0.range(..sector).next_back().filter(|(_, stored)| stored.end > sector);
        before.into_iter().chain(self.0.range(sector..)).map(|(start, stored)| stored.at(*start))
    }

    /// Where a part of `sectors` ends that begins with them and shares sectors with at most `most` extents.
    pub(super) fn reach(&self, sectors: &Range<u64>, most: usize) -> u64 {
        let beyond = self.from(sectors.start).nth(most);
        beyond.map_or(sectors.end, |extent| extent.sectors.start.min(sectors.end))
    }

    /// Cuts `sectors` into pieces, in order, without a gap; none of them is empty.
    pub(super) fn pieces(&self, sectors: Range<u64>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if sectors.is_empty() {
            return pieces;
        }
        let mut at = sectors.start;
        for extent in self.from(sectors.start).take_while(|extent| extent.sectors.start < sectors.end) {
            let extent = extent.within(&sectors);
            if at < extent.sectors.start {
                pieces.push(Piece::Hole(at..extent.sectors.start));
            }
            at = extent.sectors.end;
            pieces.push(Piece::Extent(extent));
        }
        if at < sectors.end {
            pieces.push(Piece::Hole(at..sectors.end));
        }
        pieces
    }
}

impl Stored {
    fn at(self, start: u64) -> Extent {
        Extent { sectors: start..self.end, place: self.place }
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]
mod tests {
    use super::*;

    fn data(sectors: Range<u64>, sector: u64) -> Extent {
        Extent { sectors, place: Place::data(sector) }
    }

    fn zeroes(sectors: Range<u64>) -> Extent {
        Extent { sectors, place: Place::ZEROES }
    }

    fn all(map: &ExtentMap) -> Vec<Extent> {
        map.from(0).collect()
    }

    #[test]
    fn neighbours_that_continue_each_other_become_one() {
        let mut map = ExtentMap::default();
        for extent in [data(0..8, 8), data(16..24, 24), data(8..16, 16), zeroes(24..30), zeroes(30..40)] {
            map.insert(extent, |dead| panic!("{dead:?} was in nobody's way"));
        }
        assert_eq!(all(&map), [data(0..24, 8), zeroes(24..40)]);
        map.insert(data(40..48, 40), |_| ());
        map.insert(data(48..50, 100), |_| ());
        assert_eq!(map.len(), 4, "contiguous on one side only");
    }

    #[test]
    fn a_hole_in_the_middle_leaves_both_ends_where_they_were() {
        let mut map = ExtentMap::default();
        map.insert(data(10..30, 100), |_| ());
        let mut dead: Vec<Range<u64>> = Vec::new();
        map.insert(zeroes(15..20), |range| dead.push(range));
        assert_eq!(dead.into_iter().flatten().collect::<Vec<_>>(), [105, 106, 107, 108, 109]);
        assert_eq!(all(&map), [data(10..15, 100), zeroes(15..20), data(20..30, 110)]);
        let pieces = map.pieces(12..40);
        let expected = [
            Piece::Extent(data(12..15, 102)),
            Piece::Extent(zeroes(15..20)),
            Piece::Extent(data(20..30, 110)),
            Piece::Hole(30..40),
        ];
        assert_eq!(pieces, expected);
        assert_eq!(map.pieces(0..10), [Piece::Hole(0..10)]);
        assert_eq!([map.pieces(12..12), map.pieces(5..5)], [[], []], "an empty range has no piece");
    }

    /// The place of each sector, one by one.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Sector {
        Hole,
        Zero,
        Data(u64),
    }

    #[test]
    fn the_map_agrees_with_an_array_and_every_superseded_sector_is_named_once() {
        const SECTORS: u64 = 200;
        let mut random = fastrand::Rng::with_seed(7);
        let mut map = ExtentMap::default();
        let mut model = vec![Sector::Hole; SECTORS as usize];
        let mut dead = std::collections::BTreeSet::new();
        let mut end_of_file = 8;
        for _ in 0..20_000 {
            let start = random.u64(0..SECTORS);
            let end = random.u64(start..=SECTORS.min(start + 40));
            let extent = if random.u8(0..4) == 0 {
                zeroes(start..end)
            } else {
                end_of_file += random.u64(0..2);
                data(start..end, end_of_file)
            };
            let mut expected_dead = Vec::new();
            for sector in start..end {
                let place = &mut model[sector as usize];
                if let Sector::Data(at) = *place {
                    expected_dead.push(at);
                }
                *place = extent.place.sector().map_or(Sector::Zero, |at| Sector::Data(at + sector - start));
            }
            let mut named: Vec<u64> = Vec::new();
            map.insert(extent.clone(), |range| named.extend(range));
            named.sort_unstable();
            expected_dead.sort_unstable();
            assert_eq!(named, expected_dead);
            assert!(named.into_iter().all(|sector| dead.insert(sector)), "named twice");
            end_of_file += extent.data().map_or(0, |range| range.end - range.start);
            let (first, last) = (random.u64(0..SECTORS), random.u64(0..=SECTORS));
            for piece in map.pieces(first..last) {
                let (sectors, place) = match piece {
                    Piece::Hole(sectors) => (sectors, None),
                    Piece::Extent(extent) => (extent.sectors, Some(extent.place)),
                };
                for sector in sectors.clone() {
                    let found = match place {
                        None => Sector::Hole,
                        Some(place) => place
                            .sector()
                            .map_or(Sector::Zero, |at| Sector::Data(at + sector - sectors.start)),
                    };
                    assert_eq!(found, model[sector as usize]);
                }
            }
        }
        let extents = all(&map);
        for pair in extents.windows(2) {
            let touching = pair[0].sectors.end == pair[1].sectors.start;
            let sectors = pair[0].sectors.end - pair[0].sectors.start;
            assert!(!touching || pair[1].place != pair[0].place.after(sectors), "not joined: {pair:?}");
        }
    }
}
