//! Puts what a log has into the order of the device, where it is in more pieces than a read-only layer may have.
//!
//! What is near on the device is read and written once more, to the end of the log, as any write is. So a crash leaves either, and
//! other writes go on. Where that is not enough, small gaps are filled with what lies below.

use std::{ops::Range, sync::Arc, time::Duration};

use super::{LogLayer, entries_of, lacks_room};
use crate::{
    block::{BlockError, BlockQueue, SECTOR_BYTES},
    crash_point::CrashPoint,
    format::lsmt::SEGMENT_LENGTH_LIMIT,
    reactor::Reactor,
    upper::{UpperError, extents::Extent, gate::Gate, medium::Medium, view::View},
};

/// Sectors that are read and written at once: 1 MiB.
const COPY_SECTORS: u64 = 2048;

/// Extents that are looked at while the map is locked.
const EXTENTS_AT_ONCE: usize = 4096;

/// Gaps that are filled, in sectors: the first that leaves few enough pieces. The last one joins everything.
const GAPS: [u64; 6] = [0, 8, 64, 512, 4096, u64::MAX];

/// How often it is done again where writes have torn it meanwhile.
const ROUNDS: usize = 3;

/// In how many pieces a layer may be.
#[derive(Debug, Clone, Copy)]
pub(in crate::upper) struct Pieces {
    /// From more than so many on they are made fewer, if that costs no room.
    pub(in crate::upper) aim: u64,
    /// There must not be more.
    pub(in crate::upper) limit: u64,
}

/// Extents whose data is near one another on the device.
struct Run {
    sectors: Range<u64>,
    extents: usize,
}

impl<M: Medium> LogLayer<M> {
    /// Makes the pieces of the layer as few as `pieces` says, if it can; `gate` is the device's. The layer that takes writes, or one
    /// of the sealed ones under it, must not become another meanwhile.
    ///
    /// # Errors
    /// Those of reads and writes of the device.
    pub(in crate::upper) async fn compact<Q: BlockQueue>(
        self: &Arc<Self>,
        view: &View<'_, Q, M>,
        gate: &Gate,
        pieces: Pieces,
    ) -> Result<(), UpperError> {
        let failed = |source| UpperError::Unsealed { name: self.data.to_string(), source };
        for _ in 0..ROUNDS {
            let before = self.ledger().map.len();
            let Some(gap) = self.gap_to_fill(&view.reader.reactor, pieces).await else { return Ok(()) };
            let (mut at, mut passed) = (0, 0);
            while let Some(run) = self.next_run(at, gap) {
                at = run.sectors.end;
                passed += 1;
                if run.extents > 1 {
                    let copied = self.with_room(&view.reader.reactor, lacks_room, async || {
                        self.copy(view, gate, run.sectors.clone()).await
                    });
                    match copied.await {
                        // It can be sealed as it is.
                        Err(error) if lacks_room(&error) && before as u64 <= pieces.limit => {
                            tracing::warn!(layer = %self.data, %error, "no room to put a layer into the order of the device");
                            return Ok(());
                        }
                        copied => copied.map_err(failed)?,
                    }
                } else if passed % EXTENTS_AT_ONCE == 0 {
                    view.reader.reactor.sleep(Duration::ZERO).await;
                }
            }
            let after = self.ledger().map.len();
            tracing::info!(layer = %self.data, before, after, gap, "put a layer into the order of the device");
        }
        Ok(())
    }

    /// Gaps of how many sectors are to be filled, if anything is to be done.
    async fn gap_to_fill(&self, reactor: &Reactor, pieces: Pieces) -> Option<u64> {
        let now = self.ledger().map.len() as u64;
        if now <= pieces.aim {
            return None;
        }
        for gap in GAPS {
            let left = self.pieces_left(reactor, gap).await;
            if left <= pieces.limit {
                // To copy much for little is no use where it is not needed.
                return (now > pieces.limit || left <= now / 2).then_some(gap);
            }
        }
        None
    }

    /// In how many pieces it would be if gaps of so many sectors were filled.
    async fn pieces_left(&self, reactor: &Reactor, gap: u64) -> u64 {
        let (mut at, mut count, mut zeroes, mut end) = (0, 0_u64, 0_u64, None);
        loop {
            let extents: Vec<Extent> = self.ledger().map.from(at).take(EXTENTS_AT_ONCE).collect();
            if extents.is_empty() {
                return count + zeroes;
            }
            for extent in extents {
                let Range { start, end: next } = extent.sectors;
                at = next;
                if extent.place.sector().is_none() {
                    zeroes += 1;
                    continue;
                }
                if end.is_none_or(|end| start.saturating_sub(end) > gap) {
                    count += 1 + zeroes;
                }
                count += (next - start) / u64::from(SEGMENT_LENGTH_LIMIT);
                (zeroes, end) = (0, Some(next));
            }
            // Other snapshots go on here.
            reactor.sleep(Duration::ZERO).await;
        }
    }

    /// The first run at or after `from`, or as much of it as is copied at once.
    fn next_run(&self, from: u64, gap: u64) -> Option<Run> {
        let ledger = self.ledger();
        let mut run: Option<Run> = None;
        for extent in ledger.map.from(from).filter(|extent| extent.place.sector().is_some()) {
            let start = extent.sectors.start.max(from);
            let run = run.get_or_insert(Run { sectors: start..start, extents: 0 });
            let last = run.sectors.start.saturating_add(COPY_SECTORS);
            if start.saturating_sub(run.sectors.end) > gap || start >= last {
                break;
            }
            run.sectors.end = extent.sectors.end.min(last);
            run.extents += 1;
        }
        run
    }

    /// Writes what the device has in `sectors` to the end of the log, unless a write changes it meanwhile.
    async fn copy<Q: BlockQueue>(
        self: &Arc<Self>,
        view: &View<'_, Q, M>,
        gate: &Gate,
        sectors: Range<u64>,
    ) -> Result<(), BlockError> {
        let _inside = gate.enter().await;
        let reactor = &view.reader.reactor;
        self.admit(reactor).await?;
        // While these are held no place has other bytes, so that whoever finds the same pieces again finds the same bytes.
        let (pieces, _held) = self.find(sectors.clone());
        let length = sectors.end - sectors.start;
        let mut bytes = vec![0; usize::try_from(length.saturating_mul(SECTOR_BYTES)).unwrap_or(0)];
        view.read(sectors.start, &mut bytes).await?;
        let mut rooms = Vec::with_capacity(1);
        let written = self.put(reactor, &bytes, &mut rooms).await;
        let written = written.map_err(|error| self.unwritten(sectors.start, length, error));
        CrashPoint::CompactionWritten.reach();
        let kept = match written {
            Ok(()) => self.ledger_with_room(reactor, entries_of(&rooms)).await,
            Err(error) => Err(error),
        };
        match kept {
            Ok(mut ledger) if ledger.map.pieces(sectors.clone()) == pieces => {
                let taken = self.take_in(&mut ledger, sectors.start, rooms);
                CrashPoint::CompactionCounted.reach();
                taken
            }
            kept => {
                let torn = kept.map(drop);
                self.ledger_mut().have_died(rooms);
                torn
            }
        }
    }
}
