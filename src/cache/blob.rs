//! A blob read through the cache.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use futures_util::future::try_join_all;

use super::{
    entry::Entry,
    flight::{Flight, Landed, Outcome},
    grain::{GRAIN_BYTES, RunSet, bytes_of, grains_of},
    guard::lock,
    request::Ticket,
};
use crate::{
    block::ByteRange,
    reactor::{Reactor, waiting_for},
    source::{
        BlobSource, DirectMark, LocalFuture, Origin, Readiness, Refutation, SourceError, Urgency,
        check_bounds, check_length,
    },
};

/// How often a read that makes no progress is begun again, be it that grains were taken away under it or that a fetch
/// begun by another failed, before the origin is asked past the cache.
const ATTEMPTS: u32 = 4;

/// Ranges given to one call of fetch with less between them are fetched as one: a request costs more than the gap.
const JOIN_BYTES: u64 = 4 * GRAIN_BYTES;

/// Ranges that were fetched and not read that are remembered; a reader that goes away leaves some behind.
const MOST_MISSED: usize = 1024;

/// A blob that is read from the cache, and from its origin where the cache does not have it.
#[derive(Debug)]
pub struct CachedBlob {
    entry: Arc<Entry>,
    origin: Arc<dyn Origin>,
    /// Bytes that a fetch has counted as missed. The read that it was for comes next, and is no hit.
    missed: Mutex<RunSet>,
}

impl CachedBlob {
    pub(super) fn new(entry: Arc<Entry>, origin: Arc<dyn Origin>) -> Self {
        Self { entry, origin, missed: Mutex::default() }
    }

    /// Whether all of the blob is present, so that no read needs the origin.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.entry.ledger.presence().is_complete()
    }

    /// Bytes that are present, in whole grains.
    #[must_use]
    pub fn present_bytes(&self) -> u64 {
        (self.entry.ledger.presence().count() * GRAIN_BYTES).min(self.entry.size_bytes)
    }

    /// What lies below, for tests that reach in.
    #[cfg(test)]
    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Fetches under way.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        lock(&self.entry.flights).len()
    }

    /// After a hit: lets a stream that waited for this read go on.
    fn count_hit(&self, range: ByteRange) {
        self.entry.shared.metrics.hits.inc();
        self.tell_streams(range);
    }

    fn tell_streams(&self, range: ByteRange) {
        if self.entry.is_awaited(range) {
            drop(self.entry.request(&self.origin, range));
        }
    }

    /// Waits for the fetches of `range`. One that another request had begun may have been at the end of its time when it
    /// was joined: it says nothing of what a request of our own comes to, so that is made once.
    async fn land(&self, range: ByteRange, tickets: Vec<Ticket>) -> Result<(), SourceError> {
        match self.landed(&tickets).await {
            Err((_, true)) => {
                let again = self.entry.request(&self.origin, range);
                self.landed(&again).await.map_err(|(error, _)| error)
            }
            landed => landed.map_err(|(error, _)| error),
        }
    }

    /// The first failure, and whether it was of a fetch that another request had begun.
    async fn landed(&self, tickets: &[Ticket]) -> Result<(), (SourceError, bool)> {
        let landed = tickets.iter().map(|Ticket { flight, joined }| async move {
            if *joined {
                self.entry.shared.metrics.joined.inc();
            }
            // Where the cache's thread has ended, the read that follows goes past it.
            let landed = self.arrival(flight).await.unwrap_or(Ok(Landed::Present));
            landed.map(drop).map_err(|error| (error, *joined))
        });
        try_join_all(landed).await.map(drop)
    }

    /// Waits for a fetch.
    async fn arrival(&self, flight: &Flight) -> Option<Outcome> {
        let what = || {
            let range = bytes_of(&flight.grains, self.entry.size_bytes);
            format!("the registry: {} bytes at {} of {}", range.len(), range.start(), self.origin.name())
        };
        waiting_for(what, flight.wait()).await
    }

    /// Counts `ranges`, which were not present, as missed.
    fn count_missed(&self, ranges: &[ByteRange]) {
        self.entry.shared.metrics.misses.inc_by(ranges.len() as u64);
        let mut missed = lock(&self.missed);
        if missed.len() > MOST_MISSED {
            *missed = RunSet::default();
        }
        ranges.iter().for_each(|range| missed.insert(range.start()..range.end()));
    }

    /// Counts a read of `range`, unless it was counted when it was fetched.
    fn count_read(&self, range: ByteRange, was_present: bool) {
        let bytes = range.start()..range.end();
        let mut missed = lock(&self.missed);
        let metrics = &self.entry.shared.metrics;
        if missed.touches(&bytes) {
            missed.remove(bytes);
        } else if was_present {
            metrics.hits.inc();
        } else {
            metrics.misses.inc();
        }
    }

    async fn fill(&self, reactor: &Reactor, range: ByteRange, dest: &mut [u8]) -> Result<(), SourceError> {
        let was_present = self.entry.hit(reactor, range, dest).await;
        self.count_read(range, was_present);
        if was_present {
            self.entry.note_read(range);
            self.tell_streams(range);
            return Ok(());
        }
        let mut fill = Fill { blob: self, reactor, at: range.start(), end: range.end(), rest: dest };
        let mut attempts = 0;
        while fill.at < fill.end {
            let before = fill.at;
            match fill.attempt().await {
                Step::Go => {}
                Step::Failed(error) => return Err(error),
                Step::Closed => attempts = ATTEMPTS,
            }
            attempts = if fill.at > before { 0 } else { attempts + 1 };
            if attempts >= ATTEMPTS {
                fill.past_the_cache().await?;
            }
        }
        self.entry.note_read(range);
        Ok(())
    }
}

/// What an attempt to go on with a read came to.
enum Step {
    /// Try what is left, if anything.
    Go,
    Failed(SourceError),
    /// There is no cache any more.
    Closed,
}

/// A read that fills its destination front to back.
struct Fill<'a> {
    blob: &'a CachedBlob,
    reactor: &'a Reactor,
    at: u64,
    end: u64,
    rest: &'a mut [u8],
}

impl Fill<'_> {
    /// Begins all fetches that are needed, then takes what is present and what arrives, as far as it goes.
    async fn attempt(&mut self) -> Step {
        let entry = &self.blob.entry;
        let tickets = entry.request(&self.blob.origin, ByteRange::between(self.at, self.end));
        for Ticket { flight, joined } in tickets {
            let span = bytes_of(&flight.grains, entry.size_bytes);
            if !self.take_present(span.start()).await {
                return Step::Go;
            }
            if joined {
                entry.shared.metrics.joined.inc();
            }
            match self.blob.arrival(&flight).await {
                None => return Step::Closed,
                Some(Err(_)) if joined => return Step::Go,
                Some(Err(error)) => return Step::Failed(error),
                Some(Ok(Landed::Present)) => {}
                Some(Ok(Landed::Bytes(start, bytes))) => {
                    if flight.stands() && self.take_present(start).await {
                        self.take_bytes(start, &bytes);
                    }
                }
            }
            if !self.take_present(span.end()).await {
                return Step::Go;
            }
        }
        self.take_present(self.end).await;
        Step::Go
    }

    /// Takes present bytes up to `until`; whether they all were.
    async fn take_present(&mut self, until: u64) -> bool {
        let range = ByteRange::between(self.at, until.min(self.end));
        if range.is_empty() {
            return true;
        }
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        let Some(dest) = self.rest.get_mut(..len) else { return false };
        if !self.blob.entry.hit(self.reactor, range, dest).await {
            return false;
        }
        self.advance(len);
        true
    }

    /// Takes what it can of `bytes`, which lie at `start`.
    fn take_bytes(&mut self, start: u64, bytes: &[u8]) {
        let skipped = self.at.checked_sub(start).and_then(|skipped| usize::try_from(skipped).ok());
        let Some(from) = skipped.and_then(|skipped| bytes.get(skipped..)) else { return };
        let len = from.len().min(self.rest.len());
        if let (Some(to), Some(from)) = (self.rest.get_mut(..len), from.get(..len)) {
            to.copy_from_slice(from);
            self.advance(len);
        }
    }

    /// Asks the origin for the rest and remembers nothing.
    async fn past_the_cache(&mut self) -> Result<(), SourceError> {
        let range = ByteRange::between(self.at, self.end);
        let origin = &self.blob.origin;
        let bytes = origin.read_range(range, Urgency::Demand).await?;
        self.take_bytes(range.start(), &check_length(origin.name(), range, bytes)?);
        Ok(())
    }

    fn advance(&mut self, len: usize) {
        self.at += len as u64;
        self.rest =
            std::mem::take(&mut self.rest).split_at_mut_checked(len).map_or(&mut [], |(_, rest)| rest);
    }
}

impl BlobSource for CachedBlob {
    fn size_bytes(&self) -> u64 {
        self.entry.size_bytes
    }

    fn content_bytes(&self) -> u64 {
        self.entry.content_bytes()
    }

    fn name(&self) -> &str {
        self.origin.name()
    }

    fn try_read(&self, offset: u64, dest: &mut [u8]) -> Result<Readiness, SourceError> {
        let range = check_bounds(self.name(), self.entry.size_bytes, offset, dest.len())?;
        let readiness = self.entry.try_hit(range, dest);
        if readiness == Readiness::Done {
            self.count_hit(range);
        }
        Ok(readiness)
    }

    fn file(&self) -> Option<&Arc<OwnedFd>> {
        self.entry.files.data.for_ring()
    }

    fn begin_direct(&self, range: ByteRange) -> Option<DirectMark> {
        self.entry.begin_direct(range)
    }

    fn end_direct(&self, range: ByteRange, mark: DirectMark) -> bool {
        let held = self.entry.end_direct(range, mark);
        if held {
            self.count_hit(range);
        }
        held
    }

    fn read<'a>(
        &'a self,
        reactor: &'a Reactor,
        offset: u64,
        dest: &'a mut [u8],
    ) -> LocalFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let range = check_bounds(self.name(), self.entry.size_bytes, offset, dest.len())?;
            self.fill(reactor, range, dest).await
        })
    }

    fn fetch<'a>(&'a self, ranges: &'a [ByteRange]) -> LocalFuture<'a, Result<(), SourceError>> {
        let entry = &self.entry;
        if !entry.shared.can_keep() {
            // It could not be kept for the reads that follow.
            return Box::pin(std::future::ready(Ok(())));
        }
        let whole = ByteRange::between(0, entry.size_bytes);
        let mut wanted: Vec<ByteRange> = ranges.iter().map(|range| range.intersect(whole)).collect();
        wanted.retain(|range| !range.is_empty() && !entry.ledger.presence().holds(&grains_of(*range)));
        self.count_missed(&wanted);
        wanted.sort_by_key(|range| range.start());
        wanted.dedup_by(|next, last| {
            let near = next.start() <= last.end().saturating_add(JOIN_BYTES);
            if near {
                *last = ByteRange::between(last.start(), next.end().max(last.end()));
            }
            near
        });
        let begun: Vec<(ByteRange, Vec<Ticket>)> =
            wanted.into_iter().map(|range| (range, entry.request(&self.origin, range))).collect();
        Box::pin(async move {
            let landed = begun.into_iter().map(|(range, tickets)| self.land(range, tickets));
            try_join_all(landed).await.map(drop)
        })
    }

    fn invalidate(&self, range: ByteRange) -> bool {
        self.entry.shared.metrics.invalidations.inc();
        let range = range.intersect(ByteRange::between(0, self.entry.size_bytes));
        self.entry.forget(range);
        // Also where another request was the first to forget it, or nothing can be kept: there is an origin.
        !range.is_empty()
    }

    fn watch(&self, refutation: &Arc<Refutation>) {
        self.entry.watch(refutation);
    }
}

impl Drop for CachedBlob {
    fn drop(&mut self) {
        if self.entry.ledger.is_dirty() {
            let entry = Arc::clone(&self.entry);
            self.entry.shared.handle.spawn(move |reactor| {
                let reactor = reactor.clone();
                async move {
                    if let Err(error) = entry.sync(&reactor).await {
                        tracing::debug!(%error, blob = %entry.key, "a cache entry was closed before it was durable");
                    }
                }
            });
        }
    }
}
