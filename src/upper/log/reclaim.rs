//! Gives dead room of the data file back to the file system.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::LogLayer;
use crate::{
    block::{ByteRange, SECTOR_BYTES},
    reactor::Reactor,
    upper::medium::Medium,
};

/// Says that nobody reclaims any more, also when the task is dropped.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<M: Medium> LogLayer<M> {
    /// Punches dead blocks out until too few are left. Called after each round, for that is when room dies; one thread at a
    /// time does it. What fails stays allocated until the layer is opened again.
    pub(super) async fn reclaim(self: &Arc<Self>, reactor: &Reactor) {
        if self.rounds.check().is_err() || self.reclaiming.swap(true, Ordering::Acquire) {
            return;
        }
        let _turn = Turn(&self.reclaiming);
        loop {
            let blocks = {
                let mut ledger = self.ledger_mut();
                if ledger.dead.whole_sectors() < self.limits.dead_bytes.div_ceil(SECTOR_BYTES).max(1) {
                    return;
                }
                ledger.dead.take_blocks()
            };
            for run in blocks {
                if self.closing.load(Ordering::Relaxed) {
                    return;
                }
                let bytes = |sector: u64| sector.saturating_mul(SECTOR_BYTES);
                let range = ByteRange::between(bytes(run.start), bytes(run.end));
                if let Err(error) = self.data.punch(reactor, range).await {
                    log_failure(&self.data, &error);
                    break;
                }
            }
        }
    }
}

fn log_failure(data: &impl Medium, error: &io::Error) {
    tracing::warn!(layer = %data, %error, "cannot give room of a writable layer back to the file system");
}
