//! Another program for a daemon with devices: what is refused before it begins, and what has become of the last one.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{Daemon, blocking, detached};
use crate::server::{
    api::types::{DaemonInfo, UpgradeDaemon, UpgradeStarted},
    failure::{Failure, FailureClass},
    upgrade::{self, Succession},
};

/// How long the new process may take to be prepared, and again to serve, where nobody says.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The upgrades of a daemon, one after the other.
#[derive(Debug, Default)]
pub(super) struct Upgrades {
    /// Held while one is prepared.
    turn: tokio::sync::Mutex<()>,
    prepared: Mutex<Option<Succession>>,
    is_prepared: Notify,
    failure: Mutex<Option<String>>,
}

impl Upgrades {
    /// Waits for a process that is prepared to take over.
    pub(super) async fn next(&self) -> Succession {
        loop {
            let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(succession) = prepared {
                return succession;
            }
            self.is_prepared.notified().await;
        }
    }

    /// What the last one has failed by, if it has.
    pub(super) fn note_failure(&self, failure: Option<String>) {
        if let Some(reason) = &failure {
            tracing::error!(reason, "an upgrade has failed: this program goes on");
        }
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    fn has_prepared(&self, succession: Succession) {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(succession);
        self.is_prepared.notify_one();
    }
}

impl Daemon {
    /// Has another program take all devices over. Returns when it is prepared; then this process stops serving in a moment.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] where devices would not outlive this process, and where the program does not come so far.
    pub async fn upgrade(self: &Arc<Self>, wanted: UpgradeDaemon) -> Result<UpgradeStarted, Failure> {
        let daemon = Arc::clone(self);
        detached(async move {
            let _turn = daemon.upgrades.turn.lock().await;
            if daemon.table.is_closed() {
                return Err(Failure::new(FailureClass::Conflict, "the daemon is stopping"));
            }
            let mortal: Vec<String> = (daemon.table.served().iter())
                .filter(|served| !daemon.stays(served))
                .map(|served| served.info.id.to_string())
                .collect();
            if !mortal.is_empty() && !wanted.force {
                let text = format!(
                    "devices {} do not outlive this daemon and would go: remove them first, or use --force",
                    mortal.join(", ")
                );
                return Err(Failure::new(FailureClass::Conflict, text));
            }
            daemon.upgrades.note_failure(None);
            let timeout = wanted.timeout_ms.map_or(DEFAULT_TIMEOUT, Duration::from_millis);
            let preparing = blocking(move || upgrade::prepare(wanted.binary.as_deref(), timeout));
            let succession = preparing.await.inspect_err(|failure| {
                daemon.upgrades.note_failure(Some(failure.full_text()));
            })?;
            let pid = succession.pid();
            daemon.upgrades.has_prepared(succession);
            Ok(UpgradeStarted { pid })
        })
        .await
    }

    /// What this process is.
    #[must_use]
    pub fn describe(&self) -> DaemonInfo {
        DaemonInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            failed_upgrade: self.upgrades.failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Makes sure that all of `devices` are served here.
    ///
    /// # Errors
    /// Which are not, and why the first is not.
    pub(super) fn check_all_serve(&self, devices: &[u32]) -> Result<(), Failure> {
        let missing: Vec<u32> = devices.iter().copied().filter(|id| self.table.live(*id).is_err()).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let reasons = self.waiting.all();
        let reason = reasons.iter().find(|waiting| waiting.id == *first);
        let reason = reason.map_or("it has not come yet", |waiting| waiting.reason.as_str());
        let text = format!(
            "{} of {} devices cannot be taken over, {first} since: {reason}",
            missing.len(),
            devices.len()
        );
        Err(Failure::new(FailureClass::Internal, text))
    }
}
