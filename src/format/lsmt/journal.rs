//! The journal of a log-structured layer that is being written: the entries of completed writes that its index file lacks.
//!
//! It lies in memory that outlives the process that writes and not the kernel, in which the data of these entries is cached: a
//! process that dies leaves a layer that has all that it has acknowledged. It is written in place, without a call of the kernel, and
//! is whole at each instant: an entry counts from when the number of entries says so.
//!
//! ```text
//! 0              128                    192                 4096
//! | header ...   | first: u64 ...       | end: u64 ...      | ring of 16-byte segments
//! ```
//!
//! `first` and `end` only grow. Entry `n` lies at place `n % capacity` of the ring, and those from `first` on, up to `end`, count.
//! The words are the machine's own, since a journal never leaves it.

use super::{
    super::{crc, field::Fields, uuid::Uuid},
    DATA_START_SECTOR, Header, SEGMENT_BYTES, Segment, SegmentRule,
};
use crate::block::SECTOR_BYTES;

/// Where the journals of this machine lie, so that whoever opens a layer finds its own: in memory, as all of `/run`.
pub const JOURNAL_FOLDER: &str = "/run/stratabd-journals";

/// Most entries of a journal: 16 MiB.
pub const JOURNAL_ENTRY_LIMIT: u64 = 1 << 20;

const MAGIC: [u8; 8] = *b"strataJ\0";
const VERSION: u32 = 1;
/// Bytes of the header before its checksum.
const CHECKED_BYTES: usize = 92;
const FIRST_OFFSET: usize = 128;
const END_OFFSET: usize = 192;
const ENTRIES_OFFSET: usize = 4096;
const WORD_BYTES: usize = 8;

/// Whose a journal is, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalHeader {
    /// The boot of the machine in which it was begun.
    pub boot: [u8; 16],
    /// The layer's UUID; the null one where it has none.
    pub uuid: Uuid,
    /// The number of the device that the layer's data file lies on.
    pub device: u64,
    /// The number of that file there. With the device it tells copies apart, which have the same UUID.
    pub inode: u64,
    /// Entries that the ring has room for.
    pub capacity: u64,
}

/// Why a journal cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// It has a header, and room for all of its ring.
    #[error("{size_bytes} bytes are too few for a journal")]
    Short {
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// It begins with the magic number.
    #[error("the magic number at offset 0 is not that of a journal")]
    Magic,
    /// The version is 1.
    #[error("its version {0} is not known, only 1 is: a newer program has written it")]
    Version(u32),
    /// The header has its checksum.
    #[error("the header has the checksum {computed:#010x}, and says {stored:#010x}")]
    Checksum {
        /// What the header says.
        stored: u32,
        /// What it has.
        computed: u32,
    },
    /// It is the one of the layer that it is opened for.
    #[error("it is that of another layer")]
    Foreign,
    /// The ring has a sensible size.
    #[error("a ring of {0} entries, which is none or more than a journal may have")]
    Capacity(u64),
    /// No more entries count than the ring has.
    #[error("entries {first} to {end} of a ring of {capacity}")]
    Count {
        /// The first that counts.
        first: u64,
        /// One past the last.
        end: u64,
        /// Room in the ring.
        capacity: u64,
    },
    /// One entry breaks a rule.
    #[error("entry {number} of the journal: {rule}")]
    Entry {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        rule: SegmentRule,
    },
}

impl JournalHeader {
    /// The number of the word of the file that says which entry is the first that counts.
    pub const FIRST_WORD: usize = FIRST_OFFSET / WORD_BYTES;
    /// The number of the word that says which entry is one past the last.
    pub const END_WORD: usize = END_OFFSET / WORD_BYTES;

    /// The name of the journal in its folder.
    #[must_use]
    pub fn file_name(&self) -> String {
        let Self { uuid, device, inode, .. } = self;
        format!("{uuid}-{device:x}-{inode:x}")
    }

    /// Size of the file in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (self.words() as u64).saturating_mul(WORD_BYTES as u64)
    }

    /// Words of the file.
    #[must_use]
    pub fn words(&self) -> usize {
        let ring = usize::try_from(self.capacity).unwrap_or(usize::MAX).saturating_mul(SEGMENT_BYTES);
        ENTRIES_OFFSET.saturating_add(ring) / WORD_BYTES
    }

    /// The number of the first of the two words of an entry.
    #[must_use]
    pub fn entry_word(&self, number: u64) -> usize {
        let place = number.checked_rem(self.capacity).and_then(|place| usize::try_from(place).ok());
        (ENTRIES_OFFSET / WORD_BYTES)
            .saturating_add(place.unwrap_or(0).saturating_mul(SEGMENT_BYTES / WORD_BYTES))
    }

    /// The file of a journal with these entries.
    #[must_use]
    pub fn encode(&self, entries: &[Segment]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.words().saturating_mul(WORD_BYTES));
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.boot);
        bytes.extend(self.uuid.as_bytes());
        for field in [self.device, self.inode, self.capacity] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(crc::raw(0, &bytes).to_le_bytes());
        bytes.resize(END_OFFSET, 0);
        bytes.extend((entries.len() as u64).to_ne_bytes());
        bytes.resize(ENTRIES_OFFSET, 0);
        entries.iter().for_each(|entry| bytes.extend(entry.encode()));
        bytes.resize(self.words().saturating_mul(WORD_BYTES), 0);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, JournalError> {
        let short = JournalError::Short { size_bytes: bytes.len() as u64 };
        let mut fields = Fields::new(bytes);
        if fields.array().ok_or(short)? != &MAGIC {
            return Err(JournalError::Magic);
        }
        let version = fields.u32().ok_or(short)?;
        if version != VERSION {
            return Err(JournalError::Version(version));
        }
        let computed = crc::raw(0, bytes.get(..CHECKED_BYTES).ok_or(short)?);
        let (header, stored) = Self::decode_fields(fields).ok_or(short)?;
        let Some(header) = header.filter(|_| stored == computed) else {
            return Err(JournalError::Checksum { stored, computed });
        };
        if header.capacity == 0 || header.capacity > JOURNAL_ENTRY_LIMIT {
            return Err(JournalError::Capacity(header.capacity));
        }
        Ok(header)
    }

    /// What follows the version, where the UUID is one, and the checksum.
    fn decode_fields(mut fields: Fields<'_>) -> Option<(Option<Self>, u32)> {
        let _reserved = fields.u32()?;
        let boot = *fields.array()?;
        let uuid = Uuid::from_text(fields.array()?);
        let [device, inode, capacity] = [fields.u64()?, fields.u64()?, fields.u64()?];
        let stored = fields.u32()?;
        Some((uuid.ok().map(|uuid| Self { boot, uuid, device, inode, capacity }), stored))
    }
}

/// Reads the file of a journal: whose it is, and the entries that count, the oldest first. Whether they fit the layer is for
/// [`check_entries`].
///
/// # Errors
/// [`JournalError`].
pub fn decode_journal(bytes: &[u8]) -> Result<(JournalHeader, Vec<Segment>), JournalError> {
    let header = JournalHeader::decode(bytes)?;
    let short = JournalError::Short { size_bytes: bytes.len() as u64 };
    let word = |offset: usize| {
        let bytes = bytes.get(offset..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    };
    let (first, end) = word(FIRST_OFFSET).zip(word(END_OFFSET)).ok_or(short)?;
    let capacity = header.capacity;
    if end.checked_sub(first).is_none_or(|count| count > capacity) {
        return Err(JournalError::Count { first, end, capacity });
    }
    let entry = |number| {
        let start = header.entry_word(number).saturating_mul(WORD_BYTES);
        Some(Segment::decode(bytes.get(start..)?.first_chunk()?))
    };
    let entries: Option<Vec<Segment>> = (first..end).map(entry).collect();
    Ok((header, entries.ok_or(short)?))
}

/// Makes sure that the entries of a journal belong to a layer whose data file has so many bytes, with this header.
///
/// # Errors
/// [`JournalError::Entry`].
pub fn check_entries(entries: &[Segment], data: &Header, data_bytes: u64) -> Result<(), JournalError> {
    let limit = data_bytes / SECTOR_BYTES;
    let device_end = match data.virtual_size_bytes {
        0 => super::DEVICE_SECTOR_LIMIT,
        bytes => bytes.div_ceil(SECTOR_BYTES),
    };
    let rule = |segment: &Segment| {
        let (start, end) = (segment.moffset(), segment.mend());
        if segment.length() == 0 {
            Some(SegmentRule::Empty)
        } else if segment.end() > device_end {
            Some(SegmentRule::Beyond { end: segment.end() })
        } else if start < DATA_START_SECTOR || end > limit {
            Some(SegmentRule::Place { start, end, limit })
        } else {
            None
        }
    };
    let refused = |(number, segment)| Some(JournalError::Entry { number, rule: rule(segment)? });
    (0..).zip(entries).find_map(refused).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> JournalHeader {
        let uuid = "ABC00007-1111-2222-3333-000000000007".parse().unwrap();
        JournalHeader { boot: [7; 16], uuid, device: 0xfd01, inode: 0x1234, capacity: 3 }
    }

    fn entry(offset: u64) -> Segment {
        Segment::new(offset, 8, offset.saturating_add(8), false, 0).unwrap()
    }

    #[test]
    fn what_was_encoded_is_read_again_also_where_the_ring_has_gone_round() {
        let entries = [entry(0), entry(8), entry(16)];
        let mut bytes = header().encode(&entries);
        assert_eq!(bytes.len(), 4096 + 3 * 16);
        assert_eq!(decode_journal(&bytes), Ok((header(), entries.to_vec())));
        assert_eq!(header().file_name(), "ABC00007-1111-2222-3333-000000000007-fd01-1234");
        let place = header().entry_word(3) * 8;
        bytes[place..place + 16].copy_from_slice(&entry(24).encode());
        bytes[FIRST_OFFSET] = 2;
        bytes[END_OFFSET] = 4;
        assert_eq!(decode_journal(&bytes).unwrap().1, [entry(16), entry(24)]);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let whole = header().encode(&[entry(0)]);
        let changed = |at: usize, to: u8| {
            let mut bytes = whole.clone();
            bytes[at] = to;
            decode_journal(&bytes).unwrap_err()
        };
        assert_eq!(changed(0, 0), JournalError::Magic);
        assert_eq!(changed(8, 2), JournalError::Version(2));
        for at in [12, 16, 40, 70, 80, 91, 93] {
            assert!(matches!(changed(at, 0xee), JournalError::Checksum { .. }), "{at}");
        }
        assert_eq!(changed(END_OFFSET, 4), JournalError::Count { first: 0, end: 4, capacity: 3 });
        assert_eq!(changed(FIRST_OFFSET, 2), JournalError::Count { first: 2, end: 1, capacity: 3 });
        for len in [0, 8, 95, 120, 150, 195, 4100] {
            let cut = decode_journal(&whole[..len]);
            assert_eq!(cut, Err(JournalError::Short { size_bytes: len as u64 }));
        }
        for capacity in [0, JOURNAL_ENTRY_LIMIT + 1] {
            let bytes = JournalHeader { capacity, ..header() }.encode(&[]);
            assert_eq!(decode_journal(&bytes), Err(JournalError::Capacity(capacity)));
        }
    }

    #[test]
    fn entries_that_do_not_fit_the_layer_are_refused() {
        let data = super::super::data_header(false, header().uuid, None, 64 * 512);
        let check = |entries: &[Segment]| check_entries(entries, &data, 40 * 512);
        assert_eq!(check(&[entry(0), entry(24)]), Ok(()));
        let refused = |rule| Err(JournalError::Entry { number: 1, rule });
        let of = |offset, moffset| Segment::new(offset, 8, moffset, false, 0).unwrap();
        assert_eq!(check(&[entry(0), of(60, 8)]), refused(SegmentRule::Beyond { end: 68 }));
        let place = |start| SegmentRule::Place { start, end: start + 8, limit: 40 };
        assert_eq!(check(&[entry(0), of(0, 33)]), refused(place(33)));
        assert_eq!(check(&[entry(0), of(0, 7)]), refused(place(7)));
        let empty = Segment::decode(&[0; 16]);
        assert_eq!(check(&[entry(0), empty]), refused(SegmentRule::Empty));
        assert_eq!(check(&[Segment::new(0, 8, 8, true, 0).unwrap()]), Ok(()), "zeroes have no data");
    }
}
