//! Checks a blob that is present as a whole against its digest, which single ranges cannot be.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{entry::Entry, presence::Generation};
use crate::{block::ByteRange, reactor::Reactor};

/// Hashed at once: a millisecond or less, so that fetches on the same thread go on in between.
const CHUNK_BYTES: usize = 256 << 10;

/// How often a check is begun that eviction or a refutation disturbs; the entry's next completion begins another.
const TRIES: usize = 3;

/// Begins to check the entry on the cache's thread if it is complete and was not checked before.
pub(super) fn start(entry: &Arc<Entry>) {
    // What has a Merkle tree was proven part by part, and is never whole: nobody reads its last bytes.
    let due = entry.proof.is_none() && !entry.ledger.is_verified() && entry.ledger.presence().is_complete();
    if !due || entry.verifying.swap(true, Ordering::AcqRel) {
        return;
    }
    let entry = Arc::clone(entry);
    entry.shared.handle.clone().spawn(move |reactor| {
        let reactor = reactor.clone();
        async move {
            for _ in 0..TRIES {
                if check(&entry, &reactor).await.is_some() || !entry.ledger.presence().is_complete() {
                    break;
                }
            }
            entry.verifying.store(false, Ordering::Release);
        }
    });
}

/// Reads all of the blob and acts on what its digest says; `None` if it was not there all the while.
async fn check(entry: &Arc<Entry>, reactor: &Reactor) -> Option<()> {
    let generation = entry.ledger.presence().generation();
    let is_right = hash(entry, reactor).await? == *entry.key.digits();
    if !entry.ledger.presence().unchanged(generation) {
        return None;
    }
    if is_right {
        record(entry, reactor, generation).await;
    } else {
        tracing::error!(blob = %entry.key, "the registry sent other bytes than those of the digest: all of them are forgotten");
        entry.disown();
    }
    Some(())
}

/// The digits of the digest of what is in the data file.
async fn hash(entry: &Arc<Entry>, reactor: &Reactor) -> Option<String> {
    let mut hasher = entry.key.hasher();
    let mut chunk = vec![0; CHUNK_BYTES];
    for start in (0..entry.size_bytes).step_by(CHUNK_BYTES) {
        let end = start.saturating_add(CHUNK_BYTES as u64).min(entry.size_bytes);
        let part = chunk.get_mut(..usize::try_from(end - start).ok()?)?;
        if !entry.hit(reactor, ByteRange::between(start, end), part).await {
            return None;
        }
        hasher.update(part);
        reactor.sleep(Duration::ZERO).await;
    }
    Some(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Notes durably that the blob is right, after the data. What fails costs another check after the next opening.
async fn record(entry: &Entry, reactor: &Reactor, generation: Generation) {
    let recorded = match entry.sync(reactor).await {
        Ok(()) => entry.ledger.set_verified(&entry.on(reactor), generation).await,
        Err(error) => Err(error),
    };
    if let Err(error) = recorded {
        tracing::debug!(%error, blob = %entry.key, "cannot note that a cached blob was verified");
    }
}
