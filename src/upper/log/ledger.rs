//! What the layer knows in memory: the map, the entries that the index file lacks, and the room that they have freed.

use std::ops::Range;

use super::{
    dead_space::DeadSpace,
    journal::{Journal, JournalPlace},
    pins::{Pin, Pins},
    room::Room,
};
use crate::{
    format::lsmt::Segment,
    upper::{
        UpperError,
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
    /// What whoever opens the layer next finds of them; it has those that are being made durable too.
    journal: Option<Journal>,
    /// What the pending entries supersede. Until these are durable a crash may bring it back.
    superseded: Vec<Superseded>,
    /// Entries recorded since the layer was opened.
    recorded: u64,
    limbo: Limbo,
    /// Nobody reads it any more, but it is not counted among the dead yet.
    ripe: Vec<Vec<Superseded>>,
    /// `None` where extents share data, so that nobody knows what is dead.
    dead: Option<DeadSpace>,
}

/// Sectors of the data file that nothing points to once so many of the recorded entries are durable.
#[derive(Debug)]
struct Superseded {
    by: u64,
    sectors: Range<u64>,
}

/// Superseded durably, but a read that began before may still go there.
///
/// Reads are counted by the epoch that they began in, and there are two epochs at a time: this one and the one before. What
/// is superseded in one epoch can be read only by reads of it or older ones, so it is dead when these have ended.
#[derive(Debug, Default)]
struct Limbo {
    epoch: u64,
    current: Vec<Vec<Superseded>>,
    previous: Vec<Vec<Superseded>>,
}

/// What one round makes durable.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<Segment>,
    superseded: Vec<Superseded>,
    /// Entries recorded up to and with these.
    pub(super) upto: u64,
}

impl Ledger {
    pub(super) fn new(map: ExtentMap, dead: Option<DeadSpace>) -> Self {
        let (pending, superseded, ripe) = (Vec::new(), Vec::new(), Vec::new());
        Self { map, pending, journal: None, superseded, recorded: 0, limbo: Limbo::default(), ripe, dead }
    }

    /// Has entries outlive the process from now on, those that are pending too.
    pub(super) fn keep(&mut self, place: JournalPlace) -> Result<(), UpperError> {
        self.journal = Some(place.begin(&self.pending)?);
        Ok(())
    }

    /// Ends the journal, of a layer that takes no writes any more.
    pub(super) fn end_journal(&mut self) {
        self.journal = None;
    }

    /// A sync has failed: nobody is to believe the journal.
    pub(super) fn discard_journal(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.discard();
        }
    }

    /// How many entries may be recorded before a round must make some durable, and at most at all.
    pub(super) fn journal_room(&self) -> (usize, usize) {
        self.journal.as_ref().map_or((usize::MAX, usize::MAX), |journal| (journal.room(), journal.capacity()))
    }

    /// Takes a completed write in: all later reads see it, and it is durable with the next batch.
    pub(super) fn record(&mut self, extent: Extent) -> Result<(), Unnamed> {
        let before = self.pending.len();
        if push_segments(&extent, &mut self.pending).is_err() {
            self.pending.truncate(before);
            return Err(Unnamed);
        }
        if let (Some(journal), Some(entries)) = (&mut self.journal, self.pending.get(before..)) {
            journal.push(entries);
        }
        self.recorded += (self.pending.len() - before) as u64;
        let by = self.recorded;
        self.map.insert(extent, |sectors| self.superseded.push(Superseded { by, sectors }));
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

    /// Takes the oldest entries, at most so many.
    pub(super) fn take_batch(&mut self, most: usize) -> Batch {
        let rest = self.pending.split_off(most.min(self.pending.len()));
        let upto = self.recorded - rest.len() as u64;
        let dying = self.superseded.partition_point(|superseded| superseded.by <= upto);
        let lasting = self.superseded.split_off(dying);
        Batch {
            entries: std::mem::replace(&mut self.pending, rest),
            superseded: std::mem::replace(&mut self.superseded, lasting),
            upto,
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
        if let Some(journal) = &mut self.journal {
            journal.cut(batch.entries.len());
        }
        if !batch.superseded.is_empty() {
            self.limbo.current.push(batch.superseded);
        }
        self.turn_epochs(pins);
    }

    /// Ends the epochs whose reads have ended; returns whether nothing that is superseded durably can be read any more.
    pub(super) fn turn_epochs(&mut self, pins: &Pins) -> bool {
        // Where nobody reads, both epochs are over, and all of it is dead at once.
        for _ in 0..2 {
            // There are two counts, so that the last epoch's is the next one's.
            let next = self.limbo.epoch + 1;
            if pins.count(next) != 0 {
                break;
            }
            self.ripe.append(&mut self.limbo.previous);
            std::mem::swap(&mut self.limbo.previous, &mut self.limbo.current);
            self.limbo.epoch = next;
        }
        self.limbo.current.is_empty() && self.limbo.previous.is_empty()
    }

    /// Counts the epochs of reads: when two have ended, all that was superseded durably before is dead.
    pub(super) fn epoch(&self) -> u64 {
        self.limbo.epoch
    }

    /// Counts what nobody reads any more among the dead, at most so many ranges of it; returns whether there is more.
    pub(super) fn bury(&mut self, most: usize) -> bool {
        for _ in 0..most {
            match self.ripe.last_mut().map(Vec::pop) {
                Some(Some(superseded)) => self.has_died(superseded.sectors),
                Some(None) => drop(self.ripe.pop()),
                None => return false,
            }
        }
        !self.ripe.is_empty()
    }

    /// Takes back what was to be written to: nothing points there, so nobody reads it.
    pub(super) fn have_died(&mut self, rooms: Vec<Room>) {
        rooms.into_iter().for_each(|room| self.has_died(room.gap.start..room.sectors.end));
    }

    /// Nothing points to these sectors, and nobody reads them.
    pub(super) fn has_died(&mut self, sectors: Range<u64>) {
        if let Some(dead) = &mut self.dead {
            dead.add(sectors);
        }
    }

    /// Sectors of dead blocks.
    pub(super) fn dead_sectors(&self) -> u64 {
        self.dead.as_ref().map_or(0, DeadSpace::whole_sectors)
    }

    /// Takes a run of dead blocks.
    pub(super) fn take_dead(&mut self) -> Option<Range<u64>> {
        self.dead.as_mut()?.take_run()
    }

    /// These blocks were given back.
    pub(super) fn is_given_back(&mut self, run: Range<u64>) {
        if let Some(dead) = &mut self.dead {
            dead.add_hole(run);
        }
    }

    /// Sectors that are dead, whether they were given back or not, as far as that is known.
    pub(super) fn reusable_sectors(&self) -> u64 {
        self.dead.as_ref().map_or(0, DeadSpace::reusable_sectors)
    }

    /// Takes dead sectors to be used again; see [`DeadSpace::reuse`].
    pub(super) fn reuse(
        &mut self,
        length: u64,
        unit: u64,
        may_be_less: bool,
    ) -> Option<(Range<u64>, Range<u64>)> {
        self.dead.as_mut()?.reuse(length, unit, may_be_less)
    }

    pub(super) fn pin<'a>(&self, pins: &'a Pins) -> Pin<'a> {
        pins.pin(self.limbo.epoch)
    }
}
