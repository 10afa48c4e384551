//! The shared cache: a source that remembers.

#[cfg(test)]
mod crash_tests;
mod grain;
mod ledger;
mod lock;
mod map_file;
mod medium;
mod presence;

pub use map_file::{MapError, MapHeader, MapKind, decode_map};
