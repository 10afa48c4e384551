//! Whether all is well, for those who watch the daemon: whether it serves, and whether all devices are there.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::timeout;

use super::Daemon;
use crate::server::{
    api::types::Health,
    failure::{Failure, FailureClass},
};

/// How long the threads that serve devices may take to answer somebody who asks whether all is well.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Whether the daemon is still finding out which devices a former one has left.
#[derive(Debug, Default)]
pub(super) struct Start(AtomicBool);

impl Start {
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Daemon {
    /// How the daemon is, when all threads that serve devices answer.
    ///
    /// # Errors
    /// [`FailureClass::TimedOut`] where one does not.
    pub async fn health(&self) -> Result<Health, Failure> {
        let answered = timeout(ANSWER_LIMIT, self.service.reactors().answer()).await;
        let hangs = |_| Failure::new(FailureClass::TimedOut, "a thread that serves devices does not answer");
        answered.map_err(hangs)?;
        let waiting = self.waiting.count();
        let is_starting = self.start.0.load(Ordering::Acquire);
        let status = if is_starting || waiting > 0 { "starting" } else { "ok" };
        Ok(Health { status: status.to_owned(), devices: self.table.served().len(), waiting })
    }
}
