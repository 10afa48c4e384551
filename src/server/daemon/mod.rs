//! The running daemon: devices come, are shown and go; what the control API does is here.

mod fate;
mod fork;
mod health;
mod leave;
mod life;
mod list;
mod making;
mod merge;
mod opened;
mod orphan;
mod pace;
mod recover;
mod resize;
mod resume;
mod served;
mod settings;
mod snapshot;
mod table;
mod taken;
mod unwanted;
mod upgrade;
mod waiting;
mod watchdog;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task;

pub(super) use fate::{Fate, check_same, fate};
use health::Start;
pub use life::{Beginning, DaemonParts, End, run};
pub(super) use opened::OpenedDevice;
use served::NotRemoved;
pub(super) use served::Served;
pub use snapshot::SnapshotTarget;
use table::Table;
use taken::AllTaken;
use unwanted::Unwanted;
use upgrade::Upgrades;
use waiting::Waiting;

use super::{
    api::types::{AddDevice, DeviceInfo, DeviceState, FeatureList},
    blocking::{blocking, broken_task, device_work, file_work},
    config::Config,
    descriptors::{FOR_AN_OPERATION, Reserve},
    failure::{Failure, FailureClass},
    metrics::{Attaches, Counted, Exposition, MetricsDetail, Retired},
    port::Port,
    service::Service,
    state::{Phase, Record, StateDir, Stored, on_disk},
};
use crate::frontend::{CLOSE_PATIENCE, Detached};

/// Answers the control API. Shared by all its connections.
pub struct Daemon {
    service: Arc<Service>,
    port: Arc<dyn Port>,
    state: Arc<StateDir>,
    table: Table,
    start: Start,
    /// What a former daemon has left and has not come back yet.
    waiting: Waiting,
    /// What of these is this process's already.
    taken: AllTaken,
    /// What of them somebody removes while it is tried.
    unwanted: Unwanted,
    upgrades: Upgrades,
    /// Held while the table and the record of a device change together.
    changing: tokio::sync::Mutex<()>,
    /// What removed devices had counted.
    retired: Retired,
    attaches: Attaches,
    /// Descriptors for those who list and remove devices.
    pub(super) reserve: Arc<Reserve>,
}

impl Daemon {
    /// A daemon without devices.
    #[must_use]
    pub fn new(parts: DaemonParts, state: StateDir) -> Arc<Self> {
        Arc::new(Self {
            service: parts.service,
            port: parts.port,
            state: Arc::new(state),
            table: Table::default(),
            start: Start::default(),
            waiting: Waiting::default(),
            taken: AllTaken::default(),
            unwanted: Unwanted::default(),
            upgrades: Upgrades::default(),
            changing: tokio::sync::Mutex::default(),
            retired: Retired::default(),
            attaches: Attaches::default(),
            reserve: Reserve::new(),
        })
    }

    fn config(&self) -> &Config {
        self.service.config()
    }

    /// Makes a device and returns when it is usable. It goes on when the caller gives up waiting.
    ///
    /// # Errors
    /// When the image cannot be opened or the device not made; then nothing is left of it.
    pub async fn add(self: &Arc<Self>, request: AddDevice) -> Result<DeviceInfo, Failure> {
        let daemon = Arc::clone(self);
        detached(async move {
            let image = request.image.clone();
            daemon.attaches.count(image, daemon.make_new(request)).await
        })
        .await
    }

    /// Refuses a device that somebody uses, as by a mount or a loop device, also one that waits for its server; to be asked before [`Daemon::remove`], which
    /// does not.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] for one in use, and [`FailureClass::TimedOut`] where the kernel does not say.
    pub async fn refuse_in_use(&self, id: u32) -> Result<(), Failure> {
        let _room = self.reserve.lend(FOR_AN_OPERATION);
        let path = match self.table.info(id) {
            Some((info, Some(_))) => info.path,
            _ => match self.find(id).await? {
                Some(known) => known.path,
                None => return Ok(()),
            },
        };
        let port = Arc::clone(&self.port);
        let asked = device_work(move || Ok(port.user(&path)));
        let limit = Duration::from_millis(self.config().device.detach_timeout_ms);
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(user))) => {
                let text = format!(
                    "device {id} is in use by {user}: unmount or detach it first (--force fails all of its users)"
                );
                Err(Failure::new(FailureClass::Conflict, text))
            }
            Ok(Err(failure)) => Err(failure),
            Err(_) => {
                let text =
                    format!("the kernel does not say whether device {id} is in use (--force does not ask)");
                Err(Failure::new(FailureClass::TimedOut, text))
            }
        }
    }

    /// Removes a device of this process, or what another one has left behind, whoever uses it: his reads fail from then on.
    /// With `wait` it returns when the device is gone, or when only a program that has it open keeps its number; without, at
    /// once. It goes on when the caller gives up waiting.
    ///
    /// # Errors
    /// When there is no such device, it is another process's, or it cannot be removed in time.
    pub async fn remove(self: &Arc<Self>, id: u32, wait: bool) -> Result<DeviceInfo, Failure> {
        let began = Instant::now();
        let served = loop {
            self.let_try_end(id).await;
            if let Some(served) = self.table.begin_removal(id)? {
                break served;
            }
            let daemon = Arc::clone(self);
            if let Some(removed) = detached(async move { daemon.remove_orphan(id).await }).await? {
                return Ok(removed);
            }
            // A try to bring it back has begun, or succeeded, while it was looked at.
            if began.elapsed() > self.try_limit() {
                let text = format!("device {id} is coming or going");
                return Err(Failure::new(FailureClass::Conflict, text));
            }
        };
        let info = DeviceInfo { state: DeviceState::Detaching, ..served.info() };
        let daemon = Arc::clone(self);
        let timeout = Duration::from_millis(self.config().device.detach_timeout_ms);
        let removal = task::spawn(async move { daemon.detach(served, timeout, CLOSE_PATIENCE).await });
        let held_open = wait && removal.await.map_err(broken_task)?? == Detached::HeldOpen;
        Ok(DeviceInfo { held_open, ..info })
    }

    async fn detach(
        &self,
        served: Arc<Served>,
        limit: Duration,
        patience: Duration,
    ) -> Result<Detached, Failure> {
        let _room = self.reserve.lend(FOR_AN_OPERATION);
        let id = served.info.id;
        // From here on nothing brings it back.
        self.note(&served, |record| record.phase = Phase::Leaving).await;
        let detached = served.detach(limit, patience).await;
        let detached = match detached {
            Err(NotRemoved { failure, is_left: true }) => {
                // It stays in the table, for whoever removes it again.
                tracing::error!(
                    id,
                    error = failure.full_text(),
                    "a device could not be removed, or not saved"
                );
                return Err(failure);
            }
            Err(NotRemoved { failure, .. }) if failure.class() == FailureClass::Conflict => {
                return Err(failure);
            }
            detached => detached.map_err(Failure::from),
        };
        self.retired.absorb(&served.device);
        let _changing = self.changing.lock().await;
        match &detached {
            Ok(_) => {
                // Before it leaves the table: whoever waits for its end may end the process then.
                if let Some(record) = &served.record {
                    record.forget().await;
                }
                tracing::info!(id, "device removed");
            }
            Err(failure) => {
                // The next daemon makes it of what is durable.
                self.note(&served, |record| record.phase = Phase::Live).await;
                tracing::error!(id, error = failure.full_text(), "the end of a device was lost");
            }
        }
        self.table.remove(&served);
        detached
    }

    /// Changes the record of a device, which goes its way all the same where that fails.
    async fn note(&self, served: &Served, change: impl FnOnce(&mut Record)) {
        if let Err(failure) = served.note(change).await {
            tracing::error!(id = served.info.id, error = failure.full_text(), "a device has an old record");
        }
    }

    /// One device, with its layers.
    ///
    /// # Errors
    /// When there is none of that number.
    pub async fn info(&self, id: u32) -> Result<DeviceInfo, Failure> {
        if let Some((info, Some(served))) = self.table.info(id) {
            let port = Arc::clone(&self.port);
            return file_work(move || Ok(served.full_info(&*port, info))).await;
        }
        let found = self.list().await?.into_iter().find(|info| info.id == id);
        found.ok_or_else(|| Failure::new(FailureClass::NotFound, format!("there is no device {id}")))
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// Where there is no driver, or it may not be used.
    pub async fn features(&self) -> Result<FeatureList, Failure> {
        let _room = self.reserve.lend(FOR_AN_OPERATION);
        let port = Arc::clone(&self.port);
        device_work(move || port.features()).await
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// Never in practice: writing to memory does not fail.
    pub async fn metrics(
        self: &Arc<Self>,
        detail: MetricsDetail,
        exposition: Exposition,
    ) -> Result<String, Failure> {
        let daemon = Arc::clone(self);
        blocking(move || {
            let counted = Counted {
                service: &daemon.service,
                served: &daemon.table.served(),
                waiting: daemon.waiting.count(),
                retired: &daemon.retired,
                attaches: &daemon.attaches,
            };
            counted.text(detail, exposition).map_err(|source| {
                Failure::with_source(FailureClass::Internal, "cannot write the metrics", source)
            })
        })
        .await
    }

    async fn stored_of(&self, id: u32) -> Result<Option<Stored>, Failure> {
        let records = self.state.records().clone();
        on_disk(move || Ok(records.one(id))).await
    }

    async fn stored(&self) -> Result<Vec<Stored>, Failure> {
        let records = self.state.records().clone();
        on_disk(move || records.all()).await
    }
}

/// Refuses a path that means something else to whoever asks than to the daemon.
fn check_absolute(path: &Path) -> Result<(), Failure> {
    match path.is_absolute() {
        true => Ok(()),
        false => {
            let text = format!("{}: the daemon needs absolute paths", path.display());
            Err(Failure::new(FailureClass::Usage, text))
        }
    }
}

/// Runs `work` to its end even when the caller goes away, as a client of the API may at any time. It is the task's from the start, so
/// that whoever waits does not have room for all of it too, which is tens of kilobytes.
fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> impl Future<Output = Result<T, Failure>> + Send {
    let task = task::spawn(work);
    async { task.await.map_err(broken_task)? }
}

#[cfg(test)]
mod tests;
