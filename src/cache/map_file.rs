//! The presence map on disk: a header and sectors of checksums, each whole or worthless by itself.
//!
//! ```text
//! header  0 magic "STRATMAP" | 8 version u32 | 12 kind u32 | 16 blob size u64 | 24 grain bytes u64
//!         32 key [32] | 64 incarnation u32 | 68 verified u32 | 72 zeroes | 508 crc32c of the bytes before
//! sector  0 magic "SUMS" | 4 index u32 | 8 incarnation u32 | 12 stamp [16] | 28 sums [u32; 120] | 508 crc32c
//! ```
//!
//! All numbers are little-endian. Each grain has the checksum of its bytes, and zero says that it is absent: so one write
//! of one sector says both that a grain is there and what it must be. A sector counts only if its CRC, place, incarnation
//! and stamp are right, so a torn or stale one says that its grains are absent. The stamp of the map of this boot is the
//! boot's id; the durable map has zeroes there. A map that is begun anew gets another incarnation, and sectors of the old
//! one never count again. So it is with maps of version 1, which had bits and no checksums: their blobs are fetched again.

use std::ops::Range;

use super::grain::{ABSENT, GRAIN_BYTES, Sum, grain_count};

/// A sector of every disk, which is written whole or not at all, or else fails its CRC.
pub(super) const MAP_SECTOR_BYTES: usize = 512;
/// Checksums in a sector.
const SECTOR_SUMS: usize = 120;
/// Grains that one sector speaks for: 480 KiB of the blob.
pub(super) const SECTOR_GRAINS: u64 = SECTOR_SUMS as u64;

const HEADER_MAGIC: &[u8; 8] = b"STRATMAP";
const SECTOR_MAGIC: &[u8; 4] = b"SUMS";
const VERSION: u32 = 2;
const VERIFIED_AT: usize = 68;
const CRC_AT: usize = MAP_SECTOR_BYTES - 4;

/// One sector of a map file.
pub(super) type RawSector = [u8; MAP_SECTOR_BYTES];

/// What the bits of a map survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    /// The end of every process, but not of the kernel: its stamp is the boot's id.
    Boot,
    /// Loss of power.
    Durable,
}

/// What a map says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapHeader {
    /// What its bits survive.
    pub kind: MapKind,
    /// Size of the blob in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the blob's key, so that a misplaced file is noticed.
    pub key: [u8; 32],
    /// Drawn anew when the map is begun anew.
    pub incarnation: u32,
}

/// Why a map is of no use as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The file ends within its header.
    #[error("the map ends within its header")]
    Short,
    /// The header's magic, version, grain or CRC is not right.
    #[error("the map's header at offset 0 is torn or of another format")]
    Header,
    /// The header describes another blob or another kind of map.
    #[error("the map belongs to another blob")]
    Foreign,
}

impl MapHeader {
    /// The bytes of the header sector.
    pub(super) fn encode(&self) -> RawSector {
        let mut raw = Writer::new(HEADER_MAGIC);
        raw.put(8, &VERSION.to_le_bytes());
        raw.put(12, &kind_number(self.kind).to_le_bytes());
        raw.put(16, &self.size_bytes.to_le_bytes());
        raw.put(24, &GRAIN_BYTES.to_le_bytes());
        raw.put(64, &self.incarnation.to_le_bytes());
        raw.put(32, &self.key);
        raw.seal()
    }

    /// Reads a header sector.
    pub(super) fn decode(raw: &[u8]) -> Result<Self, MapError> {
        let raw = unseal(raw).ok_or(MapError::Header)?;
        let kind = match number(raw, 12) {
            Some(0) => MapKind::Boot,
            Some(1) => MapKind::Durable,
            _ => return Err(MapError::Header),
        };
        let shape = raw.starts_with(HEADER_MAGIC)
            && number(raw, 8) == Some(VERSION)
            && field(raw, 24) == Some(GRAIN_BYTES.to_le_bytes());
        let size = field::<8>(raw, 16).map(u64::from_le_bytes);
        match (shape, size, number(raw, 64), field(raw, 32)) {
            (true, Some(size_bytes), Some(incarnation), Some(key)) => {
                Ok(Self { kind, size_bytes, key, incarnation })
            }
            _ => Err(MapError::Header),
        }
    }

    /// Whether this map is what `wanted` describes, its incarnation aside.
    fn is_of(&self, wanted: &Self) -> bool {
        Self { incarnation: wanted.incarnation, ..*self } == *wanted
    }
}

/// Whether a header says that the whole blob was held against its digest and found right; older headers do not.
pub(super) fn is_verified(header: &RawSector) -> bool {
    MapHeader::decode(header).is_ok() && number(header, VERIFIED_AT) == Some(1)
}

/// The same header, saying so or not; `None` if it is no header.
pub(super) fn with_verified(header: &RawSector, verified: bool) -> Option<RawSector> {
    MapHeader::decode(header).ok()?;
    let mut raw = Writer(*header);
    raw.put(VERIFIED_AT, &u32::from(verified).to_le_bytes());
    Some(raw.seal())
}

/// What one sector says of its grains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums([Sum; SECTOR_SUMS]);

impl Sums {
    const EMPTY: Self = Self([ABSENT; SECTOR_SUMS]);

    /// The checksums of sector `index`, or none of them if it is not what it should be.
    pub(super) fn decode(raw: &[u8], index: u32, incarnation: u32, stamp: &[u8; 16]) -> Self {
        let valid = unseal(raw).filter(|raw| {
            raw.starts_with(SECTOR_MAGIC)
                && number(raw, 4) == Some(index)
                && number(raw, 8) == Some(incarnation)
                && field(raw, 12) == Some(*stamp)
        });
        let Some(numbers) = valid.and_then(|raw| raw.get(28..CRC_AT)) else { return Self::EMPTY };
        let mut sums = Self::EMPTY;
        for (sum, bytes) in sums.0.iter_mut().zip(numbers.as_chunks().0) {
            *sum = u32::from_le_bytes(*bytes);
        }
        sums
    }

    pub(super) fn encode(&self, index: u32, incarnation: u32, stamp: &[u8; 16]) -> RawSector {
        let mut raw = Writer::new(SECTOR_MAGIC);
        raw.put(4, &index.to_le_bytes());
        raw.put(8, &incarnation.to_le_bytes());
        raw.put(12, stamp);
        for (sum, at) in self.0.iter().zip((28..).step_by(4)) {
            raw.put(at, &sum.to_le_bytes());
        }
        raw.seal()
    }

    /// The checksums of `run`, given from the sector's first grain.
    pub(super) fn of(&self, run: &Range<u64>) -> &[Sum] {
        self.0.get(slots(run)).unwrap_or_default()
    }

    /// The same, to be changed.
    pub(super) fn of_mut(&mut self, run: &Range<u64>) -> &mut [Sum] {
        self.0.get_mut(slots(run)).unwrap_or_default()
    }

    /// The runs of grains that are there, from the sector's first grain.
    #[must_use]
    pub fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (_, at) in self.0.iter().zip(0..).filter(|(sum, _)| **sum != ABSENT) {
            match runs.last_mut() {
                Some(last) if last.end == at => last.end = at + 1,
                _ => runs.push(at..at + 1),
            }
        }
        runs
    }
}

fn slots(run: &Range<u64>) -> Range<usize> {
    let slot = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    slot(run.start)..slot(run.end)
}

/// The number of sectors of checksums of a blob of `size_bytes`.
pub(super) fn sector_count(size_bytes: u64) -> u64 {
    grain_count(size_bytes).div_ceil(SECTOR_GRAINS)
}

/// Reads the head of a map file: its incarnation. `wanted` says what the map must be, whatever its incarnation.
///
/// # Errors
/// When the header is not what `wanted` says.
pub fn decode_map(raw: &[u8], wanted: &MapHeader) -> Result<u32, MapError> {
    let header = MapHeader::decode(raw.get(..MAP_SECTOR_BYTES).ok_or(MapError::Short)?)?;
    if header.is_of(wanted) { Ok(header.incarnation) } else { Err(MapError::Foreign) }
}

/// What the sectors from number `first` on in `raw` say, each with its first grain; those that are torn or say nothing are
/// left out, and so is what a sector says of grains past the end of a blob of `size_bytes`.
pub fn decode_sectors(
    raw: &[u8],
    first: u32,
    size_bytes: u64,
    incarnation: u32,
    stamp: &[u8; 16],
) -> impl Iterator<Item = (u64, Sums)> {
    let grains = grain_count(size_bytes);
    raw.chunks_exact(MAP_SECTOR_BYTES).zip(first..).filter_map(move |(raw, index)| {
        let start = u64::from(index) * SECTOR_GRAINS;
        let mut sums = Sums::decode(raw, index, incarnation, stamp);
        sums.of_mut(&(grains.saturating_sub(start).min(SECTOR_GRAINS)..SECTOR_GRAINS)).fill(ABSENT);
        (sums != Sums::EMPTY).then_some((start, sums))
    })
}

struct Writer(RawSector);

impl Writer {
    fn new(magic: &[u8]) -> Self {
        let mut raw = Self([0; MAP_SECTOR_BYTES]);
        raw.put(0, magic);
        raw
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            place.copy_from_slice(bytes);
        }
    }

    fn seal(mut self) -> RawSector {
        let crc = crc32c::crc32c(self.0.get(..CRC_AT).unwrap_or_default());
        self.put(CRC_AT, &crc.to_le_bytes());
        self.0
    }
}

/// The sector, if its CRC is right.
fn unseal(raw: &[u8]) -> Option<&[u8]> {
    let body = raw.get(..CRC_AT)?;
    (number(raw, CRC_AT)? == crc32c::crc32c(body)).then_some(raw)
}

fn field<const N: usize>(raw: &[u8], at: usize) -> Option<[u8; N]> {
    raw.get(at..)?.first_chunk().copied()
}

fn number(raw: &[u8], at: usize) -> Option<u32> {
    field(raw, at).map(u32::from_le_bytes)
}

fn kind_number(kind: MapKind) -> u32 {
    match kind {
        MapKind::Boot => 0,
        MapKind::Durable => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: [u8; 16] = [9; 16];

    fn header() -> MapHeader {
        MapHeader { kind: MapKind::Boot, size_bytes: 40 << 20, key: [3; 32], incarnation: 77 }
    }

    fn map() -> Vec<u8> {
        let mut raw = header().encode().to_vec();
        for index in 0..3 {
            let mut sums = Sums::EMPTY;
            sums.of_mut(&(u64::from(index)..90)).fill(1000 + index);
            sums.of_mut(&(20..30)).fill(ABSENT);
            raw.extend(sums.encode(index, 77, &STAMP));
        }
        raw
    }

    /// The grains that the map has, with their checksums.
    fn read(raw: &[u8], size_bytes: u64, stamp: &[u8; 16]) -> Vec<(u64, Sum)> {
        let incarnation = decode_map(raw, &header()).unwrap();
        let sectors = decode_sectors(&raw[MAP_SECTOR_BYTES..], 0, size_bytes, incarnation, stamp);
        let grains = sectors.flat_map(|(first, sums)| {
            let of = |run: Range<u64>| run.clone().zip(sums.of(&run).to_vec());
            sums.runs()
                .into_iter()
                .flat_map(of)
                .map(move |(grain, sum)| (first + grain, sum))
                .collect::<Vec<_>>()
        });
        grains.collect()
    }

    #[test]
    fn a_map_reads_back_and_stops_at_the_blobs_end() {
        let size_bytes = (2 * SECTOR_GRAINS + 33) * GRAIN_BYTES - 5;
        let of = |runs: [Range<u64>; 2], sum| runs.into_iter().flatten().map(move |grain| (grain, sum));
        let right: Vec<_> = of([0..20, 30..90], 1000)
            .chain(of([121..140, 150..210], 1001))
            .chain(of([242..260, 270..273], 1002))
            .collect();
        assert_eq!(read(&map(), size_bytes, &STAMP), right);
    }

    #[test]
    fn a_torn_or_misplaced_sector_holds_nothing() {
        let size_bytes = header().size_bytes;
        for at in 512..1024 {
            let mut raw = map();
            raw[at] ^= 1;
            assert_eq!(read(&raw, size_bytes, &STAMP)[0], (121, 1001), "byte {at}");
        }
        let mut swapped = map();
        swapped.copy_within(1024..1536, 512);
        assert_eq!(read(&swapped, size_bytes, &STAMP)[0], (121, 1001));
        assert!(read(&map(), size_bytes, &[8; 16]).is_empty(), "another boot");
    }

    #[test]
    fn a_header_with_any_byte_changed_is_refused() {
        for at in 0..512 {
            let mut raw = map();
            raw[at] ^= 0x10;
            assert_eq!(decode_map(&raw, &header()), Err(MapError::Header), "byte {at}");
        }
        let other = MapHeader { key: [4; 32], ..header() };
        assert_eq!(decode_map(&map(), &other), Err(MapError::Foreign));
        assert_eq!(decode_map(&map()[..511], &header()), Err(MapError::Short));
    }

    #[test]
    fn a_header_says_whether_its_blob_was_verified_and_is_otherwise_the_same() {
        let raw = header().encode();
        assert!(!is_verified(&raw));
        let verified = with_verified(&raw, true).unwrap();
        assert!(is_verified(&verified) && MapHeader::decode(&verified) == Ok(header()));
        assert_eq!(with_verified(&verified, false), Some(raw));
        let mut torn = verified;
        torn[70] ^= 1;
        assert!(!is_verified(&torn) && with_verified(&torn, true).is_none());
    }
}
