//! Gives back all that can be: when there is no room, when nothing is written for a while, and at the end.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures_util::lock::Mutex;

use super::LogLayer;
use crate::{
    block::{BlockError, ErrorKind},
    reactor::Reactor,
    upper::medium::Medium,
};

/// Whose turn it is, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Relief {
    turn: Mutex<()>,
    /// How often everything was given back.
    ended: AtomicU64,
    /// Whether a task waits for writes to cease.
    is_awaited: AtomicBool,
}

impl<M: Medium> LogLayer<M> {
    /// Runs `attempt`; where it finds no room, all that can be given back is, once for all who find none at the same time, and
    /// it runs once more.
    ///
    /// # Errors
    /// Those of the last attempt.
    pub(super) async fn with_room<T, E>(
        self: &Arc<Self>,
        reactor: &Reactor,
        lacks_room: impl Fn(&E) -> bool,
        attempt: impl AsyncFn() -> Result<T, E>,
    ) -> Result<T, E> {
        match attempt().await {
            Err(error) if lacks_room(&error) => {
                let ended = self.relief.ended.load(Ordering::Acquire);
                let turn = self.relief.turn.lock().await;
                if self.relief.ended.load(Ordering::Acquire) == ended {
                    // What is in its way is in the way of the attempt too, which tells of it.
                    let _ = self.make_room(reactor).await;
                }
                drop(turn);
                attempt().await
            }
            ended => ended,
        }
    }

    /// Makes durable what has completed, and gives back all that is dead then.
    ///
    /// # Errors
    /// As of a flush.
    pub(in crate::upper) async fn give_back(self: &Arc<Self>, reactor: &Reactor) -> Result<(), BlockError> {
        let _turn = self.relief.turn.lock().await;
        self.make_room(reactor).await
    }

    async fn make_room(self: &Arc<Self>, reactor: &Reactor) -> Result<(), BlockError> {
        let recorded = self.ledger().recorded();
        let mut durable = self.rounds.durable_changes();
        loop {
            // Where the index file has no room, only what is dead already can make some for it; each time it gets further.
            self.reclaim_all(reactor).await;
            match self.durable(reactor, recorded).await {
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    let before = std::mem::replace(&mut durable, self.rounds.durable_changes());
                    if durable == before {
                        return Err(error);
                    }
                }
                ended => break ended?,
            }
        }
        self.reclaim_all(reactor).await;
        // Before others take the room.
        let mut round = self.round().await?;
        round.keep_ahead(reactor).await;
        round.end(Ok(()));
        self.relief.ended.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Gives everything back when nothing is written for a while. Called with each change.
    pub(in crate::upper) fn await_idleness(self: &Arc<Self>, reactor: &Reactor) {
        let is_awaited = &self.relief.is_awaited;
        if !is_awaited.load(Ordering::Relaxed) && !is_awaited.swap(true, Ordering::AcqRel) {
            reactor.spawn(Watch(Arc::downgrade(self)).run(reactor.clone()));
        }
    }
}

/// Waits for writes to cease. It does not keep the layer open.
struct Watch<M: Medium>(Weak<LogLayer<M>>);

impl<M: Medium> Watch<M> {
    async fn run(self, reactor: Reactor) {
        let mut before = None;
        loop {
            let Some(layer) = self.0.upgrade() else { return };
            let recorded = layer.ledger().recorded();
            if before == Some(recorded) {
                // Whoever writes from now on has another task wait.
                drop(self);
                if let Err(error) = layer.give_back(&reactor).await {
                    tracing::debug!(layer = %layer.data, %error, "cannot give room back while nothing is written");
                }
                return;
            }
            before = Some(recorded);
            let idle = layer.limits.idle;
            drop(layer);
            reactor.sleep(idle).await;
        }
    }
}

impl<M: Medium> Drop for Watch<M> {
    fn drop(&mut self) {
        if let Some(layer) = self.0.upgrade() {
            layer.relief.is_awaited.store(false, Ordering::Release);
        }
    }
}
