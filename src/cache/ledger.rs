//! The record of which grains are present, in memory and on disk, never ahead of the data.
//!
//! Two maps lie on disk. The map of this boot is written right after the data: the page cache outlives the process,
//! so its bits are true until the kernel stops, and its stamp keeps the next boot from believing it. The durable map
//! gets a bit only after fdatasync(2) of the data. Taking grains away goes the other way round: bits in memory, bits in
//! both maps, fdatasync(2) of the durable map, and only then the hole.
//!
//! With each mark goes the checksum of the grain's bytes. What this process did not write it believes only when it has
//! held the bytes against that, by [`Ledger::judge`].
//!
//! Several processes change the maps of one blob. Each adds and takes away single grains under a lock, never its own
//! view of all of them. Holes are made only by a process that alone has the blob open. All functions that change the
//! disk run on the cache's thread, so that what lies between two awaits is not interrupted by this process either.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    grain::{ABSENT, Grains, RunSet, Sum, bytes_of, grains_of, sums_of},
    map_file::{
        MAP_SECTOR_BYTES, MapHeader, MapKind, SECTOR_GRAINS, Sums, decode_map, decode_sectors, is_verified,
        sector_count, with_verified,
    },
    medium::Medium,
    presence::{Generation, Presence},
    writes::Writes,
};
use crate::{block::ByteRange, crash_point::CrashPoint};

/// Largest write at once; as for reads, small beside the pool of buffers.
const WRITE_BYTES: usize = 256 << 10;

/// The stamp of sectors of the durable map, which every boot believes.
const EVERY_BOOT: [u8; 16] = [0; 16];

/// Two maps of a blob, and what has still to reach them.
#[derive(Debug)]
pub(super) struct Ledger {
    presence: Presence,
    size_bytes: u64,
    boot: [u8; 16],
    incarnations: [u32; 2],
    outstanding: Mutex<Outstanding>,
    writes: Writes,
    /// Held during a sync: who comes meanwhile wants more to be durable than that one may have begun with.
    sync_turn: futures_util::lock::Mutex<()>,
    /// Whether all of it was held against its digest, and nothing was taken away since.
    verified: AtomicBool,
}

#[derive(Debug, Default)]
struct Outstanding {
    /// Present, and not yet known to survive loss of power.
    pending: RunSet,
    /// The part of them whose sync is under way.
    syncing: RunSet,
    /// Taken away in memory and not yet in the maps, whose word about them counts for nothing.
    refuted: RunSet,
}

impl Ledger {
    /// Reads what the maps vouch for, and begins anew what cannot be believed. The caller keeps other openers away.
    ///
    /// # Errors
    /// When the medium cannot be read or prepared.
    pub(super) async fn open(
        medium: &impl Medium,
        size_bytes: u64,
        key: [u8; 32],
        boot: [u8; 16],
    ) -> io::Result<Self> {
        if medium.data_len()? != size_bytes {
            // The maps speak of another file than this one. They go first, and durably: the data file may be given its
            // length only when nothing claims its zeroes.
            if !medium.is_fresh() {
                for kind in [MapKind::Durable, MapKind::Boot] {
                    medium.truncate_map(kind)?;
                    medium.sync_map(kind).await?;
                }
            }
            medium.set_data_len(size_bytes)?;
        }
        let presence = Presence::new(size_bytes);
        let mut pending = RunSet::default();
        let header = |kind| MapHeader { kind, size_bytes, key, incarnation: fastrand::u32(..) };
        let boot_incarnation = load(medium, header(MapKind::Boot), &boot, |run, sums| {
            presence.note(run.start, sums.iter().copied());
            presence.set(&run);
            pending.insert(run);
        })?;
        let durable_incarnation = load(medium, header(MapKind::Durable), &EVERY_BOOT, |run, sums| {
            // Where the maps do not agree, that of this boot is the younger one.
            if presence.sums(&run).eq(sums.iter().copied()) {
                pending.remove(run);
                return;
            }
            for (grain, sum) in run.zip(sums) {
                let grain = grain..grain + 1;
                if !presence.holds(&grain) {
                    presence.note(grain.start, [*sum]);
                    presence.set(&grain);
                } else if presence.sums(&grain).eq([*sum]) {
                    pending.remove(grain);
                }
            }
        })?;
        if presence.count() == 0 && !medium.is_fresh() && medium.is_alone() {
            // Nothing is known of what lies in the data file, and so it would only take room.
            medium.sync_map(MapKind::Durable).await?;
            medium.set_data_len(size_bytes)?;
        }
        // It was said of all the grains together: one that has come back since was not looked at.
        let verified = is_verified(&medium.read_sector(MapKind::Durable, 0)?) && presence.is_complete();
        Ok(Self {
            verified: AtomicBool::new(verified),
            presence,
            size_bytes,
            boot,
            incarnations: [boot_incarnation, durable_incarnation],
            outstanding: Mutex::new(Outstanding { pending, ..Outstanding::default() }),
            writes: Writes::default(),
            sync_turn: futures_util::lock::Mutex::new(()),
        })
    }

    pub(super) fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Whether all of it is known to be what its digest says.
    pub(super) fn is_verified(&self) -> bool {
        self.verified.load(Ordering::Acquire)
    }

    /// Notes that all of it was found right, if nothing was taken away since `generation`. To be called after a sync.
    ///
    /// # Errors
    /// When that cannot be made durable.
    pub(super) async fn set_verified(&self, medium: &impl Medium, generation: Generation) -> io::Result<()> {
        {
            // Under the lock that refuting takes: a refutation comes before this and is seen, or after it.
            let _outstanding = self.outstanding();
            if !self.presence.unchanged(generation) {
                return Ok(());
            }
            self.verified.store(true, Ordering::Release);
        }
        let marked = medium.locked(|| self.mark_verified(medium, self.is_verified())).await;
        marked.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?;
        medium.sync_map(MapKind::Durable).await
    }

    /// Changes the header of the durable map where it does not say so yet. The caller holds the lock on the maps.
    fn mark_verified(&self, medium: &impl Medium, verified: bool) -> io::Result<()> {
        let header = medium.read_sector(MapKind::Durable, 0)?;
        match with_verified(&header, verified).filter(|_| is_verified(&header) != verified) {
            Some(changed) => medium.write_sector(MapKind::Durable, 0, &changed),
            None => Ok(()),
        }
    }

    /// Whether a sync has something to do, or to wait for.
    pub(super) fn is_dirty(&self) -> bool {
        let outstanding = self.outstanding();
        !outstanding.pending.is_empty() || !outstanding.syncing.is_empty()
    }

    /// Writes grains to the data file and records them. `offset` is a multiple of a grain, and so is the end, or it is
    /// the blob's. `wanted` says whether the bytes still stand; it turns to no before they are refuted.
    ///
    /// # Errors
    /// When the data cannot be written; nothing is recorded then. A map that cannot be written is no error: the grains
    /// are present for this process alone.
    pub(super) async fn store(
        &self,
        medium: &impl Medium,
        offset: u64,
        bytes: &[u8],
        wanted: impl Fn() -> bool,
    ) -> io::Result<()> {
        let grains = grains_of(ByteRange::between(offset, offset.saturating_add(bytes.len() as u64)));
        let write = self.writes.begin(grains.clone());
        // A refuted write may still be under way: it must not land on top of the one that replaces it.
        write.turn().await;
        let mut at = offset;
        for chunk in bytes.chunks(WRITE_BYTES) {
            if !wanted() {
                return Ok(());
            }
            medium.write_data(at, chunk).await?;
            at = at.saturating_add(chunk.len() as u64);
        }
        self.presence.note(grains.start, sums_of(bytes));
        // What an older refutation left in the maps goes before the grain comes back, or it would go with it.
        let is_refuted = || self.outstanding().refuted.touches(&grains);
        let clean = !is_refuted() || (self.settle(medium).await && !is_refuted());
        let recorded = if clean && wanted() {
            let run = std::slice::from_ref(&grains);
            medium.locked(|| self.change(medium, MapKind::Boot, run, true)).await
        } else {
            None
        };
        let mut outstanding = self.outstanding();
        if wanted() {
            if matches!(recorded, Some(Ok(()))) {
                outstanding.pending.insert(grains.clone());
            }
            // Under the lock that refuting takes, so that a refutation is either seen above or comes after.
            self.presence.set(&grains);
            self.presence.prove(&grains);
        }
        drop(outstanding);
        drop(write);
        Ok(())
    }

    /// Makes what is present now survive loss of power.
    ///
    /// # Errors
    /// When the data could not be made durable: then it may be lost already, and the grains are not present any more.
    /// When the durable map could not be written, or not be locked ([`io::ErrorKind::WouldBlock`]): the next sync tries
    /// again.
    pub(super) async fn sync(&self, medium: &impl Medium) -> io::Result<()> {
        let _turn = self.sync_turn.lock().await;
        {
            let mut outstanding = self.outstanding();
            // A sync that was dropped half-way has left its part behind.
            let pending = std::mem::take(&mut outstanding.pending);
            pending.runs().for_each(|run| outstanding.syncing.insert(run));
            if outstanding.syncing.is_empty() {
                return Ok(());
            }
        }
        let synced = medium.sync_data().await;
        if let Err(error) = synced {
            let lost: Vec<Grains> = {
                let outstanding = self.outstanding();
                outstanding.syncing.runs().chain(outstanding.pending.runs()).collect()
            };
            for run in &lost {
                self.refute(run);
            }
            self.settle(medium).await;
            return Err(error);
        }
        let recorded = medium
            .locked(|| {
                let runs: Vec<Grains> = self.outstanding().syncing.runs().collect();
                self.change(medium, MapKind::Durable, &runs, true)
            })
            .await;
        let recorded = recorded.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()));
        {
            let mut outstanding = self.outstanding();
            let synced = std::mem::take(&mut outstanding.syncing);
            if recorded.is_err() {
                synced.runs().for_each(|run| outstanding.pending.insert(run));
            }
        }
        recorded?;
        medium.sync_map(MapKind::Durable).await
    }

    /// Takes grains away in memory at once, from any thread; [`Ledger::settle`] brings it to the disk. Returns how many
    /// there were.
    pub(super) fn refute(&self, grains: &Grains) -> u64 {
        let mut outstanding = self.outstanding();
        outstanding.refuted.insert(grains.clone());
        outstanding.pending.remove(grains.clone());
        outstanding.syncing.remove(grains.clone());
        self.verified.store(false, Ordering::Release);
        self.presence.clear(grains)
    }

    /// Acts on what the bytes of grains from `first` on came to, which were to come to `wanted`: those that did are proven,
    /// and the others refuted. Returns how many those are; they are to be settled. What changed meanwhile is passed over.
    pub(super) fn judge(&self, first: u64, wanted: &[Sum], found: impl Iterator<Item = Sum>) -> u64 {
        let mut damaged = RunSet::default();
        {
            // Under the lock that refuting takes, so that nothing is proven that was refuted since.
            let _outstanding = self.outstanding();
            let still =
                |grain: u64, sum: Sum| sum != ABSENT && self.presence.sums(&(grain..grain + 1)).eq([sum]);
            for ((wanted, found), grain) in wanted.iter().zip(found).zip(first..) {
                match still(grain, *wanted) {
                    true if *wanted == found => self.presence.prove(&(grain..grain + 1)),
                    true => damaged.insert(grain..grain + 1),
                    false => {}
                }
            }
        }
        damaged.runs().map(|run| self.refute(&run)).sum()
    }

    /// Takes what was refuted out of the maps. What fails stays refuted in this process.
    pub(super) async fn settle(&self, medium: &impl Medium) -> bool {
        let settled = medium
            .locked(|| {
                let runs: Vec<Grains> = self.outstanding().refuted.runs().collect();
                self.mark_verified(medium, false)?;
                // A grain may have come back since; the map of this boot says so, and is then a little behind.
                self.change(medium, MapKind::Durable, &runs, false)?;
                self.change(medium, MapKind::Boot, &runs, false)?;
                runs.into_iter().for_each(|run| self.outstanding().refuted.remove(run));
                io::Result::Ok(())
            })
            .await;
        matches!(settled, Some(Ok(())))
    }

    /// Takes grains away and gives their room back. The caller alone has the blob open. Returns the bytes of the holes.
    ///
    /// # Errors
    /// When the maps could not be changed: then no hole was made.
    pub(super) async fn punch(&self, medium: &impl Medium, runs: &[Grains]) -> io::Result<u64> {
        for run in runs {
            self.refute(run);
        }
        if !self.settle(medium).await {
            return Err(io::Error::other("the presence map cannot be changed"));
        }
        medium.sync_map(MapKind::Durable).await?;
        CrashPoint::EvictionForgotten.reach();
        let mut punched = 0;
        for run in runs {
            // Grains that have come back, or are about to, keep their room: no await lies between this and the hole.
            if self.writes.touch(run) || !self.presence.present(run).is_empty() {
                continue;
            }
            let range = bytes_of(run, self.size_bytes);
            medium.punch_data(range)?;
            CrashPoint::EvictionPunched.reach();
            punched += range.len();
        }
        Ok(punched)
    }

    /// Learns what other processes have recorded of `grains`.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(super) fn refresh(&self, medium: &impl Medium, grains: &Grains) -> io::Result<()> {
        let mut index = grains.start / SECTOR_GRAINS;
        while index < grains.end.div_ceil(SECTOR_GRAINS) {
            for kind in [MapKind::Boot, MapKind::Durable] {
                let sums = self.sector(medium, kind, index)?;
                let outstanding = self.outstanding();
                let first = index * SECTOR_GRAINS;
                for run in sums.runs() {
                    let mut news = RunSet::default();
                    news.insert((first + run.start).max(grains.start)..(first + run.end).min(grains.end));
                    outstanding.refuted.runs().for_each(|refuted| news.remove(refuted));
                    self.presence.present(grains).into_iter().for_each(|known| news.remove(known));
                    for run in news.runs() {
                        let within = run.start - first..run.end - first;
                        self.presence.note(run.start, sums.of(&within).iter().copied());
                        self.presence.set(&run);
                    }
                }
            }
            index += 1;
        }
        Ok(())
    }

    /// Reads, changes and writes the sectors of a map that `runs` lie in.
    fn change(&self, medium: &impl Medium, kind: MapKind, runs: &[Grains], present: bool) -> io::Result<()> {
        let mut sectors: BTreeMap<u64, Vec<Grains>> = BTreeMap::new();
        for run in runs {
            let mut at = run.start;
            while at < run.end {
                let index = at / SECTOR_GRAINS;
                let first = index * SECTOR_GRAINS;
                let end = run.end.min(first + SECTOR_GRAINS);
                sectors.entry(index).or_default().push(at - first..end - first);
                at = end;
            }
        }
        for (index, runs) in sectors {
            let before = self.sector(medium, kind, index)?;
            let mut sums = before.clone();
            let first = index * SECTOR_GRAINS;
            for run in runs {
                let now = self.presence.sums(&(first + run.start..first + run.end));
                for (sum, now) in sums.of_mut(&run).iter_mut().zip(now) {
                    *sum = if present { now } else { ABSENT };
                }
            }
            if sums != before {
                let number = u32::try_from(index).map_err(io::Error::other)?;
                let raw = sums.encode(number, self.incarnation(kind), self.stamp(kind));
                medium.write_sector(kind, index + 1, &raw)?;
            }
        }
        Ok(())
    }

    fn sector(&self, medium: &impl Medium, kind: MapKind, index: u64) -> io::Result<Sums> {
        let raw = medium.read_sector(kind, index + 1)?;
        let number = u32::try_from(index).map_err(io::Error::other)?;
        Ok(Sums::decode(&raw, number, self.incarnation(kind), self.stamp(kind)))
    }

    fn stamp(&self, kind: MapKind) -> &[u8; 16] {
        match kind {
            MapKind::Boot => &self.boot,
            MapKind::Durable => &EVERY_BOOT,
        }
    }

    fn incarnation(&self, kind: MapKind) -> u32 {
        let [boot, durable] = self.incarnations;
        match kind {
            MapKind::Boot => boot,
            MapKind::Durable => durable,
        }
    }

    fn outstanding(&self) -> MutexGuard<'_, Outstanding> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads one map, or begins it anew with `header` where it is not to be believed; returns its incarnation. `found` is told
/// each run of grains that the map has, with their checksums.
fn load(
    medium: &impl Medium,
    header: MapHeader,
    stamp: &[u8; 16],
    mut found: impl FnMut(Grains, &[Sum]),
) -> io::Result<u32> {
    let kind = header.kind;
    let Ok(incarnation) = decode_map(&medium.read_sector(kind, 0)?, &header) else {
        medium.truncate_map(kind)?;
        medium.write_sector(kind, 0, &header.encode())?;
        return Ok(header.incarnation);
    };
    let mut at = 1;
    while let Some((first, raw)) = medium.next_sectors(kind, at)? {
        let number = u32::try_from(first.saturating_sub(1)).map_err(io::Error::other)?;
        if u64::from(number) >= sector_count(header.size_bytes) {
            break;
        }
        for (start, sums) in decode_sectors(&raw, number, header.size_bytes, incarnation, stamp) {
            for run in sums.runs() {
                found(start + run.start..start + run.end, sums.of(&run));
            }
        }
        at = first + (raw.len() / MAP_SECTOR_BYTES) as u64;
    }
    Ok(incarnation)
}
