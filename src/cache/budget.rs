//! How many fetches and bytes may be under way: on-demand reads first, read-ahead with what they leave, and no registry
//! so much that nothing is left for another.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use futures_channel::oneshot;

use super::flight::Flight;
use crate::source::Urgency;

/// Read-ahead may use this share of each limit.
const PREFETCH_SHARE: u64 = 2;

/// A lane may hold this many times what stays free: three quarters of all when it is alone, and less the more others
/// hold, so that lanes that hang leave something for one that does not, however many they are.
const LANE_MULTIPLE: u64 = 3;

#[derive(Debug)]
pub(super) struct Budget {
    most: Load,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: Load,
    /// What each lane uses; one that uses nothing is not there.
    lanes: HashMap<Arc<str>, Lane>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Load {
    fetches: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Lane {
    load: Load,
    /// When a fetch of it last landed, or the first one began.
    moved_at: Instant,
}

#[derive(Debug)]
struct Waiting {
    flight: Arc<Flight>,
    lane: Arc<str>,
    bytes: u64,
    answer: oneshot::Sender<Permit>,
}

/// Room for one fetch, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Arc<Budget>,
    lane: Arc<str>,
    bytes: u64,
}

/// What keeps a fetch waiting.
enum Room {
    Free,
    /// Others of its lane: those of other lanes may go before it.
    LaneFull,
    /// Everybody.
    Full,
}

impl Budget {
    pub(super) fn new(fetches: usize, bytes: u64) -> Arc<Self> {
        let most = Load { fetches: (fetches as u64).max(1), bytes: bytes.max(1) };
        Arc::new(Self { most, state: Mutex::default() })
    }

    /// Waits for room for `flight` in `lane`, which is the far end that answers or hangs. A fetch of more bytes than the
    /// whole budget counts as the whole.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        flight: Arc<Flight>,
        lane: &str,
        bytes: u64,
    ) -> Option<Permit> {
        let (answer, granted) = oneshot::channel();
        let bytes = bytes.min(self.most.bytes);
        let waiting = Waiting { flight, lane: lane.into(), bytes, answer };
        self.state().waiting.push_back(waiting);
        self.grant();
        granted.await.ok()
    }

    /// Whether `lane`, if it is used, has brought something since `then`.
    pub(super) fn has_moved(&self, lane: &str, then: Instant) -> bool {
        self.state().lanes.get(lane).is_none_or(|lane| lane.moved_at >= then)
    }

    /// Gives out what room there is; to be called when a flight has become more urgent.
    pub(super) fn grant(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state();
                let next = self.next(&mut state);
                if let Some(Waiting { lane, bytes, .. }) = &next {
                    state.used.add(*bytes);
                    let fresh = || Lane { load: Load::default(), moved_at: Instant::now() };
                    state.lanes.entry(Arc::clone(lane)).or_insert_with(fresh).load.add(*bytes);
                }
                next
            };
            let Some(Waiting { lane, bytes, answer, .. }) = next else { return };
            // If the one that waited has gone, the permit comes back and gives its room to the next by its drop.
            let _ = answer.send(Permit { budget: Arc::clone(self), lane, bytes });
        }
    }

    /// The first that has room: in order within its lane, on-demand reads before all read-ahead.
    fn next(&self, state: &mut State) -> Option<Waiting> {
        let State { used, lanes, waiting: queue } = state;
        for (urgency, share) in [(Urgency::Demand, 1), (Urgency::Prefetch, PREFETCH_SHARE)] {
            let mut full: Vec<Arc<str>> = Vec::new();
            for (index, waiting) in queue.iter().enumerate() {
                if waiting.flight.urgency() != urgency || full.contains(&waiting.lane) {
                    continue;
                }
                let of_lane = lanes.get(&waiting.lane).map(|lane| lane.load).unwrap_or_default();
                match self.room(*used, of_lane, waiting.bytes, share) {
                    Room::Free => return queue.remove(index),
                    Room::LaneFull => full.push(Arc::clone(&waiting.lane)),
                    // What comes later must not take what this one waits for.
                    Room::Full => return None,
                }
            }
        }
        None
    }

    fn room(&self, used: Load, of_lane: Load, bytes: u64, share: u64) -> Room {
        if used.fetches == 0 {
            return Room::Free;
        }
        let with = |load: Load| Load { fetches: load.fetches + 1, bytes: load.bytes.saturating_add(bytes) };
        let (all, lane) = (with(used), with(of_lane));
        if all.fetches > self.most.fetches.div_ceil(share) || all.bytes > self.most.bytes / share {
            return Room::Full;
        }
        let fits = |held: u64, all: u64, most: u64| held <= (most - all).saturating_mul(LANE_MULTIPLE);
        let fair = fits(lane.fetches, all.fetches, self.most.fetches)
            && fits(lane.bytes, all.bytes, self.most.bytes);
        if of_lane.fetches == 0 || fair { Room::Free } else { Room::LaneFull }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    fn add(&mut self, bytes: u64) {
        self.fetches += 1;
        self.bytes += bytes;
    }

    fn take(&mut self, bytes: u64) {
        self.fetches -= 1;
        self.bytes -= bytes;
    }
}

impl Permit {
    /// What it was for has landed: those who wait behind it go on waiting.
    pub(super) fn landed(&self) {
        if let Some(lane) = self.budget.state().lanes.get_mut(&self.lane) {
            lane.moved_at = Instant::now();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.budget.state();
            state.used.take(self.bytes);
            if let Some(lane) = state.lanes.get_mut(&self.lane) {
                lane.load.take(self.bytes);
                if lane.load.fetches == 0 {
                    state.lanes.remove(&self.lane);
                }
            }
        }
        self.budget.grant();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{FutureExt, poll};

    use super::*;

    fn flight(urgency: Urgency) -> Arc<Flight> {
        Flight::new(0..1, urgency).0
    }

    #[test]
    fn read_ahead_that_a_reader_joins_waits_among_the_demand() {
        let budget = Budget::new(1, 100);
        async {
            let [demand, ahead] = [flight(Urgency::Demand), flight(Urgency::Prefetch)];
            let held = budget.acquire(demand.clone(), "a", 1).await.unwrap();
            let mut joined = pin!(budget.acquire(ahead.clone(), "a", 1));
            let mut later = pin!(budget.acquire(demand.clone(), "a", 1));
            assert!(poll!(joined.as_mut()).is_pending() && poll!(later.as_mut()).is_pending());
            assert!(ahead.demand() && !ahead.demand());
            budget.grant();
            drop(held);
            assert!(poll!(later.as_mut()).is_pending() && poll!(joined.as_mut()).is_ready());
        }
        .now_or_never()
        .unwrap();
    }

    #[test]
    fn demand_overtakes_waiting_read_ahead_and_nothing_exceeds_the_limits() {
        let budget = Budget::new(4, 100);
        async {
            let first = budget.acquire(flight(Urgency::Demand), "a", 60).await.unwrap();
            let mut ahead = pin!(budget.acquire(flight(Urgency::Prefetch), "b", 10));
            assert!(poll!(ahead.as_mut()).is_pending(), "half of the bytes are taken");
            let mut demand = pin!(budget.acquire(flight(Urgency::Demand), "c", 60));
            assert!(poll!(demand.as_mut()).is_pending());
            drop(first);
            let second = poll!(demand.as_mut());
            assert!(second.is_ready() && poll!(ahead.as_mut()).is_pending());
            drop(second);
            assert!(poll!(ahead.as_mut()).is_ready());
        }
        .now_or_never()
        .unwrap();
        let state = budget.state();
        assert_eq!((state.used, state.lanes.len()), (Load::default(), 0));
    }

    #[test]
    fn lanes_that_hang_leave_room_for_others_however_many_they_are() {
        let budget = Budget::new(64, 6400);
        let mut held = Vec::new();
        let mut fill = |lane: &str| {
            let before = held.len();
            held.extend(
                (0..64).map_while(|_| budget.acquire(flight(Urgency::Demand), lane, 100).now_or_never()),
            );
            held.len() - before
        };
        assert_eq!([fill("a"), fill("b"), fill("c"), fill("d")], [48, 12, 3, 1]);
        drop(held.drain(..1));
        let another = budget.acquire(flight(Urgency::Demand), "e", 100).now_or_never();
        assert!(another.is_some(), "past the queue of a full lane");
    }

    #[test]
    fn one_that_gives_up_and_one_larger_than_all_do_not_block_the_rest() {
        let budget = Budget::new(1, 100);
        async {
            let held = budget.acquire(flight(Urgency::Prefetch), "a", 1000).await.unwrap();
            {
                let mut gone = pin!(budget.acquire(flight(Urgency::Demand), "a", 1));
                assert!(poll!(gone.as_mut()).is_pending());
            }
            let mut next = pin!(budget.acquire(flight(Urgency::Demand), "a", 1));
            assert!(poll!(next.as_mut()).is_pending());
            drop(held);
            assert!(poll!(next).is_ready());
        }
        .now_or_never()
        .unwrap();
    }
}
