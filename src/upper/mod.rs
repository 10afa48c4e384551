//! The writable layer over any device: where its bytes lie, and what is durable after which call.
//!
//! An [`Overlay`] is a device whose writes go to a layer of files, as upstream has them. The header of the data file says of
//! which kind the layer is. Reads find what it has in a map in memory; a flush makes durable all that completed before.
//!
//! # Logs
//!
//! A write is appended to the data file; when it is there, its entry is put into the map, where all later reads find it, and
//! among those that wait. A flush syncs the data file, appends the entries to the index file, and syncs that. So no entry is
//! durable before its data, entries are durable in the order in which their writes completed, and whatever a crash leaves of
//! the last of them is cut where the first one is missing.
//!
//! | after | what a crash leaves |
//! |---|---|
//! | a completed write or discard | it, if all that completed before it is there too; or neither; of one in many pieces maybe a part |
//! | a completed flush | everything that completed before the flush began |
//! | a failed write | what was there; the range may be written again |
//! | a failed sync | nobody knows: nothing is written any more, reads go on |
//!
//! The log does not grow for ever. Data that durable entries have superseded is punched out of the data file when no read that
//! began before is left, and an index file of mostly superseded entries is replaced by one of those in use. A write or flush that
//! finds no room has all of it punched out, and is tried once more; so is all that is dead when nothing was written for a while,
//! and when a layer is closed or sealed. The file system keeps a little room past the end of the index file: without it nothing
//! would ever be dead on a full one. When the data file has half the size that it may have, dead room in it is written again, and
//! only where there is too little in one place the file grows.
//!
//! In many pieces are discards of over 8 MiB or 512 extents, and writes to a data file that may not grow and has no room in one place.
//!
//! # Sparse files
//!
//! A write goes to its place in the data file, and a flush is one sync. What the layer has is what the file system keeps of the
//! file. There is no order among what was not flushed, as on a disk: to write in place and to keep an order takes a journal.
//!
//! | after | what a crash leaves of each sector |
//! |---|---|
//! | a completed write or discard | it, or what the sector held at the last completed flush or at any time since |
//! | a completed flush | what the sector held when the flush began, or anything later |
//! | a write or discard that has failed, or has not completed | what was there, or what was written, or zeroes if it was a discard |
//! | a failed sync | nobody knows: nothing is written any more, reads go on |
//!
//! A sector that was discarded never shows what lies below again, to us or to upstream's reader, which takes a hole for nothing
//! said. So a discard makes a hole only where all below is known to be zeroes, and writes zeroes elsewhere. Upstream's writer
//! makes holes everywhere, and forgets them when it opens the file again. What must be known of the file system: a block that is
//! new to a file is there after a crash with its data or not at all, as ext4 (but for `data=writeback`), xfs and btrfs have
//! it, its blocks have 4096 bytes or less, and it makes holes and names them.

mod claims;
mod error;
mod extents;
mod file;
mod files;
mod gate;
mod layer;
mod log;
mod lower;
mod medium;
mod merged;
mod metrics;
mod overlay;
mod parents;
mod rounds;
mod segments;
mod sparse;
mod stack;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]
mod tests;
mod view;

pub use error::UpperError;
pub use file::LayerFile;
pub use files::{Identity, LayerFiles};
pub use log::LogLimits;
pub use medium::{FileId, Medium};
pub use merged::MergedLayer;
pub use metrics::{RequestMetrics, WriteMetrics};
pub use overlay::{Overlay, OverlayQueue};
pub use parents::{LayerLink, check_parents};
pub use stack::Sealed;
