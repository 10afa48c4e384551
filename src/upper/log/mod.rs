//! The log-structured kind: writes go to the end of the data file, and become durable together.

mod compact;
mod dead_space;
mod journal;
mod ledger;
mod open;
mod pins;
mod reclaim;
mod relief;
mod resize;
mod room;
mod round;
mod seal;
mod write_round;
mod zeroes;

use std::{
    io,
    ops::Range,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::lock::Mutex;

use super::{
    WriteMetrics,
    error::kind_of,
    extents::{Extent, Piece, Place},
    layer::LiveHeader,
    medium::Medium,
    rounds::Rounds,
    segments::{entries_for, push_segments},
};
use crate::{
    block::{BlockError, ErrorKind, SECTOR_BYTES},
    format::lsmt::LOG_ENTRY_LIMIT,
    reactor::Reactor,
};
pub(super) use compact::Pieces;
use ledger::Ledger;
pub(super) use open::LogFiles;
pub(super) use pins::Pin;
use pins::Pins;
use relief::Relief;
use room::{End, Room};
use round::Tail;

/// When the layer does what it need not do at once, and how large it becomes.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// Entries that may wait for a flush, 16 bytes each. A write that finds so many waits for one.
    pub pending_entries: usize,
    /// Entries that a journal holds: those, and some of writes that were under way when there were as many. A write that finds no
    /// room waits for a flush too.
    pub journal_entries: usize,
    /// Entries of the index file, superseded ones included, below which it is not rewritten.
    pub rewrite_entries: u64,
    /// The index file is rewritten when it has this many entries for one that is in use.
    pub rewrite_ratio: u64,
    /// Bytes of the data file that may be dead before they are given back to the file system while it is written.
    pub dead_bytes: u64,
    /// All that is dead is given back when nothing was written for this long.
    pub idle: Duration,
    /// Size of the data file in bytes that is not exceeded; the file system may allow less. From half of it on, room is used
    /// again where there is some.
    pub file_bytes: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        // 1 MiB of memory; an index of 1 MiB replays in milliseconds; 64 MiB are little beside what a container writes.
        Self {
            pending_entries: 64 << 10,
            journal_entries: 68 << 10,
            rewrite_entries: 64 << 10,
            rewrite_ratio: 4,
            dead_bytes: 64 << 20,
            idle: Duration::from_secs(10),
            file_bytes: u64::MAX,
        }
    }
}

/// An open layer, shared by all queues and threads.
///
/// A write is completed when its bytes are in the data file and its entry is in the ledger; it is durable after a [flush].
/// The index file is written by one round at a time (see `rounds`): never an entry before its data.
///
/// [flush]: LogLayer::flush
#[derive(Debug)]
pub(super) struct LogLayer<M> {
    pub(super) header: LiveHeader,
    pub(super) limits: LogLimits,
    /// With the journal, which must go before the lock of the data file does.
    ledger: RwLock<Ledger>,
    pub(super) data: M,
    pins: Pins,
    rounds: Rounds<Tail<M>>,
    /// Entries of the index file.
    index_entries: AtomicU64,
    /// ReadGuard by a discard over many extents.
    zeroing: Mutex<()>,
    /// ReadGuard by whoever punches holes.
    punching: Mutex<()>,
    relief: Relief,
    metrics: Arc<WriteMetrics>,
    end: End,
}

impl<M: Medium> LogLayer<M> {
    /// Looks up sectors of the device. What was found stays where it is until the answer is dropped.
    pub(super) fn find(&self, sectors: Range<u64>) -> (Vec<Piece>, Pin<'_>) {
        let ledger = self.ledger();
        (ledger.map.pieces(sectors), ledger.pin(&self.pins))
    }

    /// Looks up sectors of the device, in a layer that takes no writes any more.
    pub(super) fn pieces(&self, sectors: Range<u64>) -> Vec<Piece> {
        self.ledger().map.pieces(sectors)
    }

    /// Extents of the map.
    pub(super) fn piece_count(&self) -> usize {
        self.ledger().map.len()
    }

    /// Whether it has nothing of the device.
    pub(super) fn is_empty(&self) -> bool {
        self.ledger().map.is_empty()
    }

    /// Writes whole sectors from `sector` on.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] where the file system is full, of data that is in use: the range then has what it had. Anything
    /// after a failed sync.
    pub(super) async fn write(
        self: &Arc<Self>,
        reactor: &Reactor,
        sector: u64,
        data: &[u8],
    ) -> Result<(), BlockError> {
        self.with_room(reactor, lacks_room, async || self.append(reactor, sector, data).await).await?;
        self.await_idleness(reactor);
        Ok(())
    }

    async fn append(self: &Arc<Self>, reactor: &Reactor, sector: u64, data: &[u8]) -> Result<(), BlockError> {
        self.admit(reactor).await?;
        let mut rooms = Vec::with_capacity(1);
        if let Err(error) = self.put(reactor, data, &mut rooms).await {
            self.ledger_mut().have_died(rooms);
            return Err(self.unwritten(sector, data.len() as u64 / SECTOR_BYTES, error));
        }
        match self.ledger_with_room(reactor, entries_of(&rooms)).await {
            Ok(mut ledger) => self.take_in(&mut ledger, sector, rooms),
            Err(error) => {
                self.ledger_mut().have_died(rooms);
                Err(error)
            }
        }
    }

    /// The ledger, for so many entries, when its journal has room for them.
    async fn ledger_with_room(
        self: &Arc<Self>,
        reactor: &Reactor,
        entries: usize,
    ) -> Result<RwLockWriteGuard<'_, Ledger>, BlockError> {
        loop {
            let recorded = {
                let ledger = self.ledger_mut();
                let (room, capacity) = ledger.journal_room();
                if entries <= room {
                    return Ok(ledger);
                }
                if entries > capacity {
                    let context = format!("{}: {entries} entries at once", self.data);
                    return Err(BlockError::new(ErrorKind::Invalid, context));
                }
                ledger.recorded()
            };
            self.durable(reactor, recorded).await?;
        }
    }

    /// Has the device see from `sector` on what was written to `rooms`.
    fn take_in(&self, ledger: &mut Ledger, sector: u64, rooms: Vec<Room>) -> Result<(), BlockError> {
        let mut at = sector;
        for Room { sectors, gap } in rooms {
            let end = at.saturating_add(sectors.end - sectors.start);
            ledger.has_died(gap);
            self.record(ledger, Extent { sectors: at..end, place: Place::data(sectors.start) })?;
            at = end;
        }
        Ok(())
    }

    fn unwritten(&self, sector: u64, length: u64, error: io::Error) -> BlockError {
        let context =
            format!("{}: cannot write {length} sectors at sector {sector} of the device", self.data);
        BlockError::with_source(kind_of(&error), context, error)
    }

    /// Writes `data` to the data file, where there is room for it; says where before that is done.
    async fn put(&self, reactor: &Reactor, data: &[u8], rooms: &mut Vec<Room>) -> io::Result<()> {
        let mut rest = data;
        while !rest.is_empty() {
            let room = self.reserve(rest.len() as u64 / SECTOR_BYTES)?;
            let Range { start, end } = room.sectors;
            rooms.push(room);
            let len = usize::try_from((end - start).saturating_mul(SECTOR_BYTES)).unwrap_or(usize::MAX);
            let (piece, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
            self.data.write_at(reactor, start.saturating_mul(SECTOR_BYTES), piece).await?;
            rest = after;
        }
        Ok(())
    }

    /// Makes all writes durable that completed before. Flushes that come while a round is under way share the next one.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] where the index file cannot grow, which a later flush may try again; anything after a failed
    /// sync, when nobody knows what is durable.
    pub(super) async fn flush(self: &Arc<Self>, reactor: &Reactor) -> Result<(), BlockError> {
        let recorded = self.ledger().recorded();
        self.with_room(reactor, lacks_room, async || self.durable(reactor, recorded).await).await
    }

    /// Whether completed writes wait for a flush.
    pub(super) fn is_behind(&self) -> bool {
        self.ledger().pending() > 0
    }

    /// Takes no writes any more, and has all of them durably: it needs no journal.
    pub(super) fn end_journal(&self) {
        self.ledger_mut().end_journal();
    }

    /// Takes no more writes, as after a failed sync.
    pub(super) fn fail(&self, cause: io::Error) {
        self.rounds.fail(cause);
    }

    /// Whether there may be another write now; waits for a round where too many wait for one.
    pub(super) async fn admit(self: &Arc<Self>, reactor: &Reactor) -> Result<(), BlockError> {
        self.rounds.check()?;
        let (pending, recorded) = {
            let ledger = self.ledger();
            (ledger.pending(), ledger.recorded())
        };
        if self.index_entries.load(Ordering::Relaxed).saturating_add(pending as u64) >= LOG_ENTRY_LIMIT {
            let context = format!("{}: its index file can take no more entries", self.data);
            return Err(BlockError::new(ErrorKind::NoSpace, context));
        }
        if pending >= self.limits.pending_entries {
            self.durable(reactor, recorded).await?;
        }
        Ok(())
    }

    fn record(&self, ledger: &mut Ledger, extent: Extent) -> Result<(), BlockError> {
        let Range { start, end } = extent.sectors;
        ledger.record(extent).map_err(|_| {
            let context = format!("{}: no entry can name sectors {start} to {end}", self.data);
            BlockError::new(ErrorKind::Invalid, context)
        })
    }

    fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        self.ledger.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger_mut(&self) -> RwLockWriteGuard<'_, Ledger> {
        self.ledger.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries that name what was written to `rooms`.
fn entries_of(rooms: &[Room]) -> usize {
    rooms.iter().map(|room| entries_for(room.sectors.end - room.sectors.start)).sum()
}

fn lacks_room(error: &BlockError) -> bool {
    error.kind() == ErrorKind::NoSpace
}
