//! Lets changes in, or keeps them out until those under way have ended.

use std::sync::Arc;

use crate::reactor::{Watched, waiting_for};

/// The gate.
#[derive(Debug, Default)]
pub(super) struct Gate(Watched<State>);

#[derive(Debug, Default)]
struct State {
    inside: usize,
    closed: bool,
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
        let opened = self.0.wait(|state| (!state.closed).then(|| state.inside += 1));
        waiting_for(|| "the end of what keeps writes out: a snapshot, a fork or a change of size", opened)
            .await;
        Inside(self)
    }

    /// Closes the gate, which only one can at a time, and waits until no change is under way any more.
    pub(super) async fn close(self: &Arc<Self>) -> Closed {
        self.0.wait(|state| (!state.closed).then(|| state.closed = true)).await;
        // It opens again if this is given up.
        let closed = Closed(Arc::clone(self));
        self.0.wait(|state| (state.inside == 0).then_some(())).await;
        closed
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.0.change(|state| state.inside -= 1);
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.0.change(|state| state.closed = false);
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
