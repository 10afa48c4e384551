//! How much a queue may do in one turn of the loop, so that the thread's other queues have theirs soon.
//!
//! Tasks are polled one after the other and cannot be interrupted. So work that takes the processor is done in stretches, and all
//! requests of a queue together get no more than [`TURN_BYTES`] in a turn: a queue with many requests gets as much as one with a
//! single one. Those that wait for the next turn have theirs in the order in which they came.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    task::{Context, Poll},
};

use super::WaitList;

/// Bytes that a queue may decode in a turn of the loop: 0.2 ms with zstd, and more than the ring's system call of each turn costs.
const TURN_BYTES: usize = 128 << 10;

/// How many bytes are copied in the time in which one is decoded.
const COPY_SHARE: usize = 8;

/// The turns of one queue.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The turn that `used` is of.
    turn: Cell<u64>,
    used: Cell<usize>,
    waiting: RefCell<WaitList>,
}

impl Pace {
    /// Bytes have been decoded.
    pub(super) fn decoded(&self, bytes: usize) {
        self.used.set(self.used.get().saturating_add(bytes));
    }

    /// Bytes have been copied.
    pub(super) fn copied(&self, bytes: usize) {
        self.decoded(bytes / COPY_SHARE);
    }

    /// Whether whoever has `ticket`, or comes without one, may work in the turn `now`: how many bytes it may decode, if so.
    fn poll(&self, now: u64, ticket: &mut Option<u64>, cx: &Context<'_>) -> Poll<usize> {
        if self.turn.replace(now) != now {
            self.used.set(0);
        }
        let left = TURN_BYTES.saturating_sub(self.used.get());
        let mut waiting = self.waiting.borrow_mut();
        let is_first = waiting.first().is_none_or(|(first, ())| Some(first) == *ticket);
        if is_first && left > 0 {
            if let Some(ticket) = ticket.take() {
                waiting.remove(ticket);
            }
            let next = waiting.first_waker();
            drop(waiting);
            if let Some(next) = next {
                next.wake();
            }
            return Poll::Ready(left);
        }
        match *ticket {
            Some(ticket) => drop(waiting.renew(ticket, cx.waker())),
            None => *ticket = Some(waiting.push((), cx.waker())),
        }
        drop(waiting);
        if is_first {
            // In the next turn.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Whoever has this ticket waits no more.
    fn leave(&self, ticket: u64) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.remove(ticket);
        let next = waiting.first_waker();
        drop(waiting);
        if let Some(next) = next {
            next.wake();
        }
    }
}

/// Waits until the queue may work.
pub(super) struct Stretch<'a> {
    pace: &'a Pace,
    /// The number of the turn.
    now: &'a Cell<u64>,
    ticket: Option<u64>,
}

impl<'a> Stretch<'a> {
    pub(super) fn new(pace: &'a Pace, now: &'a Cell<u64>) -> Self {
        Self { pace, now, ticket: None }
    }
}

impl Future for Stretch<'_> {
    type Output = usize;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<usize> {
        let Self { pace, now, .. } = *self;
        pace.poll(now.get(), &mut self.ticket, cx)
    }
}

impl Drop for Stretch<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.pace.leave(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_queue_works_so_much_a_turn_and_who_waits_is_first_in_the_next() {
        let (pace, cx) = (Pace::default(), Context::from_waker(Waker::noop()));
        let [mut first, mut second, mut third] = [None; 3];
        assert_eq!(pace.poll(1, &mut first, &cx), Poll::Ready(TURN_BYTES));
        pace.decoded(TURN_BYTES - 1);
        assert_eq!(pace.poll(1, &mut first, &cx), Poll::Ready(1));
        pace.copied(COPY_SHARE);
        assert!(pace.poll(1, &mut first, &cx).is_pending());
        assert!(pace.poll(2, &mut second, &cx).is_pending(), "another was there before");
        assert!(pace.poll(2, &mut first, &cx).is_ready());
        pace.decoded(5 * TURN_BYTES);
        assert!(pace.poll(2, &mut second, &cx).is_pending());
        assert!(pace.poll(3, &mut third, &cx).is_pending());
        pace.leave(second.unwrap());
        assert_eq!(pace.poll(3, &mut third, &cx), Poll::Ready(TURN_BYTES));
        assert!(pace.waiting.borrow().is_empty());
    }
}
