//! How many fetches and bytes may be under way: on-demand reads first, read-ahead with what they leave.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_channel::oneshot;

use crate::source::Urgency;

/// Read-ahead may use this share of each limit.
const PREFETCH_SHARE: u64 = 2;

#[derive(Debug)]
pub(super) struct Budget {
    fetches: u64,
    bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    fetches: u64,
    bytes: u64,
    demand: VecDeque<Waiting>,
    prefetch: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    bytes: u64,
    answer: oneshot::Sender<Permit>,
}

/// Room for one fetch, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(fetches: usize, bytes: u64) -> Arc<Self> {
        Arc::new(Self { fetches: (fetches as u64).max(1), bytes: bytes.max(1), state: Mutex::default() })
    }

    /// Waits for room. A fetch of more bytes than the whole budget counts as the whole.
    pub(super) async fn acquire(self: &Arc<Self>, bytes: u64, urgency: Urgency) -> Option<Permit> {
        let (answer, granted) = oneshot::channel();
        let waiting = Waiting { bytes: bytes.min(self.bytes), answer };
        match urgency {
            Urgency::Demand => self.state().demand.push_back(waiting),
            Urgency::Prefetch => self.state().prefetch.push_back(waiting),
        }
        self.grant();
        granted.await.ok()
    }

    fn grant(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state();
                let next = self.next(&mut state);
                if let Some(waiting) = &next {
                    state.fetches += 1;
                    state.bytes += waiting.bytes;
                }
                next
            };
            let Some(Waiting { bytes, answer }) = next else { return };
            // If the one that waited has gone, the permit comes back and gives its room to the next by its drop.
            let _ = answer.send(Permit { budget: Arc::clone(self), bytes });
        }
    }

    fn next(&self, state: &mut State) -> Option<Waiting> {
        let fits = |waiting: &Waiting, share: u64| {
            let used = state.bytes.saturating_add(waiting.bytes);
            let alone = state.fetches == 0;
            alone || (state.fetches < self.fetches.div_ceil(share) && used <= self.bytes / share)
        };
        if let Some(first) = state.demand.front() {
            return if fits(first, 1) { state.demand.pop_front() } else { None };
        }
        let first = state.prefetch.front()?;
        if fits(first, PREFETCH_SHARE) { state.prefetch.pop_front() } else { None }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.budget.state();
            state.fetches -= 1;
            state.bytes -= self.bytes;
        }
        self.budget.grant();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{FutureExt, poll};

    use super::*;

    #[test]
    fn demand_overtakes_waiting_read_ahead_and_nothing_exceeds_the_limits() {
        let budget = Budget::new(4, 100);
        async {
            let first = budget.acquire(60, Urgency::Demand).await.unwrap();
            let mut ahead = pin!(budget.acquire(10, Urgency::Prefetch));
            assert!(poll!(ahead.as_mut()).is_pending(), "half of the bytes are taken");
            let mut demand = pin!(budget.acquire(60, Urgency::Demand));
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
        assert_eq!((state.fetches, state.bytes), (0, 0));
    }

    #[test]
    fn one_that_gives_up_and_one_larger_than_all_do_not_block_the_rest() {
        let budget = Budget::new(1, 100);
        async {
            let held = budget.acquire(1000, Urgency::Prefetch).await.unwrap();
            {
                let mut gone = pin!(budget.acquire(1, Urgency::Demand));
                assert!(poll!(gone.as_mut()).is_pending());
            }
            let mut next = pin!(budget.acquire(1, Urgency::Demand));
            assert!(poll!(next.as_mut()).is_pending());
            drop(held);
            assert!(poll!(next).is_ready());
        }
        .now_or_never()
        .unwrap();
    }
}
