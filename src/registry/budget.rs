//! Places for requests in flight, and the line of those who wait for one: the oldest first, on-demand reads before prefetch.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_channel::oneshot;
use tokio::time::Instant;

/// How urgent a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Priority {
    /// Somebody waits for the bytes.
    #[default]
    Demand,
    /// Nobody waits yet.
    Prefetch,
}

/// Prefetch stands in line as if it had come so much later. Endless demand does not keep it waiting for ever: a reader may have
/// come to wait for its bytes.
const PREFETCH_HANDICAP: Duration = Duration::from_secs(5);

/// Of a limit, the part that prefetch may hold: the rest is always free for reads that somebody waits for.
const PREFETCH_SHARE: (usize, usize) = (2, 3);

/// Who waits: a request keeps its age when it is tried again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) priority: Priority,
    pub(super) since: Instant,
}

/// Hands out at most `limit` permits, of which prefetch has at most its share.
#[derive(Debug)]
pub(super) struct Budget {
    most_prefetches: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    held: usize,
    held_by_prefetch: usize,
    /// By when it is their turn, and the order of coming where that is the same.
    waiting: BTreeMap<(Instant, u64), Waiting>,
    arrivals: u64,
}

#[derive(Debug)]
struct Waiting {
    priority: Priority,
    answer: oneshot::Sender<Permit>,
}

/// The right to one request in flight; dropping it passes it on.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Arc<Budget>,
    priority: Priority,
}

impl Budget {
    /// At least one permit for each kind, whatever the configuration says.
    pub(super) fn new(limit: usize, most_prefetches: usize) -> Arc<Self> {
        let state = State {
            limit: limit.max(1),
            held: 0,
            held_by_prefetch: 0,
            waiting: BTreeMap::new(),
            arrivals: 0,
        };
        Arc::new(Self { most_prefetches: most_prefetches.max(1), state: Mutex::new(state) })
    }

    /// From now on hands out at most `limit` permits, at least one. What is held already stays held.
    pub(super) fn set_limit(self: &Arc<Self>, limit: usize) {
        self.lock().limit = limit.max(1);
        self.serve();
    }

    /// Permits that are held, and requests that wait for one.
    pub(super) fn load(&self) -> (usize, usize) {
        let state = self.lock();
        (state.held, state.waiting.len())
    }

    pub(super) async fn acquire(self: &Arc<Self>, turn: Turn) -> Permit {
        loop {
            let waiting = {
                let mut state = self.lock();
                let handicap =
                    if turn.priority == Priority::Prefetch { PREFETCH_HANDICAP } else { Duration::ZERO };
                state.arrivals = state.arrivals.wrapping_add(1);
                let place = (turn.since + handicap, state.arrivals);
                let (answer, granted) = oneshot::channel();
                state.waiting.insert(place, Waiting { priority: turn.priority, answer });
                granted
            };
            self.serve();
            if let Ok(permit) = waiting.await {
                return permit;
            }
        }
    }

    fn has_room(&self, state: &State, priority: Priority) -> bool {
        let (part, whole) = PREFETCH_SHARE;
        let for_prefetch = (state.limit.saturating_mul(part) / whole).clamp(1, self.most_prefetches);
        state.held < state.limit && (priority == Priority::Demand || state.held_by_prefetch < for_prefetch)
    }

    /// Gives free permits to those who wait. A waiter that has gone drops its permit, which calls this again.
    fn serve(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.lock();
                let found = state.waiting.iter().find(|(_, waiting)| {
                    // One whose future was dropped must not use up a turn.
                    waiting.answer.is_canceled() || self.has_room(&state, waiting.priority)
                });
                let Some(place) = found.map(|(place, _)| *place) else { return };
                state.waiting.remove(&place).filter(|waiting| !waiting.answer.is_canceled()).map(|waiting| {
                    state.held += 1;
                    state.held_by_prefetch += usize::from(waiting.priority == Priority::Prefetch);
                    (waiting.answer, Permit { budget: self.clone(), priority: waiting.priority })
                })
            };
            // The lock is free here: a permit that cannot be sent is dropped, and dropping takes the lock.
            if let Some((answer, permit)) = next {
                drop(answer.send(permit));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.budget.lock();
            state.held = state.held.saturating_sub(1);
            if self.priority == Priority::Prefetch {
                state.held_by_prefetch = state.held_by_prefetch.saturating_sub(1);
            }
        }
        self.budget.serve();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn turn(priority: Priority) -> Turn {
        Turn { priority, since: Instant::now() }
    }

    #[tokio::test]
    async fn demand_overtakes_prefetch_that_waits_longer() {
        let budget = Budget::new(1, 1);
        let held = budget.acquire(turn(Priority::Demand)).await;
        let mut prefetch = Box::pin(budget.acquire(turn(Priority::Prefetch)));
        let mut demand = Box::pin(budget.acquire(turn(Priority::Demand)));
        assert!((&mut prefetch).now_or_never().is_none());
        assert!((&mut demand).now_or_never().is_none());
        drop(held);
        assert!((&mut prefetch).now_or_never().is_none());
        let granted = (&mut demand).now_or_never().expect("demand is first");
        drop(granted);
        assert!((&mut prefetch).now_or_never().is_some());
    }

    #[tokio::test]
    async fn prefetch_that_has_waited_long_goes_before_newer_demand() {
        let budget = Budget::new(1, 1);
        let held = budget.acquire(turn(Priority::Demand)).await;
        let prefetch = turn(Priority::Prefetch);
        let later = Turn {
            priority: Priority::Demand,
            since: prefetch.since + PREFETCH_HANDICAP + Duration::from_millis(1),
        };
        let mut demand = Box::pin(budget.acquire(later));
        let mut prefetch = Box::pin(budget.acquire(prefetch));
        assert!((&mut prefetch).now_or_never().is_none());
        assert!((&mut demand).now_or_never().is_none());
        drop(held);
        assert!((&mut demand).now_or_never().is_none());
        assert!((&mut prefetch).now_or_never().is_some());
    }

    #[tokio::test]
    async fn one_that_is_tried_again_keeps_its_place_in_line() {
        let budget = Budget::new(1, 1);
        let first = turn(Priority::Demand);
        let held = budget.acquire(first).await;
        let mut later: Vec<_> = (0..3).map(|_| Box::pin(budget.acquire(turn(Priority::Demand)))).collect();
        assert!(later.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        let mut again = Box::pin(budget.acquire(first));
        assert!((&mut again).now_or_never().is_none());
        drop(held);
        let mut held = (&mut again).now_or_never().expect("the oldest is first");
        for waiting in &mut later {
            assert!(waiting.now_or_never().is_none());
            drop(held);
            held = waiting.now_or_never().expect("in the order of coming");
        }
    }

    #[tokio::test]
    async fn prefetch_leaves_room_for_demand() {
        let budget = Budget::new(3, 2);
        let first = budget.acquire(turn(Priority::Prefetch)).await;
        let _second = budget.acquire(turn(Priority::Prefetch)).await;
        let mut third = Box::pin(budget.acquire(turn(Priority::Prefetch)));
        assert!((&mut third).now_or_never().is_none());
        assert!(budget.acquire(turn(Priority::Demand)).now_or_never().is_some());
        drop(first);
        assert!((&mut third).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_smaller_limit_counts_for_those_who_come_and_a_larger_one_for_those_who_wait() {
        let budget = Budget::new(2, 2);
        let held =
            [budget.acquire(turn(Priority::Demand)).await, budget.acquire(turn(Priority::Demand)).await];
        budget.set_limit(1);
        let mut waiting = Box::pin(budget.acquire(turn(Priority::Demand)));
        let [first, _second] = held;
        drop(first);
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(budget.load(), (1, 1));
        budget.set_limit(2);
        assert!((&mut waiting).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_loses_no_permit() {
        let budget = Budget::new(1, 1);
        let held = budget.acquire(turn(Priority::Demand)).await;
        let mut gone = Box::pin(budget.acquire(turn(Priority::Demand)));
        assert!((&mut gone).now_or_never().is_none());
        let mut granted_but_gone = Box::pin(budget.acquire(turn(Priority::Demand)));
        assert!((&mut granted_but_gone).now_or_never().is_none());
        drop(gone);
        drop(held);
        drop(granted_but_gone);
        assert!(budget.acquire(turn(Priority::Prefetch)).now_or_never().is_some());
    }
}
