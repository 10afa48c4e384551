//! Which requests of a queue are being worked at, and the end of that when its device is left to the next server.

use std::sync::atomic::{AtomicU32, Ordering};

/// No request is let in any more. A queue has far fewer tags than this.
const CLOSED: u32 = 1 << 31;

/// Counts the requests of one queue that are being worked at, until it is closed.
#[derive(Debug, Default)]
pub(super) struct Gate(AtomicU32);

/// One request that is being worked at, until it is dropped.
pub(super) struct AtWork<'a>(&'a Gate);

impl Gate {
    /// Lets a request in. Where the device has been left there is none: the kernel sends the request to the next server, so this
    /// one must neither touch nor answer it.
    pub(super) fn enter(&self) -> Option<AtWork<'_>> {
        let inside = AtWork(self);
        (self.0.fetch_add(1, Ordering::AcqRel) & CLOSED == 0).then_some(inside)
    }

    /// Lets no request in from now on.
    pub(super) fn close(&self) {
        self.0.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Whether it is closed, and all that were let in have ended.
    pub(super) fn has_emptied(&self) -> bool {
        self.0.load(Ordering::Acquire) == CLOSED
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_empties_when_the_last_request_has_ended_and_lets_none_in() {
        let gate = Gate::default();
        let first = gate.enter().unwrap();
        drop(gate.enter().unwrap());
        gate.close();
        assert!(gate.enter().is_none() && !gate.has_emptied());
        drop(first);
        assert!(gate.has_emptied() && gate.enter().is_none() && gate.has_emptied());
    }
}
