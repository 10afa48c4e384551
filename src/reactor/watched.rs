//! State that futures on any thread wait for.

use std::{
    future::poll_fn,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use super::WaitList;

/// A value that is changed under a lock, and those who wait for it to become what they need.
#[derive(Debug, Default)]
pub struct Watched<T>(Mutex<State<T>>);

#[derive(Debug, Default)]
struct State<T> {
    value: T,
    waiting: WaitList,
}

/// One that waits. It leaves nothing behind when it is dropped.
struct Waiter<'a, T> {
    watched: &'a Watched<T>,
    ticket: Option<u64>,
}

impl<T> Watched<T> {
    /// Watches `value`.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Mutex::new(State { value, waiting: WaitList::default() }))
    }

    /// Looks at the value, or changes what nobody waits for. `look` must not come back here.
    pub fn look<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(&mut self.state().value)
    }

    /// Changes the value, and has all who wait look at it again. `change` must not come back here.
    pub fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut state = self.state();
        let changed = change(&mut state.value);
        let waiting = state.waiting.drain();
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        changed
    }

    /// Waits until `is_there` finds what it looks for, which it may take along. It is called under the lock, at first and after
    /// each change, and must not come back here.
    pub async fn wait<R>(&self, mut is_there: impl FnMut(&mut T) -> Option<R>) -> R {
        let mut waiter = Waiter { watched: self, ticket: None };
        poll_fn(|context| {
            let mut state = self.state();
            if let Some(found) = is_there(&mut state.value) {
                return Poll::Ready(found);
            }
            let waits = waiter.ticket.is_some_and(|ticket| state.waiting.renew(ticket, context.waker()));
            if !waits {
                waiter.ticket = Some(state.waiting.push((), context.waker()));
            }
            Poll::Pending
        })
        .await
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Waiter<'_, T> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.watched.state().waiting.remove(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_change_is_seen_by_all_who_wait_and_those_who_have_gone_leave_nothing() {
        let watched = Watched::new(0);
        let wait = |wanted| Box::pin(watched.wait(move |value| (*value >= wanted).then_some(*value)));
        let (mut first, mut second, mut gone) = (wait(1), wait(2), wait(9));
        for waiting in [&mut first, &mut second, &mut gone] {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        drop(gone);
        watched.change(|value| *value = 1);
        assert_eq!(first.now_or_never(), Some(1));
        assert!(second.as_mut().now_or_never().is_none());
        watched.look(|value| *value = 2);
        assert_eq!(second.now_or_never(), Some(2), "also where it was woken by somebody else");
        assert!(watched.state().waiting.is_empty());
    }

    #[test]
    fn every_change_wakes_a_thread_that_waits() {
        let watched = Watched::new(0_u32);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let reactor =
                    crate::reactor::Reactor::new(&crate::reactor::ReactorConfig::default()).unwrap();
                for wanted in 1..=1000 {
                    let seen = watched.wait(|value| (*value >= wanted).then_some(()));
                    reactor.block_on(seen).unwrap();
                }
            });
            while !waiter.is_finished() {
                watched.change(|value| *value += 1);
                std::thread::yield_now();
            }
        });
    }
}
