//! Lets changes in, or keeps them out until those under way have ended.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// The gate. Whoever waits at it is woken by the next change of its state.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    inside: usize,
    closed: bool,
    waiting: Vec<Waker>,
}

/// A change under way.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gate);

/// Keeps the gate closed until it is dropped.
#[derive(Debug)]
pub(super) struct Closed(Arc<Gate>);

impl Gate {
    /// Waits until the gate is open, and lets a change in.
    pub(super) async fn enter(&self) -> Inside<'_> {
        poll_fn(|context| {
            let mut state = self.state();
            if state.closed {
                return state.wait(context);
            }
            state.inside += 1;
            Poll::Ready(())
        })
        .await;
        Inside(self)
    }

    /// Closes the gate, which only one can at a time, and waits until no change is under way any more.
    pub(super) async fn close(self: &Arc<Self>) -> Closed {
        poll_fn(|context| {
            let mut state = self.state();
            if state.closed {
                return state.wait(context);
            }
            state.closed = true;
            Poll::Ready(())
        })
        .await;
        // It opens again if this is given up.
        let closed = Closed(Arc::clone(self));
        poll_fn(|context| {
            let mut state = self.state();
            if state.inside > 0 { state.wait(context) } else { Poll::Ready(()) }
        })
        .await;
        closed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        // Nobody waits for one change of many to end while the gate is open.
        let waiting =
            if state.inside == 0 || !state.closed { std::mem::take(&mut state.waiting) } else { Vec::new() };
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn wait<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        if !self.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            self.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.inside -= 1);
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.change(|state| state.closed = false);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn who_closes_waits_for_those_inside_and_those_who_come_wait_for_him() {
        let gate = Arc::new(Gate::default());
        let (first, second) = (gate.enter().now_or_never().unwrap(), gate.enter().now_or_never().unwrap());
        let mut closing = Box::pin(gate.close());
        assert!(closing.as_mut().now_or_never().is_none());
        drop(first);
        assert!(closing.as_mut().now_or_never().is_none());
        assert!(gate.enter().now_or_never().is_none(), "it is closed while it waits");
        drop(second);
        let closed = closing.now_or_never().unwrap();
        let mut other = Box::pin(gate.close());
        assert!(other.as_mut().now_or_never().is_none(), "only one at a time");
        drop(closed);
        drop(other.now_or_never().unwrap());
        assert!(gate.enter().now_or_never().is_some());
    }

    #[test]
    fn a_closing_that_is_given_up_opens_it_again() {
        let gate = Arc::new(Gate::default());
        let inside = gate.enter().now_or_never().unwrap();
        let mut closing = Box::pin(gate.close());
        assert!(closing.as_mut().now_or_never().is_none());
        drop(closing);
        assert!(gate.enter().now_or_never().is_some());
        drop(inside);
    }
}
