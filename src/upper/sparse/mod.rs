//! The sparse kind: each byte of the device has its place in one file, and what the file system keeps of the file is the index.
//!
//! A file system keeps whole blocks. So a write of a part of a block that the layer lacks is completed with what lies below, and
//! goes to the file as one write of the whole block; the rest of the block would read as zeroes otherwise once the layer is
//! opened again. What was discarded is a hole only where all below is known to be zeroes, and else is zeroes that are written:
//! a hole shows what lies below it, to us as to upstream's reader. Blocks are claimed by whoever changes them (see `claims`).
//!
//! The map in memory is never behind the file: a write is recorded when it is in the file, a discard when the hole is. Where a
//! write has failed, the file is asked what it has.

mod open;
mod seal;
mod zeroes;

use std::{
    io,
    ops::{Deref, Range},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    WriteMetrics,
    claims::{Claim, Claims, GivenUp},
    error::kind_of,
    extents::{Extent, ExtentMap, Piece, Place},
    layer::LiveHeader,
    medium::Medium,
    rounds::{Rounds, Trouble},
    view::View,
};
use crate::{
    block::{BlockError, BlockQueue, ErrorKind, SECTOR_BYTES},
    format::lsmt::{DATA_START_SECTOR, SLOT_BYTES},
    reactor::Reactor,
};

/// What changes are made in, on the device as in the file: at least as large as a block of the file system. The header takes
/// one such block, so that those of the device are blocks of the file too.
const BLOCK_BYTES: u64 = SLOT_BYTES as u64;
const BLOCK_SECTORS: u64 = BLOCK_BYTES / SECTOR_BYTES;

/// Runs of data that a layer may have. They take some 30 bytes of memory each.
const EXTENT_LIMIT: usize = 32_000_000;

/// An open layer, shared by all queues and threads.
#[derive(Debug)]
pub(super) struct SparseLayer<M> {
    pub(super) data: M,
    pub(super) header: LiveHeader,
    map: RwLock<ExtentMap>,
    claims: Claims,
    /// Changes that have completed since the layer was opened.
    completed: AtomicU64,
    rounds: Rounds<()>,
    metrics: Arc<WriteMetrics>,
}

/// A sync for all flushes that wait, or what keeps others from syncing meanwhile: the kernel tells only one of them that it has
/// failed. Dropped in the middle, with its reactor, it has failed.
struct Round<M: Medium> {
    layer: Arc<SparseLayer<M>>,
    upto: u64,
    has_ended: bool,
}

impl<M: Medium> SparseLayer<M> {
    /// Looks up sectors of the device.
    pub(super) fn pieces(&self, sectors: Range<u64>) -> Vec<Piece> {
        self.map().pieces(sectors)
    }

    /// Runs of data of the file.
    pub(super) fn piece_count(&self) -> usize {
        self.map().len()
    }

    /// Whether it has nothing of the device.
    pub(super) fn is_empty(&self) -> bool {
        self.map().is_empty()
    }

    /// Waits until nobody changes the blocks of these sectors, and keeps it so until the answer is dropped.
    pub(super) async fn still(&self, sectors: Range<u64>) -> Claim<'_> {
        self.claims.read(blocks_of(&sectors)).await
    }

    /// Writes the bytes of `sectors` that `take` gives, which is asked when only the file is left to wait for.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] where the file system is full, and those of what lies below, where a block is completed, and of
    /// `take`: each sector then has what it had or what was to be written. Anything after a failed sync.
    pub(super) async fn write<Q: BlockQueue, D: Deref<Target = [u8]>>(
        &self,
        view: &View<'_, Q, M>,
        sectors: Range<u64>,
        take: impl AsyncFnOnce() -> Result<D, BlockError>,
    ) -> Result<(), BlockError> {
        let claim = self.claim(&sectors).await?;
        let written = self.put(view, sectors.clone(), take).await;
        self.end_change(claim, &sectors, written)
    }

    /// Makes all changes durable that completed before. Flushes that come while a sync is under way share the next one.
    ///
    /// # Errors
    /// After a failed sync, when nobody knows what is durable.
    pub(super) async fn flush(self: &Arc<Self>, reactor: &Reactor) -> Result<(), BlockError> {
        let wanted = self.completed.load(Ordering::Acquire);
        let begin = |()| {
            let upto = self.completed.load(Ordering::Acquire);
            let round = Round { layer: Arc::clone(self), upto, has_ended: false };
            reactor.spawn(round.run(reactor.clone()));
        };
        self.rounds.durable(wanted, begin).await
    }

    /// A round for whoever syncs something else; waits for the one that is under way.
    ///
    /// # Errors
    /// That something has failed before.
    async fn round(self: &Arc<Self>) -> Result<Round<M>, BlockError> {
        let ((), upto) = self.rounds.turn().await?;
        Ok(Round { layer: Arc::clone(self), upto, has_ended: false })
    }

    /// Takes no more writes, as after a failed sync.
    pub(super) fn fail(&self, cause: io::Error) {
        self.rounds.fail(cause);
    }

    /// Claims the blocks of these sectors for a change.
    async fn claim(&self, sectors: &Range<u64>) -> Result<Claim<'_>, BlockError> {
        self.rounds.check()?;
        if self.map().len() >= EXTENT_LIMIT {
            let context = format!("{}: it can have no more than {EXTENT_LIMIT} runs of data", self.data);
            return Err(BlockError::new(ErrorKind::NoSpace, context));
        }
        self.claims.change(blocks_of(sectors)).await.map_err(|GivenUp| {
            let context = format!("{}: a write to the same place was given up in the middle", self.data);
            BlockError::new(ErrorKind::Io, context)
        })
    }

    /// Lets go of the blocks. Where the change has failed, what has got to the file belongs to the layer all the same.
    fn end_change(
        &self,
        claim: Claim<'_>,
        sectors: &Range<u64>,
        ended: Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        if ended.is_err() {
            let blocks = blocks_of(sectors);
            if let Err(error) = self.look_again(blocks.start * BLOCK_SECTORS..blocks.end * BLOCK_SECTORS) {
                tracing::error!(layer = %self.data, %error, "cannot find out what a failed write has left");
                self.rounds.fail(error);
            }
        }
        self.completed.fetch_add(1, Ordering::Release);
        claim.release();
        ended
    }

    /// Writes what `take` gives to `sectors`, and completes the first and the last block with what the device holds where that must
    /// be. That is read first, since it may come from afar.
    async fn put<Q: BlockQueue, D: Deref<Target = [u8]>>(
        &self,
        view: &View<'_, Q, M>,
        sectors: Range<u64>,
        take: impl AsyncFnOnce() -> Result<D, BlockError>,
    ) -> Result<(), BlockError> {
        let Range { start, end } = sectors;
        let head = self.incomplete(start, &sectors);
        let tail =
            self.incomplete(end.saturating_sub(1), &sectors).filter(|tail| head.as_ref() != Some(tail));
        let whole = head.as_ref().map_or(start, |block| block.end.min(end))
            ..tail.as_ref().map_or(end, |block| block.start.max(start));
        let mut blocks = Vec::new();
        for block in head.into_iter().chain(tail) {
            let mut bytes = vec![0; in_memory(&block)];
            view.read(block.start, &mut bytes).await?;
            blocks.push((block, bytes));
        }
        let data = take().await?;
        if !whole.is_empty() {
            let bytes = bytes_of(&data, start, &whole);
            self.store(&view.reader.reactor, whole, bytes).await?;
        }
        for (block, mut bytes) in blocks {
            let part = block.start.max(start)..block.end.min(end);
            let skipped = in_memory(&(block.start..part.start));
            if let Some(dest) = bytes.get_mut(skipped..).and_then(|rest| rest.get_mut(..in_memory(&part))) {
                dest.copy_from_slice(bytes_of(&data, start, &part));
            }
            self.store(&view.reader.reactor, block, &bytes).await?;
        }
        Ok(())
    }

    /// The block of `sector`, if the layer lacks some of it that `sectors` do not have either.
    fn incomplete(&self, sector: u64, sectors: &Range<u64>) -> Option<Range<u64>> {
        let start = sector - sector % BLOCK_SECTORS;
        let block = start..start.saturating_add(BLOCK_SECTORS).min(self.size_sectors());
        let map = self.map();
        let lacks =
            |part: Range<u64>| map.pieces(part).into_iter().any(|piece| matches!(piece, Piece::Hole(_)));
        let before = block.start..sectors.start.min(block.end).max(block.start);
        let after = sectors.end.max(block.start).min(block.end)..block.end;
        (lacks(before) || lacks(after)).then_some(block)
    }

    /// Writes to the file, whole blocks where these are new to it, and then to the map.
    async fn store(&self, reactor: &Reactor, sectors: Range<u64>, data: &[u8]) -> Result<(), BlockError> {
        let Range { start, end } = sectors;
        let written = self.data.write_at(reactor, place_of(start).saturating_mul(SECTOR_BYTES), data).await;
        written.map_err(|error| self.failed("write", &sectors, error))?;
        self.map_mut().insert(Extent { sectors: start..end, place: Place::data(place_of(start)) }, |_| ());
        Ok(())
    }

    fn failed(&self, what: &str, sectors: &Range<u64>, error: io::Error) -> BlockError {
        let Range { start, end } = sectors;
        let context = format!("{}: cannot {what} sectors {start} to {end} of the device", self.data);
        BlockError::with_source(kind_of(&error), context, error)
    }

    fn size_sectors(&self) -> u64 {
        self.header.get().virtual_size_bytes / SECTOR_BYTES
    }

    fn map(&self) -> RwLockReadGuard<'_, ExtentMap> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, ExtentMap> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Medium> Round<M> {
    async fn run(mut self, reactor: Reactor) {
        let synced = self.layer.data.sync(&reactor).await;
        self.end(synced);
    }

    fn end(&mut self, synced: io::Result<()>) {
        self.has_ended = true;
        match &synced {
            Ok(()) => {
                self.layer.metrics.rounds.inc();
            }
            Err(cause) => {
                tracing::error!(layer = %self.layer.data, %cause, "a sync has failed: no more writes");
            }
        }
        self.layer.rounds.end(Some(()), self.upto, synced.map_err(Trouble::Failed));
    }
}

impl<M: Medium> Drop for Round<M> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(Err(io::Error::other("the thread that ran a flush has ended")));
        }
    }
}

/// The sector of the file that has this sector of the device.
fn place_of(sector: u64) -> u64 {
    sector.saturating_add(DATA_START_SECTOR)
}

/// The blocks that these sectors touch.
fn blocks_of(sectors: &Range<u64>) -> Range<u64> {
    sectors.start / BLOCK_SECTORS..sectors.end.div_ceil(BLOCK_SECTORS)
}

/// The bytes of `sectors` in `data`, which begins with those of sector `start`.
fn bytes_of<'a>(data: &'a [u8], start: u64, sectors: &Range<u64>) -> &'a [u8] {
    let skipped = in_memory(&(start..sectors.start));
    data.get(skipped..).and_then(|rest| rest.get(..in_memory(sectors))).unwrap_or_default()
}

/// How many bytes these sectors are, of a request in memory.
fn in_memory(sectors: &Range<u64>) -> usize {
    let bytes = sectors.end.saturating_sub(sectors.start).saturating_mul(SECTOR_BYTES);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
