//! One round of flushes of a log-structured layer: what it has taken, and how it ends.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use super::{LogLayer, ledger::Batch};
use crate::{
    block::BlockError,
    reactor::Reactor,
    upper::{medium::Medium, rounds::Trouble},
};

/// The index file, and where its next entry goes.
#[derive(Debug)]
pub(super) struct Tail<M> {
    pub(super) index: M,
    pub(super) end_bytes: u64,
    pub(super) entries: u64,
    /// Not rewritten before it has as many entries as this.
    pub(super) rewrite_at: u64,
    /// The file system keeps room for it up to here.
    pub(super) kept_to_bytes: u64,
}

/// One round. Dropped in the middle, with its reactor, it has failed.
#[derive(Debug)]
pub(super) struct Round<M: Medium> {
    pub(super) layer: Arc<LogLayer<M>>,
    /// `None` while it is written to, and once it has been brought back.
    pub(super) tail: Option<Tail<M>>,
    pub(super) batch: Batch,
    pub(super) has_ended: bool,
}

impl<M: Medium> LogLayer<M> {
    /// A round without entries, for whoever writes something else to the files; waits for the one that is under way.
    ///
    /// # Errors
    /// That something has failed before.
    pub(super) async fn round(self: &Arc<Self>) -> Result<Round<M>, BlockError> {
        let (tail, durable) = self.rounds.turn().await?;
        let mut batch = Batch::default();
        batch.upto = durable;
        Ok(self.round_of(tail, batch))
    }

    fn round_of(self: &Arc<Self>, tail: Tail<M>, batch: Batch) -> Round<M> {
        Round { layer: Arc::clone(self), tail: Some(tail), batch, has_ended: false }
    }

    /// Waits until the first `wanted` entries are durable.
    ///
    /// # Errors
    /// See [`LogLayer::flush`].
    pub(super) async fn durable(self: &Arc<Self>, reactor: &Reactor, wanted: u64) -> Result<(), BlockError> {
        let begin = |tail| reactor.spawn(self.round_of(tail, Batch::default()).run(reactor.clone()));
        self.rounds.durable(wanted, begin).await
    }
}

impl<M: Medium> Round<M> {
    async fn run(mut self, reactor: Reactor) {
        let layer = Arc::clone(&self.layer);
        let ended = self.write(&reactor).await;
        self.end(ended);
        drop(self);
        layer.reclaim(&reactor).await;
    }

    /// Brings the tail back, tells everybody, and lets go of what the batch has superseded.
    pub(super) fn end(&mut self, ended: Result<(), Trouble>) {
        self.has_ended = true;
        let batch = std::mem::take(&mut self.batch);
        let mut upto = batch.upto;
        let layer = &self.layer;
        // The ledger first: who sees that the round has ended may begin another one.
        match &ended {
            Ok(()) => {
                layer.ledger_mut().settle(batch, &layer.pins);
                layer.metrics.rounds.inc();
            }
            Err(Trouble::Refused(cause)) => {
                let mut ledger = layer.ledger_mut();
                ledger.put_back(batch);
                // Nor would there be room for what has come since.
                upto = ledger.recorded();
                drop(ledger);
                tracing::warn!(layer = %layer.data, %cause, "cannot write the index file");
            }
            Err(Trouble::Failed(cause)) => {
                layer.ledger_mut().discard_journal();
                tracing::error!(layer = %layer.data, %cause, "a sync has failed: no more writes");
            }
            Err(Trouble::Interrupted(cause)) => {
                tracing::error!(layer = %layer.data, %cause, "a flush was interrupted: no more writes");
            }
        }
        let tail = self.tail.take();
        // A round that is dropped in the middle has lost the tail, and nobody may write any more.
        let entries = tail.as_ref().map_or(0, |tail| tail.entries);
        layer.index_entries.store(entries, Ordering::Relaxed);
        layer.rounds.end(tail, upto, ended);
    }
}

impl<M: Medium> Drop for Round<M> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(Err(Trouble::Interrupted(io::Error::other("the thread that ran a flush has ended"))));
        }
    }
}
