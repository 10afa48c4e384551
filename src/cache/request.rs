//! Which fetches a read begins, and which of those under way it waits for.

use std::sync::{Arc, atomic::Ordering};

use super::{
    entry::{Entry, parts},
    fetch,
    flight::Flight,
    grain::{GRAIN_BYTES, Grains, grains_of},
    guard::lock,
};
use crate::{
    block::ByteRange,
    source::{Origin, Urgency},
};

/// Largest fetch: at 100 MB/s it takes 10 ms, about a round trip; a larger range goes in parts, side by side.
const PART_GRAINS: u64 = (1 << 20) / GRAIN_BYTES;

/// Present grains between two missing runs that are fetched with them: 16 KiB take less time than a request costs.
const JOIN_GRAINS: u64 = 4;

/// Fetches of one blob beyond which nothing is read ahead. On-demand fetches are bounded by the requests in flight.
const MOST_FLIGHTS: usize = 64;

/// A fetch that a request waits for.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) flight: Arc<Flight>,
    /// Whether another request had begun it.
    pub(super) joined: bool,
}

impl Entry {
    /// Begins to fetch what is missing of `range`, and as much more as the streams advise; returns the fetches that hold
    /// some of `range`.
    pub(super) fn request(self: &Arc<Self>, origin: &Arc<dyn Origin>, range: ByteRange) -> Vec<Ticket> {
        let wanted = grains_of(range);
        let until = if self.shared.can_keep() {
            let earned = self.earned_bytes.swap(0, Ordering::Relaxed);
            let advice = lock(&self.streams).advance(range, earned);
            if let Some(trigger) = self.triggers.get(advice.slot) {
                trigger.store(advice.trigger, Ordering::Relaxed);
            }
            advice.until
        } else {
            range.end()
        };
        let ahead = wanted.start..wanted.end.max(until.div_ceil(GRAIN_BYTES));
        let mut flights = lock(&self.flights);
        let mut tickets: Vec<Ticket> =
            flights.over(&wanted).into_iter().map(|flight| Ticket { flight, joined: true }).collect();
        // What was read ahead for nobody has a reader now: it goes with what readers wait for.
        if tickets.iter().filter(|ticket| ticket.flight.demand()).count() > 0 {
            self.shared.budget.grant();
        }
        let missing = flights.uncovered(join(self.ledger.presence().missing(&ahead)));
        for run in missing.into_iter().flat_map(|run| parts(run, PART_GRAINS)) {
            let demanded = run.start < wanted.end;
            if !demanded && flights.len() >= MOST_FLIGHTS {
                continue;
            }
            let urgency = if demanded { Urgency::Demand } else { Urgency::Prefetch };
            let (flight, sender) = Flight::new(run, urgency);
            flights.insert(Arc::clone(&flight));
            let (entry, origin) = (Arc::clone(self), Arc::clone(origin));
            let driven = Arc::clone(&flight);
            self.shared
                .handle
                .spawn(move |reactor| fetch::drive(reactor.clone(), entry, origin, driven, sender));
            if demanded {
                tickets.push(Ticket { flight, joined: false });
            }
        }
        tickets.sort_by_key(|ticket| ticket.flight.grains.start);
        tickets
    }
}

/// Joins runs with little between them.
fn join(runs: Vec<Grains>) -> Vec<Grains> {
    let mut joined: Vec<Grains> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.start - last.end <= JOIN_GRAINS => last.end = run.end,
            _ => joined.push(run),
        }
    }
    joined
}
