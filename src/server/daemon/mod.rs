//! The running daemon: devices come, are shown and go; what the control API does is here.

mod fork;
mod life;
mod merge;
mod opened;
mod orphan;
mod pace;
mod resize;
mod snapshot;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::task;

pub use life::{DaemonParts, run};
pub(super) use opened::OpenedDevice;
use orphan::{of_kernel, of_record};
pub use snapshot::SnapshotTarget;
pub(super) use table::Served;
use table::{NotRemoved, Reserved, Table};

use super::{
    api::types::{AddDevice, DeviceInfo, DeviceState, FeatureList},
    blocking::{blocking, broken_task, device_work, file_work},
    config::Config,
    descriptors::{FOR_AN_OPERATION, Reserve, explained},
    failure::{Failure, FailureClass},
    metrics::{self, MetricsDetail, Retired},
    port::Port,
    result_file,
    service::Service,
    state::{Record, StateDir, StateError},
    upper_folder::Made,
};
use crate::frontend::{CLOSE_PATIENCE, Detached};

/// Numbers that are tried in turn for a device that may have any. Those of other processes are passed over at once; only such a
/// number counts as programs hold after its device has gone.
const NUMBER_ATTEMPTS: usize = 1024;

/// Answers the control API. Shared by all its connections.
pub struct Daemon {
    service: Arc<Service>,
    port: Arc<dyn Port>,
    state: Arc<StateDir>,
    table: Table,
    /// Held while the table and the record of a device change together.
    changing: tokio::sync::Mutex<()>,
    /// What removed devices had counted.
    retired: Retired,
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
            changing: tokio::sync::Mutex::default(),
            retired: Retired::default(),
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
        detached(async move { daemon.attach(request, Made::default()).await }).await
    }

    /// Makes a device of `request`, for which `made` was made: without the device that goes again.
    async fn attach(&self, mut request: AddDevice, made: Made) -> Result<DeviceInfo, Failure> {
        let (served, made_now, _place) = self.make(&request).await.map_err(explained)?;
        let info = served.info.clone();
        request.id = Some(info.id);
        request.image = served.pinned.clone();
        // Its configuration names it from now on.
        request.upper = None;
        let changing = self.changing.lock().await;
        if let Err(stopping) = self.table.insert(&served) {
            drop(changing);
            let limit = Duration::from_millis(self.config().device.detach_timeout_ms);
            served.detach(limit, Duration::ZERO).await?;
            return Err(stopping);
        }
        made.keep();
        made_now.keep();
        let record = Record::new(info.id, request);
        if let Err(failure) = self.on_disk("cannot write a record", move |state| state.save(&record)).await {
            // The device works; only the next process will not know what it was made of.
            tracing::error!(id = info.id, error = failure.full_text(), "a device has no record");
        }
        drop(changing);
        tracing::info!(id = info.id, image = %served.request.image, path = %info.path.display(), "device attached");
        Ok(info)
    }

    /// Makes a device, and returns with it what was made for it, and its place, which is to be held until the table has it. The table
    /// knows each number before the driver is asked for it: so no device that is being made is taken for one that another process has
    /// left behind.
    async fn make(&self, request: &AddDevice) -> Result<(Arc<Served>, Made, Reserved<'_>), Failure> {
        let place = request.id.map(|id| self.table.reserve(id, request)).transpose()?;
        let making = async {
            self.reserve.check_room()?;
            let opened = OpenedDevice::open(&self.service, request).await?;
            // Also with what has been opened for it.
            self.reserve.check_room()?;
            let (served, place) = match place {
                Some(place) => (self.attach_at(&opened, &place).await?, place),
                None => self.attach_anywhere(&opened, request).await?,
            };
            Ok((served, opened.into_made(), place))
        };
        result_file::record(&request.image, making).await
    }

    async fn attach_at(&self, opened: &OpenedDevice, place: &Reserved<'_>) -> Result<Arc<Served>, Failure> {
        place.begin()?;
        Ok(Arc::new(opened.attach(&self.port, Some(place.id)).await?))
    }

    /// Attaches it with the first number that is free.
    async fn attach_anywhere(
        &self,
        opened: &OpenedDevice,
        request: &AddDevice,
    ) -> Result<(Arc<Served>, Reserved<'_>), Failure> {
        let mut others = BTreeSet::new();
        for _ in 0..NUMBER_ATTEMPTS {
            let place = self.table.reserve_free(request, &others)?;
            match self.attach_at(opened, &place).await {
                Err(failure) if failure.class() == FailureClass::Conflict => {
                    // Another process has it, or a program holds what was there before, which no list shows.
                    others.insert(place.id);
                    let port = Arc::clone(&self.port);
                    others.extend(device_work(move || port.known()).await?.into_iter().map(|known| known.id));
                }
                made => return Ok((made?, place)),
            }
        }
        let text = format!("{NUMBER_ATTEMPTS} numbers in a row are taken by other processes");
        Err(Failure::new(FailureClass::Conflict, text))
    }

    /// Refuses a device of this process that somebody has mounted; to be asked before [`Daemon::remove`], which does not.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] for one in use, and [`FailureClass::TimedOut`] where the kernel does not say.
    pub async fn refuse_in_use(&self, id: u32) -> Result<(), Failure> {
        let Some((info, _)) = self.table.info(id) else { return Ok(()) };
        let _room = self.reserve.lend(FOR_AN_OPERATION);
        let port = Arc::clone(&self.port);
        let asked = device_work(move || Ok(port.is_claimed(&info.path)));
        let limit = Duration::from_millis(self.config().device.detach_timeout_ms);
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(false)) => Ok(()),
            Ok(Ok(true)) => {
                let text =
                    format!("device {id} is in use: unmount it first (--force fails all of its users)");
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
        let Some(served) = self.table.begin_removal(id)? else {
            let daemon = Arc::clone(self);
            return detached(async move { daemon.remove_orphan(id).await }).await;
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
                self.forget(id).await;
                tracing::info!(id, "device removed");
            }
            // Its record stays, so that the next daemon makes it of what is durable.
            Err(failure) => tracing::error!(id, error = failure.full_text(), "the end of a device was lost"),
        }
        self.table.remove(&served);
        detached
    }

    async fn forget(&self, id: u32) {
        if let Err(failure) = self.on_disk("cannot remove a record", move |state| state.forget(id)).await {
            tracing::error!(id, error = failure.full_text(), "a record is left behind");
        }
    }

    /// All devices: this process's, those of others that the kernel lists, and records without a device.
    ///
    /// # Errors
    /// When the driver is there and cannot be asked, or the records cannot be listed.
    pub async fn list(&self) -> Result<Vec<DeviceInfo>, Failure> {
        let _room = self.reserve.lend(FOR_AN_OPERATION);
        let mut infos: BTreeMap<u32, DeviceInfo> = BTreeMap::new();
        for record in self.records().await? {
            infos.insert(record.id, of_record(&record));
        }
        let port = Arc::clone(&self.port);
        for known in device_work(move || port.known()).await? {
            let image = infos.get(&known.id).and_then(|info| info.image.clone());
            infos.insert(known.id, of_kernel(known, image));
        }
        infos.extend(self.table.infos());
        Ok(infos.into_values().collect())
    }

    /// One device, with its layers.
    ///
    /// # Errors
    /// When there is none of that number.
    pub async fn info(&self, id: u32) -> Result<DeviceInfo, Failure> {
        match self.table.info(id) {
            None => {}
            Some((info, None)) => return Ok(info),
            Some((info, Some(served))) => {
                let port = Arc::clone(&self.port);
                return file_work(move || Ok(served.full_info(&*port, info))).await;
            }
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
    pub async fn metrics(self: &Arc<Self>, detail: MetricsDetail) -> Result<String, Failure> {
        let daemon = Arc::clone(self);
        blocking(move || {
            let served = daemon.table.served();
            metrics::render(&daemon.service, &served, &daemon.retired, detail).map_err(|source| {
                Failure::with_source(FailureClass::Internal, "cannot write the metrics", source)
            })
        })
        .await
    }

    async fn records(&self) -> Result<Vec<Record>, Failure> {
        self.on_disk("cannot read the records of devices", StateDir::records).await
    }

    /// Does `work` with the state directory; `failed` is what is said where it cannot be done.
    async fn on_disk<T: Send + 'static>(
        &self,
        failed: &'static str,
        work: impl FnOnce(&StateDir) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, Failure> {
        let state = Arc::clone(&self.state);
        blocking(move || {
            work(&state).map_err(|source| Failure::with_source(FailureClass::Internal, failed, source))
        })
        .await
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

/// Runs `work` to its end even when the caller goes away, as a client of the API may at any time.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    task::spawn(work).await.map_err(broken_task)?
}

#[cfg(test)]
mod tests;
