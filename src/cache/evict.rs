//! Keeping the limit: whole blobs that nobody has open go first, least recently used before others, then cold regions
//! of open ones.
//!
//! A blob that another process has open is that process's to shrink: a hole would reach it unseen. So nobody shrinks one
//! that two processes have open, until one of them closes it; where such blobs alone reach the limit, nothing more is
//! kept. Each process counts what all have written only now and then, and so several together may exceed the limit by
//! what each writes between two counts.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    entry::Entry,
    files::{BOOT_MAP_FILE, DATA_FILE},
    folder::PrivateFolder,
    grain::Grains,
    holdings::Holdings,
    key::BlobKey,
};
use crate::{crash_point::CrashPoint, reactor::Reactor};

/// A pass frees down to this share of the limit, so that passes are rare.
const LOW_TENTHS: u64 = 9;

/// Regions whose holes wait for one sync.
const BATCH: usize = 64;

/// After a pass that could not free enough.
const REST: Duration = Duration::from_secs(1);

/// An entry as it lies on disk.
struct Found {
    key: BlobKey,
    used_bytes: u64,
    /// Seconds since the epoch, and nanoseconds.
    used_at: (i64, u64),
}

/// Begins a pass on the cache's thread, unless one is under way.
pub(super) fn start(shared: &Arc<Holdings>) {
    if shared.evicting.swap(true, Ordering::AcqRel) {
        return;
    }
    let shared = Arc::clone(shared);
    shared.handle.clone().spawn(move |reactor| {
        let reactor = reactor.clone();
        async move {
            pass(&shared, &reactor).await;
            if shared.is_full() {
                reactor.sleep(REST).await;
            }
            shared.evicting.store(false, Ordering::Release);
        }
    });
}

/// Counts what is used, and frees down to the low mark if it is over the limit.
pub(super) async fn pass(shared: &Arc<Holdings>, reactor: &Reactor) {
    let before = shared.used_bytes.load(Ordering::Relaxed);
    // What a process that has ended had still to remove.
    empty_trash(shared, reactor).await;
    let mut found = match scan(&shared.shelves.blobs, reactor).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, dir = %shared.blobs_dir.display(), "cannot count what the cache uses");
            return;
        }
    };
    let mut total: u64 = found.iter().map(|entry| entry.used_bytes).sum();
    if total >= shared.config.limit_bytes {
        let low = shared.config.limit_bytes / 10 * LOW_TENTHS;
        found.sort_by_key(|entry| entry.used_at);
        for entry in &found {
            if total <= low {
                break;
            }
            total -= remove(shared, entry).await;
            CrashPoint::EvictionDiscarded.reach();
            empty_trash(shared, reactor).await;
        }
        if total > low {
            total -= shrink_open(shared, reactor, total - low).await;
        }
    }
    // What was written meanwhile counts on top.
    let written = shared.used_bytes.load(Ordering::Relaxed).saturating_sub(before);
    shared.counted_bytes.store(total + written, Ordering::Relaxed);
    shared.used_bytes.store(total + written, Ordering::Relaxed);
}

async fn scan(blobs: &PrivateFolder, reactor: &Reactor) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for algorithm in BlobKey::algorithms() {
        let fans = match blobs.open(algorithm) {
            Ok(fans) => fans,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for fan in fans.names()? {
            let folder = fans.open(&fan)?;
            for digits in folder.names()? {
                let Ok(key) = BlobKey::parse(&format!("{algorithm}:{}", digits.to_string_lossy())) else {
                    continue;
                };
                let Ok(entry) = folder.open(&digits) else { continue };
                // An entry may go or lack files: it then uses nothing, or has not been used for longest.
                let blocks =
                    entry.stat(DATA_FILE).map_or(0, |data| u64::try_from(data.st_blocks).unwrap_or(0));
                let used_at =
                    entry.stat(BOOT_MAP_FILE).map_or((0, 0), |map| (map.st_mtime, map.st_mtime_nsec));
                found.push(Found { key, used_bytes: blocks.saturating_mul(512), used_at });
            }
            // Others have their turn between two folders.
            reactor.sleep(Duration::ZERO).await;
        }
    }
    Ok(found)
}

/// Takes an entry that nobody has open out of the cache; returns the bytes that are freed when the trash is emptied.
async fn remove(shared: &Arc<Holdings>, found: &Found) -> u64 {
    let locks = shared.locks(&found.key);
    let discarded = {
        // For a moment: whoever wants to open the entry waits for a rename, and not until the room is free.
        let _passage = shared.doors.enter(locks.window()).await;
        if !shared.is_unused_here(&found.key) || !locks.own_use().unwrap_or(false) {
            return 0;
        }
        let discarded = shared.shelves.discard(&found.key);
        locks.end_use();
        discarded
    };
    if let Err(error) = discarded {
        tracing::warn!(%error, blob = %found.key, "cannot remove a cache entry");
        return 0;
    }
    tracing::debug!(blob = %found.key, bytes = found.used_bytes, "removed a cache entry");
    shared.metrics.evicted_bytes.inc_by(found.used_bytes);
    found.used_bytes
}

async fn empty_trash(shared: &Holdings, reactor: &Reactor) {
    if let Err(error) = shared.shelves.empty_trash(reactor).await {
        tracing::warn!(%error, dir = %shared.config.dir.display(), "cannot empty the cache's trash");
    }
}

/// Punches cold regions of open entries until `wanted` bytes are free; returns how many are.
async fn shrink_open(shared: &Arc<Holdings>, reactor: &Reactor, wanted: u64) -> u64 {
    // What was used in this tick of the clock or the one before is in use.
    let clock = shared.clock.load(Ordering::Relaxed).saturating_sub(1);
    let mut cold: Vec<(u32, Arc<Entry>, Grains)> = Vec::new();
    for entry in shared.open_entries() {
        let regions = entry.cold_regions(clock).into_iter();
        cold.extend(regions.map(|(used, grains)| (used, Arc::clone(&entry), grains)));
    }
    cold.sort_by_key(|(used, _, _)| *used);
    let mut freed = 0;
    let mut cold = cold.into_iter().peekable();
    while freed < wanted
        && let Some((_, entry, first)) = cold.next()
    {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Some((_, _, grains)) = cold.next_if(|(_, next, _)| Arc::ptr_eq(next, &entry))
        {
            batch.push(grains);
        }
        freed += punch(&entry, reactor, &batch).await;
    }
    freed
}

/// Punches regions of one entry if this process alone has it open; returns the bytes freed.
pub(super) async fn punch(entry: &Entry, reactor: &Reactor, runs: &[Grains]) -> u64 {
    let shared = &entry.shared;
    let _passage = shared.doors.enter(entry.files.locks.window()).await;
    let before = entry.files.used_bytes().unwrap_or(0);
    if !entry.files.locks.own_use().unwrap_or(false) {
        return 0;
    }
    let punched = entry.ledger.punch(&entry.on(reactor), runs).await;
    // From exclusive to shared: this cannot be refused.
    let _ = entry.files.locks.share_use();
    if let Err(error) = punched {
        tracing::warn!(%error, blob = %entry.key, "cannot free regions of a cache entry");
    }
    let freed = before.saturating_sub(entry.files.used_bytes().unwrap_or(before));
    shared.metrics.evicted_bytes.inc_by(freed);
    freed
}
