//! Group commit: one round at a time makes durable what has been recorded, for all flushes that wait for it.
//!
//! A round runs as a task of the reactor whose flush found none under way. It is not part of that flush, whose future may
//! be dropped: a sync that fails is reported once by the kernel, so that nobody would hear of it.

use std::{io, ops::ControlFlow, sync::Arc};

use super::error::kind_of;
use crate::{
    block::{BlockError, ErrorKind},
    reactor::{Watched, waiting_for},
};

/// What queues and rounds agree about. `T` is what whoever runs a round needs, and only one can have.
#[derive(Debug)]
pub(super) struct Rounds<T>(Watched<State<T>>);

#[derive(Debug)]
struct State<T> {
    /// Whoever has taken it runs a round, and brings it back.
    turn: Option<T>,
    /// Changes that are durable, of those recorded since the layer was opened.
    durable: u64,
    /// Rounds that have ended.
    ended: u64,
    /// Why the last round could not write, if it could not but nothing is lost.
    refusal: Option<Refusal>,
    /// Why nobody knows what is durable.
    failure: Option<Arc<io::Error>>,
}

#[derive(Debug)]
struct Refusal {
    /// Counted by `ended`.
    round: u64,
    upto: u64,
    cause: Arc<io::Error>,
}

/// How a round ends that has not made durable what it was to.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nothing has changed; a later round may do better.
    Refused(io::Error),
    /// A sync has failed: nobody knows what the disk has of what memory has.
    Failed(io::Error),
    /// It has not come to its end, and nobody has lost anything: whoever opens the layer next may go on.
    Interrupted(io::Error),
}

impl<T> Rounds<T> {
    pub(super) fn new(turn: T) -> Self {
        Self(Watched::new(State { turn: Some(turn), durable: 0, ended: 0, refusal: None, failure: None }))
    }

    /// Whether nothing has failed yet.
    ///
    /// # Errors
    /// That something has.
    pub(super) fn check(&self) -> Result<(), BlockError> {
        self.0.look(|state| state.check())
    }

    /// How many changes are durable, of those recorded since the layer was opened.
    pub(super) fn durable_changes(&self) -> u64 {
        self.0.look(|state| state.durable)
    }

    /// Waits until the first `wanted` changes are durable; `begin` begins a round where none is under way.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] where a later round may do better; anything after a failed sync.
    pub(super) async fn durable(&self, wanted: u64, mut begin: impl FnMut(T)) -> Result<(), BlockError> {
        let since = self.0.look(|state| state.ended);
        loop {
            let found = self.0.wait(|state| match state.outcome(wanted, since) {
                Some(outcome) => Some(ControlFlow::Break(outcome)),
                None => state.turn.take().map(ControlFlow::Continue),
            });
            match waiting_for(|| "the disk, to make the writable layer durable", found).await {
                ControlFlow::Break(outcome) => return outcome,
                ControlFlow::Continue(turn) => begin(turn),
            }
        }
    }

    /// Takes the turn for something else than a round of flushes, once none is under way. Also returns how many changes are
    /// durable.
    ///
    /// # Errors
    /// That something has failed before.
    pub(super) async fn turn(&self) -> Result<(T, u64), BlockError> {
        let taken = self.0.wait(|state| match state.check() {
            Err(error) => Some(Err(error)),
            Ok(()) => state.turn.take().map(|turn| Ok((turn, state.durable))),
        });
        taken.await
    }

    /// Brings the turn back, of a round that was to make the first `upto` changes durable, and tells everybody. Where the turn
    /// is lost nobody may write any more, which is to be `ended`.
    pub(super) fn end(&self, turn: Option<T>, upto: u64, ended: Result<(), Trouble>) {
        self.0.change(|state| {
            state.turn = turn;
            state.ended += 1;
            match ended {
                Ok(()) => state.durable = upto,
                Err(Trouble::Refused(cause)) => {
                    state.refusal = Some(Refusal { round: state.ended, upto, cause: Arc::new(cause) });
                }
                Err(Trouble::Failed(cause) | Trouble::Interrupted(cause)) => {
                    drop(state.fail(Arc::new(cause)));
                }
            }
        });
    }

    /// From now on nobody may write any more. Returns what everybody is told.
    pub(super) fn fail(&self, cause: io::Error) -> BlockError {
        self.0.change(|state| state.fail(Arc::new(cause)))
    }
}

impl<T> State<T> {
    fn check(&self) -> Result<(), BlockError> {
        match &self.failure {
            None => Ok(()),
            Some(cause) => Err(failure(cause)),
        }
    }

    fn fail(&mut self, cause: Arc<io::Error>) -> BlockError {
        let told = failure(&cause);
        self.failure = Some(cause);
        told
    }

    /// What has become of the first `wanted` changes, for somebody who waits since so many rounds had ended.
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

fn failure(cause: &Arc<io::Error>) -> BlockError {
    let context =
        "a sync of the writable layer has failed, nobody knows what is durable: it takes no more writes";
    BlockError::with_source(ErrorKind::Io, context, Arc::clone(cause))
}
