//! Gives dead room of the data file back to the file system.

use std::ops::Range;

use super::LogLayer;
use crate::{
    block::{ByteRange, SECTOR_BYTES},
    reactor::Reactor,
    upper::medium::Medium,
};

/// Ranges that are counted among the dead at a time, while the ledger is locked.
const RANGES_AT_ONCE: usize = 512;

impl<M: Medium> LogLayer<M> {
    /// Punches dead blocks out where there are too many. Called after each round, for that is when room dies; one thread at a
    /// time does it.
    pub(super) async fn reclaim(&self, reactor: &Reactor) {
        self.bury(reactor).await;
        let limit = self.limits.dead_bytes.div_ceil(SECTOR_BYTES).max(1);
        let dead = self.ledger().dead_sectors();
        if dead < limit {
            return;
        }
        if let Some(_turn) = self.punching.try_lock() {
            self.punch(reactor).await;
        }
    }

    /// Punches all dead blocks out, when reads have ended that may go there; one at a time does it.
    pub(super) async fn reclaim_all(&self, reactor: &Reactor) {
        // Reads that begin meanwhile keep nothing of what is superseded by now.
        let last = self.ledger().epoch().saturating_add(2);
        self.pins
            .wait_until(|| {
                let mut ledger = self.ledger_mut();
                ledger.turn_epochs(&self.pins) || ledger.epoch() >= last
            })
            .await;
        self.bury(reactor).await;
        let _turn = self.punching.lock().await;
        self.punch(reactor).await;
    }

    async fn bury(&self, reactor: &Reactor) {
        while self.ledger_mut().bury(RANGES_AT_ONCE) {
            reactor.yield_now().await;
        }
    }

    /// What fails stays allocated until the layer is opened again.
    async fn punch(&self, reactor: &Reactor) {
        while let Some(run) = self.take_dead() {
            let bytes = |sector: u64| sector.saturating_mul(SECTOR_BYTES);
            let range = ByteRange::between(bytes(run.start), bytes(run.end));
            if let Err(error) = self.data.punch(reactor, range).await {
                let layer = &self.data;
                tracing::warn!(%layer, %error, "cannot give room of a writable layer back to the file system");
                return;
            }
            // Before that there is enough at the end, and many holes would take memory for nothing.
            if self.end.is_reusing() {
                self.ledger_mut().is_given_back(run);
            }
        }
    }

    fn take_dead(&self) -> Option<Range<u64>> {
        // After a failed sync nobody knows what is dead.
        self.rounds.check().ok()?;
        self.ledger_mut().take_dead()
    }
}
