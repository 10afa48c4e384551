//! The daemon from start to end: lock, devices of its forerunner, socket, signals, and the way out.

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;

use super::{Daemon, blocking};
use crate::server::{
    api::{ApiLimits, ApiListener},
    failure::{Failure, FailureClass},
    interrupt::Interrupt,
    port::Port,
    service::Service,
    state::StateDir,
};

/// What a daemon is made of.
#[derive(Clone)]
pub struct DaemonParts {
    /// Reactors, images and the way to their data.
    pub service: Arc<Service>,
    /// What carries the requests.
    pub port: Arc<dyn Port>,
}

/// Serves until SIGTERM, SIGINT or SIGHUP, then lets go of all devices within the configured time, as [`Daemon::drain`] says.
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

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
