//! One blob in the cache: its files, its record, the fetches under way, and what to fetch next.

use std::{
    io,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use super::{
    files::{EntryFiles, OnReactor},
    flight::Flights,
    grain::{GRAIN_BYTES, Grains, grain_count, grains_of},
    guard::lock,
    holdings::Holdings,
    key::BlobKey,
    ledger::Ledger,
    presence::Generation,
    sparse::Sparse,
    stream::{NO_TRIGGER, STREAMS, Streams},
};
use crate::{
    block::ByteRange,
    reactor::Reactor,
    source::{DirectMark, Proof, Readiness, Refutation},
};

/// Bytes whose last use is noted together, and which are evicted together: one allocation unit of large file systems.
const REGION_GRAINS: u64 = (1 << 20) / GRAIN_BYTES;

/// One blob in the cache, shared by all who have it open in this process.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: BlobKey,
    pub(super) size_bytes: u64,
    /// What its bytes are proven by, those of other processes and boots too.
    pub(super) proof: Option<Arc<Proof>>,
    pub(super) shared: Arc<Holdings>,
    pub(super) files: EntryFiles,
    pub(super) ledger: Ledger,
    pub(super) flights: Mutex<Flights>,
    /// Whether it is being held against its digest.
    pub(super) verifying: AtomicBool,
    /// Of those who made something of its bytes.
    refutations: Mutex<Vec<Weak<Refutation>>>,
    pub(super) streams: Mutex<Streams>,
    /// For each stream the offset at which it wants to be told of a hit.
    pub(super) triggers: [AtomicU64; STREAMS],
    /// Bytes read that the streams have not been told of.
    pub(super) earned_bytes: AtomicU64,
    /// The cache's clock at the last use of each region.
    regions: Sparse<AtomicU32>,
}

impl Entry {
    /// The caller has counted this process among the blob's users; the entry ends that.
    pub(super) fn new(
        key: BlobKey,
        (size_bytes, proof): (u64, Option<Arc<Proof>>),
        shared: Arc<Holdings>,
        files: EntryFiles,
        ledger: Ledger,
    ) -> Self {
        // Nothing is read ahead past the content.
        let content_bytes = proof.as_ref().map_or(size_bytes, |proof| proof.content_bytes());
        Self {
            key,
            size_bytes,
            proof,
            shared,
            files,
            ledger,
            flights: Mutex::default(),
            verifying: AtomicBool::new(false),
            refutations: Mutex::default(),
            streams: Mutex::new(Streams::new(content_bytes)),
            triggers: [const { AtomicU64::new(NO_TRIGGER) }; STREAMS],
            earned_bytes: AtomicU64::new(0),
            regions: Sparse::new(grain_count(size_bytes).div_ceil(REGION_GRAINS)),
        }
    }

    /// Where what proves the blob begins; its end where nothing does.
    pub(super) fn content_bytes(&self) -> u64 {
        self.proof.as_ref().map_or(self.size_bytes, |proof| proof.content_bytes())
    }

    /// Fills `dest` if its bytes are proven and in the page cache. No lock, no allocation.
    pub(super) fn try_hit(&self, range: ByteRange, dest: &mut [u8]) -> Readiness {
        let presence = self.ledger.presence();
        let generation = presence.generation();
        if !presence.is_proven(&grains_of(range)) {
            return Readiness::WouldWait;
        }
        match self.files.data.try_read(range.start(), dest) {
            Ok(Readiness::Done) if presence.unchanged(generation) => {
                self.note_read(range);
                Readiness::Done
            }
            // What a failed read means is for the waiting one to find.
            Ok(_) | Err(_) => Readiness::WouldWait,
        }
    }

    /// A mark for a read of `range` straight from the data file, if all of it is proven.
    pub(super) fn begin_direct(&self, range: ByteRange) -> Option<DirectMark> {
        let presence = self.ledger.presence();
        let generation = presence.generation();
        presence.is_proven(&grains_of(range)).then_some(DirectMark(generation.0))
    }

    /// Whether `range` was present all the while since `mark`.
    pub(super) fn end_direct(&self, range: ByteRange, mark: DirectMark) -> bool {
        let held = self.ledger.presence().unchanged(Generation(mark.0));
        if held {
            self.note_read(range);
        }
        held
    }

    /// Fills `dest` from the data file; says whether its bytes were present all the while, and right.
    pub(super) async fn hit(self: &Arc<Self>, reactor: &Reactor, range: ByteRange, dest: &mut [u8]) -> bool {
        let presence = self.ledger.presence();
        let grains = grains_of(range);
        if !presence.holds(&grains) {
            return false;
        }
        let read = async {
            if !presence.is_proven(&grains) {
                self.prove(reactor, &grains).await?;
            }
            let generation = presence.generation();
            if !presence.is_proven(&grains) {
                return Ok(false);
            }
            if let Readiness::WouldWait = self.files.data.try_read(range.start(), dest)? {
                self.files.data.read(reactor, range.start(), dest).await?;
            }
            Ok(presence.unchanged(generation))
        };
        read.await.unwrap_or_else(|error: io::Error| {
            tracing::warn!(blob = %self.key, offset = range.start(), %error, "the cache cannot be read; fetching again");
            self.shared.metrics.read_errors.inc();
            self.ledger.refute(&grains);
            self.settle_soon();
            false
        })
    }

    /// Counts a read.
    pub(super) fn note_read(&self, range: ByteRange) {
        self.shared.metrics.bytes_read.inc_by(range.len());
        self.earned_bytes.fetch_add(range.len(), Ordering::Relaxed);
        self.touch(&grains_of(range));
    }

    /// Notes for eviction that `grains` are in use.
    pub(super) fn touch(&self, grains: &Grains) {
        let now = self.shared.clock.load(Ordering::Relaxed);
        for index in grains.start / REGION_GRAINS..grains.end.div_ceil(REGION_GRAINS) {
            if let Some(region) = self.regions.get_or_make(index)
                && region.load(Ordering::Relaxed) != now
            {
                region.store(now, Ordering::Relaxed);
            }
        }
    }

    /// Whether a hit of `range` is news to the streams.
    pub(super) fn is_awaited(&self, range: ByteRange) -> bool {
        let hit =
            |trigger: &AtomicU64| (range.start()..range.end()).contains(&trigger.load(Ordering::Relaxed));
        self.triggers.iter().any(hit)
    }

    /// Forgets `range`, in memory at once and on disk soon.
    pub(super) fn forget(self: &Arc<Self>, range: ByteRange) {
        let grains = grains_of(range);
        {
            let mut flights = lock(&self.flights);
            for flight in flights.over(&grains) {
                flight.refute();
                flights.remove(&flight);
            }
        }
        self.ledger.refute(&grains);
        self.settle_soon();
    }

    /// Has `refutation` raised whenever the digest refutes what was read since.
    pub(super) fn watch(&self, refutation: &Arc<Refutation>) {
        let mut refutations = lock(&self.refutations);
        refutations.retain(|known| known.strong_count() > 0);
        refutations.push(Arc::downgrade(refutation));
    }

    /// All of it is wrong: it is forgotten, and so must be what was made of it.
    pub(super) fn disown(self: &Arc<Self>) {
        self.shared.metrics.invalidations.inc();
        self.forget(ByteRange::between(0, self.size_bytes));
        lock(&self.refutations)
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|refutation| refutation.raise(&self.key.to_string()));
    }

    /// Has what was refuted taken out of the maps on disk.
    pub(super) fn settle_soon(self: &Arc<Self>) {
        let entry = Arc::clone(self);
        self.shared.handle.spawn(move |reactor| {
            let reactor = reactor.clone();
            async move {
                entry.ledger.settle(&entry.on(&reactor)).await;
            }
        });
    }

    /// The entry's files as the ledger's medium.
    pub(super) fn on<'a>(&'a self, reactor: &'a Reactor) -> OnReactor<'a> {
        OnReactor { files: &self.files, reactor }
    }

    /// Makes durable what is not yet.
    pub(super) async fn sync(&self, reactor: &Reactor) -> io::Result<()> {
        if !self.ledger.is_dirty() {
            return Ok(());
        }
        let synced = self.ledger.sync(&self.on(reactor)).await;
        // A peer that holds the maps is no fault of the disk.
        if let Err(error) = &synced
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.shared.disk_failed(&self.key, error);
        }
        synced
    }

    /// Regions that hold grains and were last used before `clock`, coldest first. What proves the others is none: it goes last.
    pub(super) fn cold_regions(&self, clock: u32) -> Vec<(u32, Grains)> {
        let content = grain_count(self.content_bytes());
        let mut cold = Vec::new();
        let mut next = 0;
        for run in self.ledger.presence().present(&(0..content)) {
            for index in next.max(run.start / REGION_GRAINS)..run.end.div_ceil(REGION_GRAINS) {
                next = index + 1;
                let used = self.regions.get(index).map_or(0, |region| region.load(Ordering::Relaxed));
                if used < clock {
                    let end = (next * REGION_GRAINS).min(content);
                    cold.push((used, index * REGION_GRAINS..end));
                }
            }
        }
        cold.sort_by_key(|(used, _)| *used);
        cold
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.end_use(&self.key);
    }
}

/// Cuts a run into parts of at most `most` grains.
pub(super) fn parts(run: Grains, most: u64) -> impl Iterator<Item = Grains> {
    let step = usize::try_from(most).unwrap_or(usize::MAX);
    run.clone().step_by(step).map(move |start| start..start.saturating_add(most).min(run.end))
}
