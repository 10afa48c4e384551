//! What a round writes: the entries that are pending to the end of the index file, or a new index file of what is in use.
//!
//! Data comes first in either case, and one sync of it covers all entries of the batch: each was recorded when its write had
//! completed. The entries follow in one write, so that what a crash leaves of it is cut at the first sector that is missing.

use std::io;

use super::round::{Round, Tail};
use crate::{
    block::{ByteRange, ErrorKind},
    format::lsmt::{SEGMENT_BYTES, SLOT_BYTES, Segment, index_header},
    reactor::Reactor,
    upper::{error::kind_of, medium::Medium, rounds::Trouble, segments::push_segments},
};

/// Extents that are copied to a new index file at a time, while the map is locked.
const EXTENTS_AT_ONCE: usize = 1024;

/// Room that an index file has past its end, where the file system is not full: for so many entries that those of a round are
/// written in a few pieces at most, and little beside a layer.
const AHEAD_BYTES: u64 = 64 << 10;

/// The least that it has where the file system is full: one block.
const LEAST_BYTES: u64 = 4096;

/// An index file that cannot be rewritten is not tried again before it has so many times the entries.
const REWRITE_BACK_OFF: u64 = 2;

impl<M: Medium> Round<M> {
    pub(super) async fn write(&mut self, reactor: &Reactor) -> Result<(), Trouble> {
        let Some(mut tail) = self.tail.take() else { return Ok(()) };
        let written = self.write_behind(reactor, &mut tail).await;
        self.tail = Some(tail);
        written
    }

    async fn write_behind(&mut self, reactor: &Reactor, tail: &mut Tail<M>) -> Result<(), Trouble> {
        let successor = if self.wants_rewrite(tail) { self.copy_live(reactor, tail).await } else { None };
        let pending = self.layer.ledger().pending();
        let room = tail.keep_ahead(reactor, pending).await;
        // After the copy: what has changed in the map meanwhile is put over it by these entries, if these are all.
        let is_all = {
            let mut ledger = self.layer.ledger_mut();
            self.batch = ledger.take_batch(room);
            ledger.pending() == 0
        };
        let successor = match successor {
            Some(unfit) if !is_all => {
                reactor.spawn(unfit.index.close());
                None
            }
            successor => successor,
        };
        self.layer.data.sync(reactor).await.map_err(Trouble::Failed)?;
        if let Some(successor) = successor
            && self.change_over(reactor, tail, successor).await?
        {
            return Ok(());
        }
        self.append(reactor, tail).await
    }

    /// Keeps room for entries to come.
    pub(super) async fn keep_ahead(&mut self, reactor: &Reactor) {
        if let Some(tail) = &mut self.tail {
            tail.keep_ahead(reactor, 0).await;
        }
    }

    fn wants_rewrite(&self, tail: &Tail<M>) -> bool {
        let live = self.layer.ledger().map.len() as u64;
        tail.entries >= tail.rewrite_at.max(live.saturating_mul(self.layer.limits.rewrite_ratio))
    }

    async fn append(&mut self, reactor: &Reactor, tail: &mut Tail<M>) -> Result<(), Trouble> {
        let bytes = encode(&self.batch.entries);
        // Where there is no room, a later round writes the same bytes to the same place, and sees whether they become durable.
        tail.index.write_durably(reactor, tail.end_bytes, &bytes).await.map_err(|error| {
            match kind_of(&error) {
                ErrorKind::NoSpace => Trouble::Refused(error),
                _ => Trouble::Failed(error),
            }
        })?;
        tail.grow(bytes.len(), self.batch.entries.len());
        Ok(())
    }

    /// A new index file with an entry for each extent in use, or `None` where it cannot be had: the old one does as well.
    async fn copy_live(&self, reactor: &Reactor, tail: &mut Tail<M>) -> Option<Tail<M>> {
        let failed = match tail.index.successor().await {
            Ok(index) => {
                let end_bytes = SLOT_BYTES as u64;
                let mut successor = Tail { index, end_bytes, entries: 0, rewrite_at: 0, kept_to_bytes: 0 };
                match self.copy_live_to(reactor, &mut successor).await {
                    Ok(()) => return Some(successor),
                    Err(error) => {
                        reactor.spawn(successor.index.close());
                        error
                    }
                }
            }
            Err(error) => error,
        };
        tail.put_off_rewrite(&failed);
        None
    }

    async fn copy_live_to(&self, reactor: &Reactor, successor: &mut Tail<M>) -> io::Result<()> {
        successor.index.write_at(reactor, 0, &index_header(&self.layer.header.get()).encode()).await?;
        let (mut from, mut segments) = (0, Vec::new());
        loop {
            segments.clear();
            for extent in self.layer.ledger().map.from(from).take(EXTENTS_AT_ONCE) {
                from = extent.sectors.end;
                push_segments(&extent, &mut segments).map_err(|_| io::ErrorKind::InvalidData)?;
            }
            if segments.is_empty() {
                return Ok(());
            }
            let bytes = encode(&segments);
            successor.index.write_at(reactor, successor.end_bytes, &bytes).await?;
            successor.grow(bytes.len(), segments.len());
        }
    }

    /// Ends the new index file with the batch and puts it in the place of the old one; returns whether that was to be had.
    async fn change_over(
        &mut self,
        reactor: &Reactor,
        tail: &mut Tail<M>,
        mut successor: Tail<M>,
    ) -> Result<bool, Trouble> {
        let bytes = encode(&self.batch.entries);
        let limits = self.layer.limits;
        successor.rewrite_at =
            limits.rewrite_entries.max(successor.entries.saturating_mul(limits.rewrite_ratio));
        let room = successor.keep_ahead(reactor, self.batch.entries.len()).await;
        let written = async {
            if room < self.batch.entries.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            successor.index.write_at(reactor, successor.end_bytes, &bytes).await?;
            successor.index.sync(reactor).await?;
            tail.index.replace_by(&successor.index).await
        };
        if let Err(error) = written.await {
            tail.put_off_rewrite(&error);
            reactor.spawn(successor.index.close());
            return Ok(false);
        }
        successor.grow(bytes.len(), self.batch.entries.len());
        tracing::debug!(index = %tail.index, from = tail.entries, to = successor.entries, "rewrote an index file");
        let old = std::mem::replace(tail, successor);
        reactor.spawn(old.index.close());
        // Until then a crash may bring the old file back, which lacks the batch.
        tail.index.sync_name(reactor).await.map_err(Trouble::Failed)?;
        Ok(true)
    }
}

impl<M: Medium> Tail<M> {
    /// Has the file system keep room for so many entries, and for some more where it can: when it is full these make other room
    /// free. Returns how many there is room for.
    pub(super) async fn keep_ahead(&mut self, reactor: &Reactor, entries: usize) -> usize {
        let wanted = self.end_bytes.saturating_add((entries.saturating_mul(SEGMENT_BYTES)) as u64);
        if self.kept_to_bytes < wanted.saturating_add(AHEAD_BYTES / 2) {
            let goals =
                [wanted.saturating_add(AHEAD_BYTES), wanted, self.end_bytes.saturating_add(LEAST_BYTES)];
            for goal in goals.into_iter().filter(|goal| *goal > self.end_bytes) {
                if goal <= self.kept_to_bytes {
                    break;
                }
                match self.index.keep_room(reactor, ByteRange::between(self.end_bytes, goal)).await {
                    Ok(()) => {
                        self.kept_to_bytes = goal;
                        break;
                    }
                    Err(error) if kind_of(&error) == ErrorKind::NoSpace => {}
                    // It is to be seen when they are written.
                    Err(_) => return usize::MAX,
                }
            }
        }
        match self.kept_to_bytes.saturating_sub(self.end_bytes) / SEGMENT_BYTES as u64 {
            // The last block may have some.
            0 => usize::MAX,
            room => usize::try_from(room).unwrap_or(usize::MAX),
        }
    }

    fn grow(&mut self, bytes: usize, entries: usize) {
        self.end_bytes += bytes as u64;
        self.entries += entries as u64;
    }

    fn put_off_rewrite(&mut self, error: &io::Error) {
        tracing::warn!(index = %self.index, %error, "cannot rewrite an index file");
        self.rewrite_at = self.entries.saturating_mul(REWRITE_BACK_OFF);
    }
}

fn encode(segments: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(segments.len().saturating_mul(SEGMENT_BYTES));
    segments.iter().for_each(|segment| bytes.extend(segment.encode()));
    bytes
}
