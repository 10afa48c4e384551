//! What the layer knows in memory: the map, the entries that the index file lacks, and the room that they have freed.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::dead_space::DeadSpace;
use crate::{
    format::lsmt::Segment,
    upper::{
        extents::{Extent, ExtentMap},
        segments::{Unnamed, push_segments},
    },
};

/// Everything that one lock protects. A write is in the map and among the pending entries, or in neither.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) map: ExtentMap,
    /// Entries of completed writes that no round has taken yet, in the order of completion.
    pending: Vec<Segment>,
    /// Sectors of the data file that the pending entries supersede. Until these are durable a crash may bring them back.
    superseded: Vec<Range<u64>>,
    /// Entries recorded since the layer was opened.
    recorded: u64,
    limbo: Limbo,
    pub(super) dead: DeadSpace,
}

/// Superseded durably, but a read that began before may still go there.
///
/// Reads are counted by the epoch that they began in, and there are two epochs at a time: this one and the one before. What
/// is superseded in one epoch can be read only by reads of it or older ones, so it is dead when these have ended.
#[derive(Debug, Default)]
struct Limbo {
    epoch: usize,
    current: Vec<Range<u64>>,
    previous: Vec<Range<u64>>,
}

/// Reads under way, by epoch. Raised while the ledger is locked for reading, so that no epoch ends meanwhile.
#[derive(Debug, Default)]
pub(super) struct Pins([AtomicUsize; 2]);

/// Keeps what was found in the map from being punched out until it is dropped.
#[derive(Debug)]
pub(in crate::upper) struct Pin<'a>(Option<&'a AtomicUsize>);

/// What one round makes durable.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<Segment>,
    superseded: Vec<Range<u64>>,
    /// Entries recorded up to and with these.
    pub(super) upto: u64,
}

impl Ledger {
    pub(super) fn new(map: ExtentMap, dead: DeadSpace) -> Self {
        let (pending, superseded) = (Vec::new(), Vec::new());
        Self { map, pending, superseded, recorded: 0, limbo: Limbo::default(), dead }
    }

    /// Takes a completed write in: all later reads see it, and it is durable with the next batch.
    pub(super) fn record(&mut self, extent: Extent) -> Result<(), Unnamed> {
        let before = self.pending.len();
        if push_segments(&extent, &mut self.pending).is_err() {
            self.pending.truncate(before);
            return Err(Unnamed);
        }
        self.recorded += (self.pending.len() - before) as u64;
        self.map.insert(extent, |sectors| self.superseded.push(sectors));
        Ok(())
    }

    /// Entries recorded since the layer was opened.
    pub(super) fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Entries that wait for a round.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn take_batch(&mut self) -> Batch {
        Batch {
            entries: std::mem::take(&mut self.pending),
            superseded: std::mem::take(&mut self.superseded),
            upto: self.recorded,
        }
    }

    /// Takes a batch back that could not be written, before all that came later.
    pub(super) fn put_back(&mut self, mut batch: Batch) {
        batch.entries.append(&mut self.pending);
        batch.superseded.append(&mut self.superseded);
        (self.pending, self.superseded) = (batch.entries, batch.superseded);
    }

    /// Lets go of what a batch has superseded, now that it is durable.
    pub(super) fn settle(&mut self, batch: Batch, pins: &Pins) {
        self.limbo.current.extend(batch.superseded);
        // Where nobody reads, both epochs are over, and all of it is dead at once.
        for _ in 0..2 {
            let other = 1 - self.limbo.epoch;
            if pins.count(other) != 0 {
                break;
            }
            self.limbo.previous.drain(..).for_each(|sectors| self.dead.add(sectors));
            std::mem::swap(&mut self.limbo.previous, &mut self.limbo.current);
            self.limbo.epoch = other;
        }
    }

    pub(super) fn pin<'a>(&self, pins: &'a Pins) -> Pin<'a> {
        let count = pins.0.get(self.limbo.epoch);
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Pin(count)
    }
}

impl Pins {
    fn count(&self, epoch: usize) -> usize {
        // Pairs with the end of a pin: what was read before it has been read.
        self.0.get(epoch).map_or(0, |count| count.load(Ordering::Acquire))
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            count.fetch_sub(1, Ordering::Release);
        }
    }
}
