//! The presence map on disk: a header and sectors of bits, each whole or worthless by itself.
//!
//! ```text
//! header  0 magic "STRATMAP" | 8 version u32 | 12 kind u32 | 16 blob size u64 | 24 grain bytes u64
//!         32 key [32] | 64 incarnation u32 | 68 verified u32 | 72 zeroes | 508 crc32c of the bytes before
//! sector  0 magic "BITS" | 4 index u32 | 8 incarnation u32 | 12 stamp [16] | 28 bits [480] | 508 crc32c
//! ```
//!
//! All numbers are little-endian. A sector counts only if its CRC, place, incarnation and stamp are right, so a torn
//! or stale one says that its grains are absent. The stamp of the map of this boot is the boot's id; the durable map
//! has zeroes there. A map that is begun anew gets another incarnation, and sectors of the old one never count again.

use std::ops::Range;

use super::grain::{GRAIN_BYTES, grain_count};

/// A sector of every disk, which is written whole or not at all, or else fails its CRC.
pub(super) const MAP_SECTOR_BYTES: usize = 512;
/// Bytes of bits in a sector.
const BITS_BYTES: usize = 480;
/// Grains that one sector speaks for: 15 MiB of the blob.
pub(super) const SECTOR_GRAINS: u64 = BITS_BYTES as u64 * 8;

const HEADER_MAGIC: &[u8; 8] = b"STRATMAP";
const SECTOR_MAGIC: &[u8; 4] = b"BITS";
const VERSION: u32 = 1;
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

/// The bits of one sector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bits(pub(super) [u8; BITS_BYTES]);

impl Bits {
    pub(super) const EMPTY: Self = Self([0; BITS_BYTES]);

    /// The bits of sector `index`, or none of them if it is not what it should be.
    pub(super) fn decode(raw: &[u8], index: u32, incarnation: u32, stamp: &[u8; 16]) -> Self {
        let valid = unseal(raw).filter(|raw| {
            raw.starts_with(SECTOR_MAGIC)
                && number(raw, 4) == Some(index)
                && number(raw, 8) == Some(incarnation)
                && field(raw, 12) == Some(*stamp)
        });
        valid.and_then(|raw| field(raw, 28)).map_or(Self::EMPTY, Self)
    }

    pub(super) fn encode(&self, index: u32, incarnation: u32, stamp: &[u8; 16]) -> RawSector {
        let mut raw = Writer::new(SECTOR_MAGIC);
        raw.put(4, &index.to_le_bytes());
        raw.put(8, &incarnation.to_le_bytes());
        raw.put(12, stamp);
        raw.put(28, &self.0);
        raw.seal()
    }

    /// Sets or clears the bits of `run`, given from the sector's first grain.
    pub(super) fn fill(&mut self, run: Range<u64>, present: bool) {
        for bit in run.start..run.end.min(SECTOR_GRAINS) {
            let byte = usize::try_from(bit / 8).ok().and_then(|index| self.0.get_mut(index));
            if let Some(byte) = byte {
                if present { *byte |= 1 << (bit % 8) } else { *byte &= !(1 << (bit % 8)) }
            }
        }
    }

    /// The runs of set bits, from the sector's first grain.
    pub(super) fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (byte, first) in self.0.iter().zip((0_u64..).step_by(8)).filter(|(byte, _)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0).map(|bit| first + bit) {
                match runs.last_mut() {
                    Some(last) if last.end == bit => last.end = bit + 1,
                    _ => runs.push(bit..bit + 1),
                }
            }
        }
        runs
    }
}

/// The number of bit sectors of a blob of `size_bytes`.
pub(super) fn sector_count(size_bytes: u64) -> u64 {
    grain_count(size_bytes).div_ceil(SECTOR_GRAINS)
}

/// Reads a whole map file: its incarnation and the runs of grains that it vouches for. `wanted` says what the map must
/// be, whatever its incarnation. Bytes past the last sector are ignored; sectors that lack or are torn hold nothing.
///
/// # Errors
/// When the header is not what `wanted` says.
pub fn decode_map(
    raw: &[u8],
    wanted: &MapHeader,
    stamp: &[u8; 16],
) -> Result<(u32, Vec<Range<u64>>), MapError> {
    let (header, sectors) = raw.split_at_checked(MAP_SECTOR_BYTES).ok_or(MapError::Short)?;
    let header = MapHeader::decode(header)?;
    if !header.is_of(wanted) {
        return Err(MapError::Foreign);
    }
    let grains = grain_count(header.size_bytes);
    let mut runs = Vec::new();
    for (raw, index) in sectors.chunks_exact(MAP_SECTOR_BYTES).zip(0_u32..) {
        let first = u64::from(index) * SECTOR_GRAINS;
        if first >= grains {
            break;
        }
        let bits = Bits::decode(raw, index, header.incarnation, stamp);
        let placed = bits.runs().into_iter().map(|run| first + run.start..(first + run.end).min(grains));
        runs.extend(placed.filter(|run| run.start < run.end));
    }
    Ok((header.incarnation, runs))
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
            let mut bits = Bits::EMPTY;
            bits.fill(u64::from(index)..3000, true);
            bits.fill(100..110, false);
            raw.extend(bits.encode(index, 77, &STAMP));
        }
        raw
    }

    #[test]
    fn a_map_reads_back_and_stops_at_the_blobs_end() {
        let (incarnation, runs) = decode_map(&map(), &header(), &STAMP).unwrap();
        assert_eq!(incarnation, 77);
        let last = 7680..10240_u64;
        assert_eq!(runs, [0..100, 110..3000, 3841..3940, 3950..6840, 7682..7780, 7790..last.end]);
    }

    #[test]
    fn a_torn_or_misplaced_sector_holds_nothing() {
        for at in 512..1024 {
            let mut raw = map();
            raw[at] ^= 1;
            let (_, runs) = decode_map(&raw, &header(), &STAMP).unwrap();
            assert_eq!(runs[0], 3841..3940, "byte {at}");
        }
        let mut swapped = map();
        swapped.copy_within(1024..1536, 512);
        assert_eq!(decode_map(&swapped, &header(), &STAMP).unwrap().1[0], 3841..3940);
        assert!(decode_map(&map(), &header(), &[8; 16]).unwrap().1.is_empty(), "another boot");
    }

    #[test]
    fn a_header_with_any_byte_changed_is_refused() {
        for at in 0..512 {
            let mut raw = map();
            raw[at] ^= 0x10;
            assert_eq!(decode_map(&raw, &header(), &STAMP), Err(MapError::Header), "byte {at}");
        }
        let other = MapHeader { key: [4; 32], ..header() };
        assert_eq!(decode_map(&map(), &other, &STAMP), Err(MapError::Foreign));
        assert_eq!(decode_map(&map()[..511], &header(), &STAMP), Err(MapError::Short));
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
