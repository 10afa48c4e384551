//! The daemon from start to end: lock, devices of its forerunner, socket, signals, and the way out.

use std::{future, sync::Arc, time::Duration};

use rustix::process::{Pid, getppid};
use sd_notify::NotifyState;
use tokio::task;

use super::{Daemon, blocking, device_work, watchdog};
use crate::server::{
    api::{ApiLimits, ApiListener},
    blocking::blocking_while_busy,
    failure::{Failure, FailureClass, full_text},
    image_store::ImageStore,
    interrupt::Interrupt,
    mounts::file_system_work,
    port::Port,
    service::Service,
    state::{StateDir, on_disk},
    upgrade::{Standby, Succession, Successor},
};

/// How long the former daemon may take to let go of the state directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// What a daemon is made of.
#[derive(Clone)]
pub struct DaemonParts {
    /// Reactors, images and the way to their data.
    pub service: Arc<Service>,
    /// What carries the requests.
    pub port: Arc<dyn Port>,
}

/// How a daemon begins.
#[derive(Debug)]
pub enum Beginning {
    /// By itself. After an upgrade that has failed, with the reason.
    Alone(Option<String>),
    /// As the one that takes over from another.
    Succeeding(Successor),
}

/// How it ends, when it ends well.
#[derive(Debug)]
#[must_use]
pub enum End {
    /// All is done.
    Stopped,
    /// Another process has its devices, and this one is to stand by.
    Standby(Standby),
}

/// Serves until SIGTERM, SIGINT or SIGHUP, or until another process takes over, then lets go of all devices within the configured
/// time, as [`Daemon::drain`] says.
///
/// # Errors
/// When the daemon cannot start, or devices are left at the end.
pub async fn run(parts: DaemonParts, beginning: Beginning) -> Result<End, Failure> {
    let mut signals = Interrupt::catch()?;
    match beginning {
        Beginning::Alone(failed_upgrade) => {
            let state = open_state(&parts, Duration::ZERO).await?;
            let daemon = Daemon::new(parts, state);
            daemon.upgrades.note_failure(failed_upgrade);
            serve(daemon, &mut signals, None).await
        }
        Beginning::Succeeding(mut successor) => {
            let checked = check(&parts).await;
            if checked.is_err() {
                successor.tell(&checked);
            }
            checked?;
            let waiting = blocking(move || successor.wait_for_devices().map(|devices| (successor, devices)));
            let (successor, devices) = tokio::select! {
                begun = waiting => begun?,
                () = signals.wait() => return Ok(End::Stopped),
            };
            let state = open_state(&parts, LOCK_PATIENCE).await?;
            serve(Daemon::new(parts, state), &mut signals, Some((successor, devices))).await
        }
    }
}

async fn open_state(parts: &DaemonParts, patience: Duration) -> Result<StateDir, Failure> {
    let dir = parts.service.config().daemon.state_dir.clone();
    let place = dir.clone();
    let open = move || {
        StateDir::open(&dir).map_err(|source| {
            Failure::with_source(FailureClass::Conflict, "cannot use the state directory", source)
        })
    };
    blocking_while_busy(&place, patience, open).await
}

/// Finds what would keep this process from taking devices over, while its parent still serves them.
async fn check(parts: &DaemonParts) -> Result<(), Failure> {
    let (port, dir) = (Arc::clone(&parts.port), parts.service.config().daemon.state_dir.clone());
    let known = device_work(move || {
        port.features()?;
        port.known()
    });
    let (known, records) = (known.await?, on_disk(move || StateDir::look(&dir)).await?);
    let parent = getppid().map(Pid::as_raw_pid);
    let served = |id| known.iter().any(|device| device.id == id && device.server_pid == parent);
    let refused = records.iter().find_map(|stored| Some((stored.id, stored.record.as_ref().err()?)));
    match refused.filter(|(id, _)| served(*id)) {
        Some((id, error)) => {
            let text = format!("the record of device {id}: {}", full_text(error));
            Err(Failure::new(FailureClass::Conflict, text))
        }
        None => Ok(()),
    }
}

async fn serve(
    daemon: Arc<Daemon>,
    signals: &mut Interrupt,
    succeeding: Option<(Successor, Vec<u32>)>,
) -> Result<End, Failure> {
    let config = daemon.config().clone();
    daemon.reserve.check_room()?;
    let mode = config.socket_mode().unwrap_or(0o600);
    let metrics = config.daemon.metrics_listen.parse().ok();
    let listener = ApiListener::bind(&config.daemon.socket, mode, metrics).await.map_err(|source| {
        Failure::with_source(FailureClass::Internal, "cannot offer the control API", source)
    })?;
    daemon.start.begin();
    let answering = async { match listener.serve(Arc::clone(&daemon), ApiLimits::default()).await {} };
    let serving = async {
        if succeeding.is_some() {
            // What a process makes that may not come to serve would be lost with it.
            begin(&daemon, succeeding).await?;
            return answering.await;
        }
        // Devices of the former daemon may wait for a registry: who asks meanwhile is answered.
        tokio::select! {
            never = answering => never,
            failed = async { begin(&daemon, None).await?; future::pending().await } => failed,
        }
    };
    let until_told = async {
        tokio::select! {
            failed = serving => failed,
            () = signals.wait() => Ok(None),
            succession = daemon.upgrades.next() => Ok(Some(succession)),
            never = watchdog::tell(daemon.service.reactors()) => match never {},
        }
    };
    // The devices of a thread that has failed hang for as long as this process lives; the service manager starts the next one.
    let succession = daemon.service.reactors().while_all_run(until_told).await?;
    drop(listener);
    match succession {
        None => {
            notify(&[NotifyState::Stopping]);
            tracing::info!("stopping");
            let drained = daemon.drain(Duration::from_millis(config.daemon.drain_timeout_ms)).await;
            daemon.service.factory().sync_cache().await;
            drained.map(|()| End::Stopped)
        }
        Some(succession) => hand_over(&daemon, succession).await.map(End::Standby),
    }
}

/// Brings back what the former daemon has left, and tells those who wait for this one that it serves.
async fn begin(daemon: &Arc<Daemon>, succeeding: Option<(Successor, Vec<u32>)>) -> Result<(), Failure> {
    if daemon.config().daemon.reattach {
        daemon.reattach().await?;
    }
    daemon.start.end();
    // Nobody waits for it, and what it finds in the way of its work it finds again.
    task::spawn(tidy_images(Arc::clone(daemon)));
    if let Some((successor, devices)) = succeeding {
        let served = daemon.check_all_serve(&devices);
        if served.is_ok() {
            // Before the former process ends, which is the service's main one to the service manager until then.
            notify(&[NotifyState::MainPid(std::process::id())]);
        }
        successor.tell(&served);
        served?;
    }
    notify(&[NotifyState::Ready]);
    tracing::info!(socket = %daemon.config().daemon.socket.display(), "ready");
    Ok(())
}

/// Removes what dead processes have begun in the store of images, and what it has too much of.
async fn tidy_images(daemon: Arc<Daemon>) {
    let section = daemon.config().store.clone();
    let store = ImageStore::new(&section.dir);
    let limit_bytes = section.limit_bytes();
    let tidied = file_system_work(&section.dir, move || store.tidy(limit_bytes)).await;
    if let Err(failure) = tidied {
        tracing::warn!(error = failure.full_text(), "the store of images is not tidied");
    }
}

/// Leaves all devices to the new process.
async fn hand_over(daemon: &Arc<Daemon>, succession: Succession) -> Result<Standby, Failure> {
    tracing::info!(pid = succession.pid(), "leaving all devices to the new process");
    let devices = daemon.table.served().iter().map(|served| served.info.id).collect();
    let limit = Duration::from_millis(daemon.config().daemon.drain_timeout_ms);
    if let Err(failure) = daemon.drain(limit).await {
        // Whatever it was, nobody can serve here any more, and the new process finds what is durable.
        tracing::error!(error = failure.full_text(), "not all devices were left in time");
    }
    daemon.service.factory().sync_cache().await;
    blocking(move || succession.begin(devices)).await
}

pub(super) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
