//! The writable layer over any device: where its bytes lie, and what is durable after which call.
//!
//! An [`Overlay`] is a device whose writes go to two files, as upstream's log-structured layer has them. A write is appended to
//! the data file; when it is there, its entry is put into the map, where all later reads find it, and among those that wait.
//! A flush makes them durable together with all that came before: it syncs the data file, appends the entries to the index
//! file, and syncs that. So no entry is durable before its data, entries are durable in the order in which their writes
//! completed, and whatever a crash leaves of the last of them is cut where the first one is missing.
//!
//! | after | what a crash leaves |
//! |---|---|
//! | a completed write or discard | it, if all that completed before it is there too; or neither |
//! | a completed flush | everything that completed before the flush began |
//! | a failed write | what was there; the range may be written again |
//! | a failed sync | nobody knows: nothing is written any more, reads go on |
//!
//! The log does not grow for ever. Data that durable entries have superseded is punched out of the data file when no read that
//! began before is left, and an index file of mostly superseded entries is replaced by one of those in use.

mod error;
mod extents;
mod file;
mod files;
mod gate;
mod layer;
mod log;
mod lower;
mod medium;
mod metrics;
mod overlay;
mod parents;
mod rounds;
mod segments;
mod stack;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "tests run where usize has 64 bits")]
mod tests;
mod view;

pub use error::UpperError;
pub use file::LayerFile;
pub use files::{Identity, LayerFiles};
pub use log::LogLimits;
pub use medium::Medium;
pub use metrics::{RequestMetrics, WriteMetrics};
pub use overlay::{Overlay, OverlayQueue};
pub use parents::{LayerLink, check_parents};
pub use stack::Sealed;
