//! Counts the reads that are under way, so that nothing is given back under them.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicUsize, Ordering},
    task::Poll,
};

use futures_util::task::AtomicWaker;

/// Reads under way, by epoch, of two at a time. Raised while the ledger is locked for reading, so that no epoch ends meanwhile.
#[derive(Debug, Default)]
pub(super) struct Pins {
    counts: [AtomicUsize; 2],
    /// Whoever waits for the last read of an epoch; one at a time does.
    waiting: AtomicWaker,
}

/// Keeps what was found in the map from being given back until it is dropped.
#[derive(Debug)]
pub(in crate::upper) struct Pin<'a> {
    pins: &'a Pins,
    epoch: u64,
}

impl Pins {
    pub(super) fn pin(&self, epoch: u64) -> Pin<'_> {
        self.of(epoch).fetch_add(1, Ordering::Relaxed);
        Pin { pins: self, epoch }
    }

    pub(super) fn count(&self, epoch: u64) -> usize {
        // Pairs with the end of a pin: what was read before it has been read.
        self.of(epoch).load(Ordering::Acquire)
    }

    fn of(&self, epoch: u64) -> &AtomicUsize {
        let [even, odd] = &self.counts;
        if epoch.is_multiple_of(2) { even } else { odd }
    }

    /// Waits until `is_over`, which is asked again whenever the last read of an epoch has ended.
    pub(super) async fn wait_until(&self, mut is_over: impl FnMut() -> bool) {
        poll_fn(|context| {
            self.waiting.register(context.waker());
            if is_over() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        if self.pins.of(self.epoch).fetch_sub(1, Ordering::Release) == 1 {
            self.pins.waiting.wake();
        }
    }
}
