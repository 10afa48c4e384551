//! Group commit: one round at a time makes durable what has been recorded, for all flushes that wait for it.
//!
//! A round runs as a task of the reactor whose flush found none under way. It is not part of that flush, whose future may
//! be dropped: a sync that fails is reported once by the kernel, so that nobody would hear of it.

use std::{
    future::poll_fn,
    io,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
};

use super::{
    layer::{LogLayer, kind_of},
    ledger::Batch,
    medium::Medium,
};
use crate::{
    block::{BlockError, ErrorKind},
    reactor::Reactor,
};

/// What queues and rounds agree about.
#[derive(Debug)]
pub(super) struct Rounds<M> {
    /// Whoever has taken it runs a round, and brings it back.
    tail: Option<Tail<M>>,
    /// Entries that are durable, of those recorded since the layer was opened.
    durable: u64,
    /// Rounds that have ended.
    ended: u64,
    /// Why the last round could not write, if it could not but nothing is lost.
    refusal: Option<Refusal>,
    /// Why nobody knows what is durable.
    failure: Option<Arc<io::Error>>,
    waiting: Vec<Waker>,
}

/// The index file, and where its next entry goes.
#[derive(Debug)]
pub(super) struct Tail<M> {
    pub(super) index: M,
    pub(super) end_bytes: u64,
    pub(super) entries: u64,
    /// Not rewritten before it has as many entries as this.
    pub(super) rewrite_at: u64,
}

#[derive(Debug)]
struct Refusal {
    /// Counted by `ended`.
    round: u64,
    upto: u64,
    cause: Arc<io::Error>,
}

/// How a round ends that has not made its batch durable.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nothing has changed; a later round may do better.
    Refused(io::Error),
    /// A sync has failed, or what comes to the same.
    Failed(io::Error),
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

impl<M> Rounds<M> {
    pub(super) fn new(tail: Tail<M>) -> Self {
        let (refusal, failure, waiting) = (None, None, Vec::new());
        Self { tail: Some(tail), durable: 0, ended: 0, refusal, failure, waiting }
    }

    pub(super) fn index_entries(&self) -> u64 {
        self.tail.as_ref().map_or(0, |tail| tail.entries)
    }

    /// Whether nothing has failed yet.
    ///
    /// # Errors
    /// That something has.
    pub(super) fn check(&self) -> Result<(), BlockError> {
        match &self.failure {
            None => Ok(()),
            Some(cause) => Err(BlockError::with_source(
                ErrorKind::Io,
                "a sync of the writable layer has failed, nobody knows what is durable: it takes no more writes",
                Arc::clone(cause),
            )),
        }
    }

    fn wait(&mut self, context: &Context<'_>) {
        if !self.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            self.waiting.push(context.waker().clone());
        }
    }

    /// What has become of the first `wanted` entries, for somebody who waits since so many rounds had ended.
    fn outcome(&self, wanted: u64, since: u64) -> Option<Result<(), BlockError>> {
        if let Err(error) = self.check() {
            return Some(Err(error));
        }
        if self.durable >= wanted {
            return Some(Ok(()));
        }
        let refusal =
            self.refusal.as_ref().filter(|refusal| refusal.round > since && wanted <= refusal.upto)?;
        let context = "cannot write the index file of the writable layer";
        Some(Err(BlockError::with_source(kind_of(&refusal.cause), context, Arc::clone(&refusal.cause))))
    }
}

impl<M: Medium> LogLayer<M> {
    /// A round without entries, for whoever writes something else to the files; waits for the one that is under way.
    ///
    /// # Errors
    /// That something has failed before.
    pub(super) async fn round(self: &Arc<Self>) -> Result<Round<M>, BlockError> {
        poll_fn(|context| {
            let mut rounds = self.rounds();
            if let Err(error) = rounds.check() {
                return Poll::Ready(Err(error));
            }
            match rounds.tail.take() {
                Some(tail) => {
                    let mut batch = Batch::default();
                    batch.upto = rounds.durable;
                    Poll::Ready(Ok(self.round_of(tail, batch)))
                }
                None => {
                    rounds.wait(context);
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn round_of(self: &Arc<Self>, tail: Tail<M>, batch: Batch) -> Round<M> {
        Round { layer: Arc::clone(self), tail: Some(tail), batch, has_ended: false }
    }

    /// Waits until the first `wanted` entries are durable.
    ///
    /// # Errors
    /// See [`LogLayer::flush`].
    pub(super) async fn durable(self: &Arc<Self>, reactor: &Reactor, wanted: u64) -> Result<(), BlockError> {
        let since = self.rounds().ended;
        poll_fn(|context| {
            let mut rounds = self.rounds();
            if let Some(outcome) = rounds.outcome(wanted, since) {
                return Poll::Ready(outcome);
            }
            rounds.wait(context);
            let tail = rounds.tail.take();
            // Only now: a reactor that has ended drops the round at once, which locks this again.
            drop(rounds);
            if let Some(tail) = tail {
                reactor.spawn(self.round_of(tail, Batch::default()).run(reactor.clone()));
            }
            Poll::Pending
        })
        .await
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
        let upto = batch.upto;
        // The ledger first: who sees that the round has ended may begin another one.
        match &ended {
            Ok(()) => self.layer.ledger_mut().settle(batch, &self.layer.pins),
            Err(Trouble::Refused(_)) => self.layer.ledger_mut().put_back(batch),
            Err(Trouble::Failed(_)) => {}
        }
        let mut rounds = self.layer.rounds();
        rounds.tail = self.tail.take();
        rounds.ended += 1;
        // A round that is dropped in the middle has lost the tail, and nobody may write any more.
        self.layer.index_entries.store(rounds.index_entries(), Ordering::Relaxed);
        match ended {
            Ok(()) => {
                rounds.durable = upto;
                self.layer.metrics.rounds.inc();
            }
            Err(Trouble::Refused(cause)) => {
                tracing::warn!(layer = %self.layer.data, %cause, "cannot write the index file");
                rounds.refusal = Some(Refusal { round: rounds.ended, upto, cause: Arc::new(cause) });
            }
            Err(Trouble::Failed(cause)) => {
                tracing::error!(layer = %self.layer.data, %cause, "a sync has failed: no more writes");
                rounds.failure = Some(Arc::new(cause));
            }
        }
        let waiting = std::mem::take(&mut rounds.waiting);
        drop(rounds);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl<M: Medium> Drop for Round<M> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(Err(Trouble::Failed(io::Error::other("the thread that ran a flush has ended"))));
        }
    }
}
