//! LSMT: a layer as a sorted map from sectors of the device to sectors of one file, or to zeroes.
//!
//! ```text
//! 0            4096                    index_offset                size - 4096      size
//! | header 4K  | data                  | index: 16-byte segments   | trailer 4K     |
//! ```
//!
//! To open a read-only layer, read its first and its last [`SLOT_BYTES`] and give them to [`LayerLayout::decode`]; read
//! the range that [`LayerLayout::index_range`] names and give it to [`LayerLayout::decode_index`]. LSMT has no
//! checksum: damage to the data cannot be seen here, damage to the index only where it breaks a rule.
//!
//! A writable layer is a pair of files, whose index is [`LogReplay`]ed into a [`SegmentMap`], or one sparse file. To make a
//! read-only layer, give its parts in order to a [`LayerWriter`], or end a data file by [`seal`].

mod error;
mod header;
mod journal;
mod layer;
mod log;
mod map;
#[cfg(test)]
mod map_tests;
mod segment;
#[cfg(test)]
mod tests;
mod writer;
#[cfg(test)]
mod writer_tests;

/// Most layers of a stack: a segment names its layer in one byte, and upstream refuses more.
pub const LAYER_COUNT_LIMIT: usize = 255;

pub use error::{LsmtError, SegmentRule, SlotRule};
pub use header::{FileKind, Header, SLOT_BYTES, SlotPosition, UserTag};
pub use journal::{
    JOURNAL_ENTRY_LIMIT, JOURNAL_FOLDER, JournalError, JournalHeader, check_entries, decode_journal,
};
pub use layer::{INDEX_SLACK_LIMIT_BYTES, LayerLayout, ReadOnlyLayer, SEGMENT_COUNT_LIMIT, device_bytes};
pub use log::{
    LOG_ENTRY_LIMIT, LogReplay, Replayed, data_header, decode_data_header, decode_index_header, index_header,
    require_pair,
};
pub use map::SegmentMap;
pub use segment::{DATA_START_SECTOR, DEVICE_SECTOR_LIMIT, SEGMENT_BYTES, SEGMENT_LENGTH_LIMIT, Segment};
pub use writer::{LayerEnd, LayerIdentity, LayerWriter, Packing, SEGMENTS_WRITTEN_LIMIT, seal};
