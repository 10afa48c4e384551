//! Fetches under way, each grain in at most one, and how any thread waits for one.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::{FutureExt, Shared};

use super::grain::Grains;
use crate::source::{SourceError, Urgency};

/// What a fetch came to.
#[derive(Debug, Clone)]
pub(super) enum Landed {
    /// Bytes from this offset on; all that was missing of the fetch's range.
    Bytes(u64, Bytes),
    /// Another process had fetched them: they are in the data file.
    Present,
}

pub(super) type Outcome = Result<Landed, SourceError>;

/// One fetch, shared by all who want some of it. Its future may be awaited on any executor.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) grains: Grains,
    /// Whether a request waits for it.
    demanded: AtomicBool,
    refuted: AtomicBool,
    outcome: Shared<oneshot::Receiver<Outcome>>,
}

impl Flight {
    pub(super) fn new(grains: Grains, urgency: Urgency) -> (Arc<Self>, oneshot::Sender<Outcome>) {
        let (sender, receiver) = oneshot::channel();
        let demanded = AtomicBool::new(urgency == Urgency::Demand);
        let refuted = AtomicBool::new(false);
        (Arc::new(Self { grains, demanded, refuted, outcome: receiver.shared() }), sender)
    }

    pub(super) fn urgency(&self) -> Urgency {
        if self.demanded.load(Ordering::Relaxed) { Urgency::Demand } else { Urgency::Prefetch }
    }

    /// A request waits for it now; returns whether none did before.
    pub(super) fn demand(&self) -> bool {
        !self.demanded.swap(true, Ordering::Relaxed)
    }

    /// Waits; `None` if the cache's thread ended before it.
    pub(super) async fn wait(&self) -> Option<Outcome> {
        self.outcome.clone().await.ok()
    }

    /// Its bytes are wrong: they must not be recorded. To be called before the ledger refutes them.
    pub(super) fn refute(&self) {
        self.refuted.store(true, Ordering::SeqCst);
    }

    pub(super) fn stands(&self) -> bool {
        !self.refuted.load(Ordering::SeqCst)
    }
}

/// The fetches of one blob, which do not overlap.
#[derive(Debug, Default)]
pub(super) struct Flights(BTreeMap<u64, Arc<Flight>>);

impl Flights {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn insert(&mut self, flight: Arc<Flight>) {
        self.0.insert(flight.grains.start, flight);
    }

    /// Takes out this very flight.
    pub(super) fn remove(&mut self, flight: &Arc<Flight>) {
        if self.0.get(&flight.grains.start).is_some_and(|found| Arc::ptr_eq(found, flight)) {
            self.0.remove(&flight.grains.start);
        }
    }

    /// Those that hold some of `grains`, in order.
    pub(super) fn over(&self, grains: &Grains) -> Vec<Arc<Flight>> {
        let mut found: Vec<_> = (self.0.range(..grains.end).rev().map(|(_, flight)| flight))
            .take_while(|flight| flight.grains.end > grains.start)
            .cloned()
            .collect();
        found.reverse();
        found
    }

    /// The parts of `runs` that no flight holds.
    pub(super) fn uncovered(&self, runs: Vec<Grains>) -> Vec<Grains> {
        let mut left = Vec::new();
        for run in runs {
            let mut at = run.start;
            for flight in self.over(&run) {
                push(&mut left, at..flight.grains.start);
                at = at.max(flight.grains.end);
            }
            push(&mut left, at..run.end);
        }
        left
    }
}

fn push(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    if run.start < run.end {
        runs.push(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_flights_hold_is_not_fetched_again() {
        let mut flights = Flights::default();
        let (first, _sender) = Flight::new(10..20, Urgency::Demand);
        let (second, _sender) = Flight::new(30..40, Urgency::Demand);
        flights.insert(Arc::clone(&first));
        flights.insert(second);
        assert_eq!(flights.uncovered(vec![0..15, 18..35, 40..41]), [0..10, 20..30, 40..41]);
        assert_eq!(flights.over(&(19..31)).len(), 2);
        assert!(flights.over(&(20..30)).is_empty());
        flights.remove(&first);
        assert_eq!(flights.uncovered(vec![0..50, 60..61]), [0..30, 40..50, 60..61]);
        assert_eq!(flights.len(), 1);
    }

    #[test]
    fn a_flight_whose_driver_has_gone_ends_for_all_who_wait() {
        let (flight, sender) = Flight::new(0..1, Urgency::Demand);
        let waiter = Arc::clone(&flight);
        drop(sender);
        assert!(waiter.wait().now_or_never().unwrap().is_none());
        assert!(flight.wait().now_or_never().unwrap().is_none());
    }
}
