//! Those who wait for something, in the order in which they came.

use std::{collections::VecDeque, task::Waker};

/// A list of those who wait, each with what it waits for. It is a part of the state that is waited for, under the same lock or
/// borrow; whoever waits keeps the ticket, and gives it back when it waits no more. Wakers are handed out and never called here,
/// since a waker may come back for the same state.
#[derive(Debug)]
pub(super) struct WaitList<T = ()> {
    /// By ticket, which grow.
    entries: VecDeque<Entry<T>>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Entry<T> {
    ticket: u64,
    wanted: T,
    waker: Waker,
}

impl<T> WaitList<T> {
    /// Puts somebody at the end who wants this; returns its ticket.
    pub(super) fn push(&mut self, wanted: T, waker: &Waker) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.entries.push_back(Entry { ticket, wanted, waker: waker.clone() });
        ticket
    }

    /// Whoever has this ticket is to be woken by `waker`; returns whether it still waits.
    pub(super) fn renew(&mut self, ticket: u64, waker: &Waker) -> bool {
        let found = self.position(ticket).and_then(|at| self.entries.get_mut(at));
        found.map(|entry| entry.waker.clone_from(waker)).is_some()
    }

    /// Whoever has this ticket waits no more; returns whether it did until now.
    pub(super) fn remove(&mut self, ticket: u64) -> bool {
        self.position(ticket).and_then(|at| self.entries.remove(at)).is_some()
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The ticket of the first, and what it wants.
    pub(super) fn first(&self) -> Option<(u64, &T)> {
        self.entries.front().map(|entry| (entry.ticket, &entry.wanted))
    }

    /// How to wake the first, which goes on waiting.
    pub(super) fn first_waker(&self) -> Option<Waker> {
        self.entries.front().map(|entry| entry.waker.clone())
    }

    /// Takes the first out; returns how to wake it.
    pub(super) fn pop(&mut self) -> Option<Waker> {
        self.entries.pop_front().map(|entry| entry.waker)
    }

    /// Takes all out; returns how to wake them.
    pub(super) fn drain(&mut self) -> Vec<Waker> {
        self.entries.drain(..).map(|entry| entry.waker).collect()
    }

    fn position(&self, ticket: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&ticket, |entry| entry.ticket).ok()
    }
}

impl<T> Default for WaitList<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), next_ticket: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_order_and_forgets_who_has_gone() {
        let mut list = WaitList::default();
        let [first, second, third] = ["a", "b", "c"].map(|wanted| list.push(wanted, Waker::noop()));
        assert!(list.remove(first) && !list.remove(first) && !list.renew(first, Waker::noop()));
        assert_eq!(list.first(), Some((second, &"b")));
        assert!(list.renew(third, Waker::noop()));
        assert!(list.pop().is_some() && !list.renew(second, Waker::noop()));
        assert_eq!(list.first(), Some((third, &"c")));
        assert!(list.remove(third) && list.is_empty() && list.pop().is_none());
    }
}
