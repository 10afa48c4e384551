//! The life of one fetch, on the cache's thread: ask the peers, ask the origin, hand out, write, record.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::{Either, select};

use super::{
    budget::Permit,
    entry::Entry,
    evict,
    flight::{Flight, Landed, Outcome},
    grain::{Grains, bytes_of},
    guard::lock,
    lock::RangeLock,
    verify,
};
use crate::{
    block::ByteRange,
    reactor::Reactor,
    source::{Origin, SourceError, check_length},
};

/// A fetch took too long, most of which it may have waited behind others.
#[derive(Debug, thiserror::Error)]
#[error(
    "not fetched within {0:?} in all, the wait for its turn included (registry.limits.total_deadline_ms)"
)]
struct Late(Duration);

/// Those that it waited behind do not come to an end.
#[derive(Debug, thiserror::Error)]
#[error("waited for its turn, and nothing has come from {lane} for {patience:?}")]
struct Stuck {
    lane: String,
    patience: Duration,
}

/// The cache's thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("the cache is closed")]
struct Closed;

/// Pauses between looks at what a peer does grow up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Brings the grains of `flight` here and tells all who wait by `sender`. Nobody's going away ends it.
pub(super) async fn drive(
    reactor: Reactor,
    entry: Arc<Entry>,
    origin: Arc<dyn Origin>,
    flight: Arc<Flight>,
    sender: oneshot::Sender<Outcome>,
) {
    let _underway = Underway { entry: &entry, flight: &flight };
    let fetched = fetch(&reactor, &entry, &*origin, &flight).await;
    let (outcome, stored) = match fetched {
        Ok(Some(fetched)) => {
            let outcome = Ok(Landed::Bytes(fetched.range.start(), fetched.bytes.clone()));
            (outcome, Some(fetched))
        }
        Ok(None) => (Ok(Landed::Present), None),
        Err(error) => (Err(error), None),
    };
    if outcome.is_err() {
        // Gone before anybody hears of the failure, so that who tries again does not join it.
        lock(&entry.flights).remove(&flight);
    }
    // Those who waited may have gone; the bytes are as welcome.
    let _ = sender.send(outcome);
    if let Some(fetched) = stored {
        store(&reactor, &entry, &*origin, &flight, &fetched).await;
    }
}

/// Takes the flight out at its end, also if that is a panic: nobody could wait for it any more.
struct Underway<'a> {
    entry: &'a Entry,
    flight: &'a Arc<Flight>,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        lock(&self.entry.flights).remove(self.flight);
    }
}

/// Bytes, and what is held until they are on disk.
struct Fetched {
    range: ByteRange,
    bytes: Bytes,
    _room: Permit,
    _fetching: Option<RangeLock>,
}

/// Gets what is missing of the flight's grains, or finds that a peer had got it.
async fn fetch(
    reactor: &Reactor,
    entry: &Entry,
    origin: &dyn Origin,
    flight: &Arc<Flight>,
) -> Result<Option<Fetched>, SourceError> {
    let metrics = &entry.shared.metrics;
    let (fetching, missing) = ask_peers(reactor, entry, &flight.grains).await;
    let Some(missing) = missing else {
        metrics.spared_by_peers.inc();
        return Ok(None);
    };
    let range = bytes_of(&missing, entry.size_bytes);
    let remote = |timed_out, source| SourceError::Remote {
        name: origin.name().to_owned(),
        offset: range.start(),
        len: range.len(),
        timed_out,
        source,
    };
    if let Some(proof) = origin.proof()
        && let Err(error) = entry.recall(proof, reactor, &missing).await
    {
        // Then the origin has it too.
        tracing::debug!(%error, blob = %entry.key, "cannot read what is kept of a Merkle tree");
    }
    let answer = async {
        let acquiring = entry.shared.budget.acquire(Arc::clone(flight), origin.lane(), range.len());
        let room = in_turn(reactor, entry, origin.lane(), acquiring)
            .await
            .map_err(|stuck| remote(true, Arc::new(stuck)))?;
        let room = room.ok_or_else(|| remote(false, Arc::new(Closed)))?;
        metrics.fetches.inc();
        let bytes = origin.read_range(range, flight.urgency()).await?;
        let bytes = check_length(origin.name(), range, bytes)?;
        room.landed();
        Ok((room, bytes))
    };
    // The wait for room counts too: nothing that others do keeps a reader longer.
    let deadline = entry.shared.config.fetch_deadline;
    let answer = match select(pin!(answer), pin!(reactor.sleep(deadline))).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(remote(true, Arc::new(Late(deadline)))),
    };
    let (room, bytes) = answer.inspect_err(|_| {
        metrics.failed_fetches.inc();
    })?;
    metrics.bytes_fetched.inc_by(range.len());
    Ok(Some(Fetched { range, bytes, _room: room, _fetching: fetching }))
}

/// Waits for room as long as those before it in its lane come to an end.
async fn in_turn(
    reactor: &Reactor,
    entry: &Entry,
    lane: &str,
    acquiring: impl Future<Output = Option<Permit>>,
) -> Result<Option<Permit>, Stuck> {
    let patience = entry.shared.config.lane_patience;
    let mut acquiring = pin!(acquiring);
    loop {
        let began = Instant::now();
        match select(acquiring.as_mut(), pin!(reactor.sleep(patience))).await {
            Either::Left((room, _)) => return Ok(room),
            Either::Right(_) if entry.shared.budget.has_moved(lane, began) => {}
            Either::Right(_) => return Err(Stuck { lane: lane.to_owned(), patience }),
        }
    }
}

/// Looks at what other processes have recorded, and waits a bounded time for one that fetches the same. Returns the
/// span of grains that is still missing.
async fn ask_peers(reactor: &Reactor, entry: &Entry, grains: &Grains) -> (Option<RangeLock>, Option<Grains>) {
    let began = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        // Locked first, looked at second: what a peer recorded before it let go is then seen.
        let held = entry.files.locks.fetch(grains).unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot lock a range of the cache");
            None
        });
        if let Err(error) = entry.ledger.refresh(&entry.on(reactor), grains) {
            tracing::debug!(%error, blob = %entry.key, "cannot read a presence map");
        }
        let missing = entry.ledger.presence().missing(grains);
        let (Some(first), Some(last)) = (missing.first(), missing.last()) else { return (held, None) };
        if held.is_some() || began.elapsed() >= entry.shared.config.peer_patience {
            return (held, Some(first.start..last.end));
        }
        reactor.sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Writes and records what was fetched. A disk that fails or is full costs only the memory of it.
async fn store(
    reactor: &Reactor,
    entry: &Arc<Entry>,
    origin: &dyn Origin,
    flight: &Flight,
    fetched: &Fetched,
) {
    let shared = &entry.shared;
    if shared.is_full() {
        evict::start(shared);
        return;
    }
    if !shared.disk_works() {
        return;
    }
    let stored = async {
        // Before what it proves: another process takes that for missing where it finds no proof.
        if let Some(proof) = origin.proof() {
            entry.keep_tree(proof, reactor).await?;
        }
        let medium = entry.on(reactor);
        entry.ledger.store(&medium, fetched.range.start(), &fetched.bytes, || flight.stands()).await
    };
    match stored.await {
        Ok(()) => {
            shared.disk_worked();
            entry.touch(&flight.grains);
            shared.used_bytes.fetch_add(fetched.range.len(), Ordering::Relaxed);
            if shared.is_count_old() {
                evict::start(shared);
            }
            verify::start(entry);
        }
        Err(error) => {
            shared.disk_failed(&entry.key, &error);
            evict::start(shared);
        }
    }
}
