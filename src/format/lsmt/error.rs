//! What can be wrong with an LSMT file, and where.

use super::super::{foreign::Foreign, uuid::Uuid};

/// The rule that a header or trailer breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotRule {
    /// The slot has 4096 bytes.
    #[error("it is cut short")]
    Short,
    /// The first 24 bytes are the magic numbers.
    #[error("the magic numbers are not those of LSMT")]
    Magic,
    /// The same, where it is known what the file is instead.
    #[error("this is no overlaybd layer but {0}")]
    Foreign(Foreign),
    /// The major version is 1.
    #[error("its major version {0} is not known, only 1 is")]
    Version(u8),
    /// All flags are known.
    #[error("its flags {0:#x} are not known, and may change what the bytes of the layer mean")]
    Flags(u32),
    /// The slot at the start says that it is a header, the one at the end that it is a trailer.
    #[error("its flags call a header a trailer or the reverse")]
    Position,
    /// A layer is a data file.
    #[error("its flags call it an index file, not a data file")]
    NotData,
    /// Only a sealed file can be a read-only layer.
    #[error("its flags say that it was never sealed")]
    Unsealed,
    /// The index of a writable layer is an index file.
    #[error("its flags call it a data file, not an index file")]
    NotIndex,
    /// A file that is still written is not sealed.
    #[error("its flags say that it is sealed, so that it is not to be written")]
    Sealed,
    /// The entries of an index file follow its header at once.
    #[error("its entries start at {0}, not at 4096 as those of an index file do")]
    IndexStart(u64),
}

/// The rule that one segment of an index breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentRule {
    /// A segment covers at least one sector.
    #[error("it covers no sector")]
    Empty,
    /// All sectors of a segment have a number that an index can hold.
    #[error("it ends at sector {end} of the device, past the last that an index can name")]
    Beyond {
        /// One past the last sector of the segment.
        end: u64,
    },
    /// Segments are sorted and do not overlap.
    #[error("it starts at sector {offset}, before sector {previous_end} where the one before it ends")]
    Disorder {
        /// First sector of the segment.
        offset: u64,
        /// Where the one before it ends.
        previous_end: u64,
    },
    /// Data lies between the header and the index.
    #[error(
        "its data, sectors {start} to {end} of the file, is not between sector 8 and the index at sector {limit}"
    )]
    Place {
        /// First sector in the file.
        start: u64,
        /// One past the last sector in the file.
        end: u64,
        /// The index's sector.
        limit: u64,
    },
}

/// Why a file is not an LSMT layer that can be read. Offsets are in bytes from the start of the LSMT file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LsmtError {
    /// The file has no room for a header and a trailer.
    #[error("LSMT file of {size_bytes} bytes is too short for a header and a trailer of 4096 bytes each")]
    TooSmall {
        /// The file's size in bytes.
        size_bytes: u64,
    },
    /// The header or trailer cannot be used.
    #[error("LSMT slot at offset {offset}: {rule}")]
    Slot {
        /// Where the slot starts, in bytes.
        offset: u64,
        /// What is wrong with it.
        rule: SlotRule,
    },
    /// The index claims more segments than any layer may have.
    #[error("LSMT trailer at offset {offset}: {count} segments are more than the {limit} allowed")]
    TooManySegments {
        /// Where the trailer starts, in bytes.
        offset: u64,
        /// The claimed number of segments.
        count: u64,
        /// The largest number allowed.
        limit: u64,
    },
    /// The index does not lie, in whole and alone, between the data and the trailer.
    #[error(
        "LSMT trailer at offset {offset}: {count} segments at {index_offset} do not fill the space before the trailer"
    )]
    IndexPlace {
        /// Where the trailer starts, in bytes.
        offset: u64,
        /// Where the index is said to start, in bytes.
        index_offset: u64,
        /// The claimed number of segments.
        count: u64,
    },
    /// The caller brought another number of bytes than the index has.
    #[error("LSMT index at offset {offset}: {given_bytes} bytes were read of {wanted_bytes}")]
    IndexLength {
        /// Where the index starts, in bytes.
        offset: u64,
        /// Bytes brought.
        given_bytes: u64,
        /// Bytes that it has.
        wanted_bytes: u64,
    },
    /// The index file of a writable layer has more entries than upstream takes.
    #[error("LSMT index file: {count} entries are more than the {limit} allowed")]
    LogTooLong {
        /// Its whole entries.
        count: u64,
        /// The largest number allowed.
        limit: u64,
    },
    /// The data file and the index file of a writable layer do not belong together.
    #[error("LSMT index file: its UUID {index} is not that of the data file, {data}")]
    Mismatched {
        /// UUID of the data file.
        data: Uuid,
        /// UUID of the index file.
        index: Uuid,
    },
    /// A layer that is being written needs more segments than one may have.
    #[error("the layer needs more than the {limit} segments that one may have")]
    IndexFull {
        /// The largest number that can be written.
        limit: u64,
    },
    /// A layer that is being written would have sectors that an index cannot name.
    #[error(
        "{length} sectors at sector {offset} of the device, {place} of the file, are past what an index can name"
    )]
    Unnamed {
        /// First sector of the device.
        offset: u64,
        /// Sectors.
        length: u32,
        /// First sector of the file.
        place: u64,
    },
    /// One segment breaks a rule.
    #[error("LSMT index entry {number} at offset {offset}: {rule}")]
    Segment {
        /// Its number in the index, from 0, padding counted.
        number: u64,
        /// Where it lies in the file, in bytes.
        offset: u64,
        /// What is wrong with it.
        rule: SegmentRule,
    },
}
