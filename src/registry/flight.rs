//! Single flight: of all who want the same thing at once, one asks for it and the others take its answer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::RegistryError;

/// A remembered value and the right to renew it.
#[derive(Debug)]
pub(super) struct Flight<T> {
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    failure: Option<RegistryError>,
    /// How many leaders have ended with a value or a failure.
    finished: u64,
}

/// What waiting for one's turn came to.
pub(super) enum Turn<'a, T> {
    /// Somebody has the value.
    Ready(T),
    /// The leader that was waited for has failed, which fails this caller too.
    Failed(RegistryError),
    /// This caller must ask. Dropping it passes the lead to the next.
    Lead(Lead<'a, T>),
}

/// The right and duty to renew the value.
pub(super) struct Lead<'a, T> {
    flight: &'a Flight<T>,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl<T: Clone> Flight<T> {
    pub(super) fn new() -> Self {
        Self {
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::new(State { value: None, failure: None, finished: 0 }),
        }
    }

    /// The value, if there is one that `usable` accepts; otherwise waits for the one who asks, or leads.
    pub(super) async fn take_turn(&self, usable: impl Fn(&T) -> bool) -> Turn<'_, T> {
        let before = {
            let state = self.lock();
            if let Some(value) = state.value.as_ref().filter(|value| usable(value)) {
                return Turn::Ready(value.clone());
            }
            state.finished
        };
        let turn = self.turn.lock().await;
        let state = self.lock();
        if let Some(value) = state.value.as_ref().filter(|value| usable(value)) {
            return Turn::Ready(value.clone());
        }
        match &state.failure {
            Some(failure) if state.finished != before => Turn::Failed(failure.clone()),
            _ => Turn::Lead(Lead { flight: self, _turn: turn }),
        }
    }

    /// Forgets the value if it is one that `matches` accepts.
    pub(super) fn forget(&self, matches: impl Fn(&T) -> bool) {
        let mut state = self.lock();
        if state.value.as_ref().is_some_and(matches) {
            state.value = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Lead<'_, T> {
    /// The value that was there before and is not usable any more.
    pub(super) fn previous(&self) -> Option<T> {
        self.flight.lock().value.clone()
    }

    pub(super) fn succeed(self, value: T) {
        let mut state = self.flight.lock();
        state.value = Some(value);
        state.failure = None;
        state.finished = state.finished.wrapping_add(1);
    }

    pub(super) fn fail(self, error: &RegistryError) {
        let mut state = self.flight.lock();
        state.failure = Some(error.clone());
        state.finished = state.finished.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use futures_util::FutureExt;

    use super::*;
    use crate::registry::Reason;

    async fn get(
        flight: Arc<Flight<u32>>,
        asked: Arc<Mutex<u32>>,
        fails: bool,
    ) -> Result<u32, RegistryError> {
        match flight.take_turn(|_| true).await {
            Turn::Ready(value) => Ok(value),
            Turn::Failed(error) => Err(error),
            Turn::Lead(lead) => {
                *asked.lock().unwrap() += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
                if fails {
                    let error = RegistryError::new("x", Reason::NotFound);
                    lead.fail(&error);
                    Err(error)
                } else {
                    lead.succeed(7);
                    Ok(7)
                }
            }
        }
    }

    #[tokio::test]
    async fn parallel_callers_share_one_answer_and_one_failure() {
        for fails in [false, true] {
            let (flight, asked) = (Arc::new(Flight::new()), Arc::new(Mutex::new(0)));
            let calls: Vec<_> =
                (0..50).map(|_| tokio::spawn(get(flight.clone(), asked.clone(), fails))).collect();
            for call in calls {
                assert_eq!(call.await.unwrap().is_err(), fails);
            }
            assert_eq!(*asked.lock().unwrap(), 1);
        }
    }

    #[test]
    fn a_leader_that_is_dropped_passes_the_lead_on() {
        let flight: Flight<u32> = Flight::new();
        let Some(Turn::Lead(first)) = flight.take_turn(|_| true).now_or_never() else {
            panic!("nobody leads")
        };
        let mut second = Box::pin(flight.take_turn(|_| true));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert!(matches!((&mut second).now_or_never(), Some(Turn::Lead(_))));
    }
}
