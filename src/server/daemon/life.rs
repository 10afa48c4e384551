//! The daemon from start to end: lock, devices of its forerunner, socket, signals, and the way out.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use sd_notify::NotifyState;
use tokio::time::{sleep, timeout};

use super::{
    Daemon, blocking, detached, device_work,
    fate::{Fate, fate},
};
use crate::{
    frontend::Detached,
    server::{
        api::{ApiLimits, ApiListener},
        failure::{Failure, FailureClass, full_text},
        interrupt::Interrupt,
        port::Port,
        service::Service,
        state::{StateDir, Stored},
    },
};

/// How often a removal that somebody else has begun is looked after.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How often re-attach tries to free a number that a program holds, and how long it waits in between.
const CLEAR_ATTEMPTS: u32 = 3;
const CLEAR_INTERVAL: Duration = Duration::from_secs(1);

/// What a daemon is made of.
#[derive(Clone)]
pub struct DaemonParts {
    /// Reactors, images and the way to their data.
    pub service: Arc<Service>,
    /// What carries the requests.
    pub port: Arc<dyn Port>,
}

/// Serves until SIGTERM, SIGINT or SIGHUP, then removes all devices within the configured time.
///
/// # Errors
/// When the daemon cannot start, or devices are left at the end.
pub async fn run(parts: DaemonParts) -> Result<(), Failure> {
    let config = parts.service.config().clone();
    let mut signals = Interrupt::catch()?;
    let dir = config.daemon.state_dir.clone();
    let state = blocking(move || {
        StateDir::open(&dir).map_err(|source| {
            Failure::with_source(FailureClass::Conflict, "cannot use the state directory", source)
        })
    });
    let daemon = Daemon::new(parts, state.await?);
    daemon.reserve.check_room()?;
    let mode = config.socket_mode().unwrap_or(0o600);
    let metrics = config.daemon.metrics_listen.parse().ok();
    let listener = ApiListener::bind(&config.daemon.socket, mode, metrics).await.map_err(|source| {
        Failure::with_source(FailureClass::Internal, "cannot offer the control API", source)
    })?;
    let serving = async {
        if config.daemon.reattach {
            daemon.reattach().await?;
        }
        notify(&[NotifyState::Ready]);
        tracing::info!(socket = %config.daemon.socket.display(), "ready");
        match listener.serve(Arc::clone(&daemon), ApiLimits::default()).await {}
    };
    let until_told = async {
        tokio::select! {
            failed = serving => failed,
            () = signals.wait() => Ok(()),
        }
    };
    // The devices of a thread that has failed hang for as long as this process lives; the service manager starts the next one.
    daemon.service.reactors().while_all_run(until_told).await?;
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping");
    drop(listener);
    let drained = daemon.drain(Duration::from_millis(config.daemon.drain_timeout_ms)).await;
    daemon.service.factory().sync_cache().await;
    drained
}

impl Daemon {
    /// Attaches again what a former process has left in the state directory. One that fails does not stop the others.
    ///
    /// # Errors
    /// When the records cannot be listed.
    pub async fn reattach(self: &Arc<Self>) -> Result<(), Failure> {
        let stored = self.stored().await?;
        if stored.is_empty() {
            return Ok(());
        }
        let known = {
            let port = Arc::clone(&self.port);
            device_work(move || port.known()).await?
        };
        let decided = stored.into_iter().filter_map(|Stored { id, record }| {
            let fate = fate(&record, known.iter().find(|device| device.id == id));
            match record {
                Ok(record) if fate != Fate::LeaveAlone => return Some((fate, record)),
                Ok(_) => {
                    tracing::warn!(id, "another process serves this device; its record is left alone");
                }
                Err(error) => {
                    tracing::warn!(id, error = full_text(&error), "the record of this device is left alone");
                }
            }
            None
        });
        let limit = Duration::from_millis(self.config().device.detach_timeout_ms);
        let attached = decided.map(|(fate, record)| async move {
            let id = record.id;
            let daemon = Arc::clone(self);
            let attached = match self.clear(id, limit).await {
                // A task of its own: it must not be dropped half way when the daemon is told to stop.
                Ok(()) if fate == Fate::Remove => {
                    detached(async move { daemon.finish_removal(record).await }).await
                }
                Ok(()) => detached(async move { daemon.make_again(record).await.map(drop) }).await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = attached {
                tracing::error!(id, error = failure.full_text(), "a device could not be attached again");
            }
        });
        join_all(attached).await;
        Ok(())
    }

    /// Makes the number `id` free.
    async fn clear(&self, id: u32, limit: Duration) -> Result<(), Failure> {
        for _ in 0..CLEAR_ATTEMPTS {
            let port = Arc::clone(&self.port);
            match device_work(move || port.remove_orphan(id, limit)).await? {
                Detached::Complete => return Ok(()),
                Detached::HeldOpen => {
                    tracing::warn!(id, "a program has what is left of the device open, or has it mounted");
                    sleep(CLEAR_INTERVAL).await;
                }
            }
        }
        let text = format!("a program still has the former device {id} open, or has it mounted");
        Err(Failure::new(FailureClass::Conflict, text))
    }

    /// Lets no device come any more, waits for those that are being made, which then go again, and removes all.
    ///
    /// # Errors
    /// When some are left after `limit`.
    pub async fn drain(self: &Arc<Self>, limit: Duration) -> Result<(), Failure> {
        self.table.close();
        let _room = self.reserve.lend_all();
        let removals = self.table.served().into_iter().map(|served| async move {
            let id = served.info.id;
            self.table.begin_removal(id)?;
            // Nobody wants their numbers, and many may be held open.
            match self.detach(Arc::clone(&served), limit, Duration::ZERO).await {
                // A client has told it to go before; it is waited for below.
                Err(failure) if failure.class() == FailureClass::Conflict => Ok(()),
                Err(failure) => {
                    // Nobody comes again to save what could not be saved now.
                    self.table.remove(&served);
                    let text = format!("device {id} is left behind");
                    Err(Failure::with_source(failure.class(), text, failure))
                }
                Ok(_) => Ok(()),
            }
        });
        let all = async {
            let removals = join_all(removals).await;
            while self.table.has_devices() {
                sleep(LOOK_INTERVAL).await;
            }
            removals.into_iter().collect::<Result<Vec<()>, Failure>>().map(drop)
        };
        // One that hangs must not keep the process, nor the others.
        timeout(limit, all).await.unwrap_or_else(|_| {
            let left = self.table.served();
            let left: Vec<String> = left.iter().map(|served| served.info.id.to_string()).collect();
            let text = match left.as_slice() {
                [] => "a device was still being made when time was over, and may be left behind".to_owned(),
                left => {
                    format!("devices {} could not be removed in time and are left behind", left.join(", "))
                }
            };
            Err(Failure::new(FailureClass::TimedOut, text))
        })
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
