//! What an entry's record needs of the disk below; a model of a disk takes its place in the crash tests.

use std::io;

use super::map_file::{MapKind, RawSector};
use crate::block::ByteRange;

/// The files of one entry: data, and two maps made of sectors. Operations on maps are small and hit the page cache, so
/// they do not wait; those on data may.
pub(super) trait Medium {
    /// Runs `act` while no other process changes the maps; `None` if that could not be had in time.
    async fn locked<T>(&self, act: impl FnOnce() -> T) -> Option<T>;

    /// Whether all files were made just now, so that nothing older can come back.
    fn is_fresh(&self) -> bool;

    /// Whether no other process has the entry open; asked only while it is opened.
    fn is_alone(&self) -> bool;

    /// Length of the data file in bytes.
    fn data_len(&self) -> io::Result<u64>;

    /// Gives the data file its length; what was not written reads as zeroes.
    fn set_data_len(&self, size_bytes: u64) -> io::Result<()>;

    /// Writes all of `bytes`, which fit one buffer, to the data file.
    async fn write_data(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes the written data durable.
    async fn sync_data(&self) -> io::Result<()>;

    /// Gives the room of `range` back to the file system; it reads as zeroes then.
    fn punch_data(&self, range: ByteRange) -> io::Result<()>;

    /// The next sectors of a map that may be other than zeroes, from `sector` on, some at a time; with the number of the
    /// first, which counts the header as 0. `None` where none are left.
    fn next_sectors(&self, kind: MapKind, sector: u64) -> io::Result<Option<(u64, Vec<u8>)>>;

    /// One sector, counted with the header as 0; zeroes where the file has none.
    fn read_sector(&self, kind: MapKind, sector: u64) -> io::Result<RawSector>;

    /// Writes one sector, counted with the header as 0.
    fn write_sector(&self, kind: MapKind, sector: u64, raw: &RawSector) -> io::Result<()>;

    /// Makes a map empty.
    fn truncate_map(&self, kind: MapKind) -> io::Result<()>;

    /// Makes the state of a map durable.
    async fn sync_map(&self, kind: MapKind) -> io::Result<()>;
}
