//! The global limit of requests in flight. Reads that somebody waits for go before prefetch.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_channel::oneshot;

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

/// Hands out at most `limit` permits, of which prefetch has at most its share.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    prefetch_limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    held_by_prefetch: usize,
    demand: VecDeque<oneshot::Sender<Permit>>,
    prefetch: VecDeque<oneshot::Sender<Permit>>,
}

/// The right to one request in flight; dropping it passes it on.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Arc<Budget>,
    priority: Priority,
}

impl Budget {
    /// At least one permit for each kind, whatever the configuration says.
    pub(super) fn new(limit: usize, prefetch_limit: usize) -> Arc<Self> {
        let limit = limit.max(1);
        let prefetch_limit = prefetch_limit.clamp(1, limit);
        Arc::new(Self { limit, prefetch_limit, state: Mutex::default() })
    }

    pub(super) async fn acquire(self: &Arc<Self>, priority: Priority) -> Permit {
        loop {
            let waiting = {
                let mut state = self.lock();
                let nobody_before =
                    state.demand.is_empty() && (priority == Priority::Demand || state.prefetch.is_empty());
                if nobody_before && self.has_room(&state, priority) {
                    return self.grant(&mut state, priority);
                }
                let (sender, receiver) = oneshot::channel();
                match priority {
                    Priority::Demand => state.demand.push_back(sender),
                    Priority::Prefetch => state.prefetch.push_back(sender),
                }
                receiver
            };
            if let Ok(permit) = waiting.await {
                return permit;
            }
        }
    }

    fn has_room(&self, state: &State, priority: Priority) -> bool {
        state.held < self.limit
            && (priority == Priority::Demand || state.held_by_prefetch < self.prefetch_limit)
    }

    fn grant(self: &Arc<Self>, state: &mut State, priority: Priority) -> Permit {
        state.held += 1;
        state.held_by_prefetch += usize::from(priority == Priority::Prefetch);
        Permit { budget: self.clone(), priority }
    }

    /// Gives free permits to those who wait. A waiter that has gone drops its permit, which calls this again.
    fn serve(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.lock();
                // Waiters whose future was dropped must not use up a turn.
                state.demand.retain(|waiter| !waiter.is_canceled());
                state.prefetch.retain(|waiter| !waiter.is_canceled());
                if !state.demand.is_empty() && self.has_room(&state, Priority::Demand) {
                    state.demand.pop_front().map(|w| (w, self.grant(&mut state, Priority::Demand)))
                } else if state.demand.is_empty() && self.has_room(&state, Priority::Prefetch) {
                    state.prefetch.pop_front().map(|w| (w, self.grant(&mut state, Priority::Prefetch)))
                } else {
                    None
                }
            };
            // The lock is free here: a permit that cannot be sent is dropped, and dropping takes the lock.
            match next {
                Some((waiter, permit)) => drop(waiter.send(permit)),
                None => return,
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

    #[tokio::test]
    async fn demand_overtakes_prefetch_that_waits_longer() {
        let budget = Budget::new(1, 1);
        let held = budget.acquire(Priority::Demand).await;
        let mut prefetch = Box::pin(budget.acquire(Priority::Prefetch));
        let mut demand = Box::pin(budget.acquire(Priority::Demand));
        assert!((&mut prefetch).now_or_never().is_none());
        assert!((&mut demand).now_or_never().is_none());
        drop(held);
        assert!((&mut prefetch).now_or_never().is_none());
        let granted = (&mut demand).now_or_never().expect("demand is first");
        drop(granted);
        assert!((&mut prefetch).now_or_never().is_some());
    }

    #[tokio::test]
    async fn prefetch_leaves_room_for_demand() {
        let budget = Budget::new(3, 2);
        let first = budget.acquire(Priority::Prefetch).await;
        let _second = budget.acquire(Priority::Prefetch).await;
        let mut third = Box::pin(budget.acquire(Priority::Prefetch));
        assert!((&mut third).now_or_never().is_none());
        assert!(budget.acquire(Priority::Demand).now_or_never().is_some());
        drop(first);
        assert!((&mut third).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_loses_no_permit() {
        let budget = Budget::new(1, 1);
        let held = budget.acquire(Priority::Demand).await;
        let mut gone = Box::pin(budget.acquire(Priority::Demand));
        assert!((&mut gone).now_or_never().is_none());
        let mut granted_but_gone = Box::pin(budget.acquire(Priority::Demand));
        assert!((&mut granted_but_gone).now_or_never().is_none());
        drop(gone);
        drop(held);
        drop(granted_but_gone);
        assert!(budget.acquire(Priority::Prefetch).now_or_never().is_some());
    }
}
