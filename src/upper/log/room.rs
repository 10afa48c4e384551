//! Where in the data file the next write goes: to its end, and past half of what the file may have, to where data has died.

use std::{
    io,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use rustix::io::Errno;

use super::LogLayer;
use crate::{
    block::SECTOR_BYTES,
    format::lsmt::{SEGMENT_BYTES, SEGMENT_COUNT_LIMIT, SLOT_BYTES},
    upper::medium::Medium,
};

/// Sectors of a page. A write of whole pages begins on one in the file too, so that none has to be read for it.
const PAGE_SECTORS: u64 = 8;

/// Sectors that the end of a sealed layer takes at most: its index, and what is around it.
const SEAL_SECTORS: u64 = (SEGMENT_COUNT_LIMIT * SEGMENT_BYTES as u64 + 2 * SLOT_BYTES as u64) / SECTOR_BYTES;

/// Room in the data file for one write, or a part of it.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) sectors: Range<u64>,
    /// Skipped before it, for the sake of pages.
    pub(super) gap: Range<u64>,
}

/// Where the data file ends, and may end. Positions are in its sectors.
#[derive(Debug)]
pub(super) struct End {
    next: AtomicU64,
    limit: u64,
    /// Whether the next write must go to the end. What a seal has left there makes the file a read-only layer for whoever takes
    /// it for one, and must not be at the end any more when data is written elsewhere.
    must_move: AtomicBool,
}

impl End {
    /// Of a file of so many bytes that has just been opened.
    pub(super) fn new(size_bytes: u64, limit_bytes: u64) -> Self {
        Self {
            next: AtomicU64::new(size_bytes.div_ceil(SECTOR_BYTES)),
            limit: limit_bytes / SECTOR_BYTES,
            must_move: AtomicBool::new(true),
        }
    }

    /// Whether so much was written that what is dead is used again.
    pub(super) fn is_reusing(&self) -> bool {
        self.next.load(Ordering::Relaxed) > self.reuse_from()
    }

    fn reuse_from(&self) -> u64 {
        self.limit / 2
    }

    /// Where data may go at most, so that it can be sealed.
    fn data_limit(&self) -> u64 {
        self.limit - SEAL_SECTORS.min(self.limit / 4)
    }

    /// Room for `length` sectors at the end, up to `limit`.
    fn append(&self, length: u64, limit: u64) -> Option<Room> {
        let unit = unit_of(length);
        let place = |end: u64| {
            let start = end.checked_next_multiple_of(unit)?;
            Some((start, start.checked_add(length).filter(|next| *next <= limit)?))
        };
        let next = |end| place(end).map(|(_, next)| next);
        let end = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        let (start, next) = place(end)?;
        Some(Room { sectors: start..next, gap: end..start })
    }
}

impl<M: Medium> LogLayer<M> {
    /// Bytes that can be written until there is no room in the data file any more, however much the file system has.
    pub(in crate::upper) fn room_bytes(&self) -> u64 {
        let ahead = self.end.data_limit().saturating_sub(self.end.next.load(Ordering::Relaxed));
        ahead.saturating_add(self.ledger().reusable_sectors()).saturating_mul(SECTOR_BYTES)
    }

    /// Room for `length` sectors, or for fewer where nowhere is so much in one place.
    ///
    /// # Errors
    /// That there is none.
    pub(super) fn reserve(&self, length: u64) -> io::Result<Room> {
        if let Some(room) = self.end.append(length, self.end.reuse_from()) {
            return Ok(room);
        }
        let mut ledger = self.ledger_mut();
        let mut reuse = |may_be_less| {
            let found = ledger.reuse(length, unit_of(length), may_be_less);
            found.map(|(sectors, gap)| Room { sectors, gap })
        };
        let at_end = || self.end.append(length, self.end.data_limit());
        let room = if self.end.must_move.load(Ordering::Relaxed) {
            at_end().inspect(|_| self.end.must_move.store(false, Ordering::Relaxed))
        } else {
            reuse(false).or_else(at_end)
        };
        room.or_else(|| reuse(true)).ok_or_else(is_at_limit)
    }

    /// Room at the end for what seals the layer. What is written next goes behind it.
    ///
    /// # Errors
    /// That there is none.
    pub(super) fn reserve_end(&self, length: u64) -> io::Result<Room> {
        let room = self.end.append(length, self.end.limit);
        self.end.must_move.store(true, Ordering::Relaxed);
        room.ok_or_else(is_at_limit)
    }
}

/// What a write of so many sectors begins at a multiple of.
fn unit_of(length: u64) -> u64 {
    if length.is_multiple_of(PAGE_SECTORS) { PAGE_SECTORS } else { 1 }
}

fn is_at_limit() -> io::Error {
    Errno::FBIG.into()
}
