//! The running daemon: devices come, are shown and go; what the control API does is here.

mod life;
mod table;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task;

pub use life::{DaemonParts, run};
pub(super) use table::Served;
use table::Table;

use super::{
    api::types::{AddDevice, DeviceInfo, DeviceState, FeatureList, ImageSpec},
    blocking::{blocking, broken_task},
    config::{Config, MAX_DEPTH, MAX_QUEUES},
    failure::{Failure, FailureClass},
    metrics,
    port::{KnownDevice, Port, failure_of_frontend},
    service::Service,
    state::{Record, StateDir},
};
use crate::{block::BlockDevice, frontend::AttachRequest, image::ReadMetrics};

/// Answers the control API. Shared by all its connections.
pub struct Daemon {
    service: Arc<Service>,
    port: Arc<dyn Port>,
    state: StateDir,
    table: Table,
    /// Held while the table and the record of a device change together.
    changing: tokio::sync::Mutex<()>,
    /// What removed devices had counted.
    retired: ReadMetrics,
}

impl Daemon {
    /// A daemon without devices.
    #[must_use]
    pub fn new(parts: DaemonParts, state: StateDir) -> Arc<Self> {
        Arc::new(Self {
            service: parts.service,
            port: parts.port,
            state,
            table: Table::default(),
            changing: tokio::sync::Mutex::default(),
            retired: ReadMetrics::default(),
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
        detached(async move { daemon.attach(request).await }).await
    }

    async fn attach(&self, mut request: AddDevice) -> Result<DeviceInfo, Failure> {
        if let Some(id) = request.id {
            self.table.reserve(id, &request)?;
        }
        let served = match make_device(&self.service, &self.port, &request).await {
            Ok(served) => Arc::new(served),
            Err(failure) => {
                if let Some(id) = request.id {
                    self.table.release(id);
                }
                return Err(failure);
            }
        };
        let info = served.info.clone();
        request.id = Some(info.id);
        let changing = self.changing.lock().await;
        self.table.insert(Arc::clone(&served));
        if let Err(error) = self.state.save(&Record::new(info.id, request)) {
            // The device works; only the next process will not know what it was made of.
            tracing::error!(
                id = info.id,
                error = super::failure::full_text(&error),
                "a device has no record"
            );
        }
        drop(changing);
        tracing::info!(id = info.id, image = %served.request.image, path = %info.path.display(), "device attached");
        Ok(info)
    }

    /// Removes a device of this process, or what another one has left behind. With `wait` it returns when the device is gone;
    /// without, at once. It goes on when the caller gives up waiting.
    ///
    /// # Errors
    /// When there is no such device, it is another process's, or somebody still holds it.
    pub async fn remove(self: &Arc<Self>, id: u32, wait: bool) -> Result<DeviceInfo, Failure> {
        let Some(served) = self.table.begin_removal(id)? else {
            let daemon = Arc::clone(self);
            return detached(async move { daemon.remove_orphan(id).await }).await;
        };
        let info = DeviceInfo { state: DeviceState::Detaching, ..served.info.clone() };
        let daemon = Arc::clone(self);
        let timeout = Duration::from_millis(self.config().device.detach_timeout_ms);
        let removal = task::spawn(async move { daemon.detach(served, timeout).await });
        if wait {
            removal.await.map_err(broken_task)??;
        }
        Ok(info)
    }

    async fn detach(&self, served: Arc<Served>, limit: Duration) -> Result<(), Failure> {
        let id = served.info.id;
        let detaching = Arc::clone(&served);
        let detached = blocking(move || detaching.detach(limit)).await;
        if matches!(&detached, Err(failure) if failure.class() == FailureClass::Conflict) {
            return detached;
        }
        self.retired.absorb(served.device.reads());
        let _changing = self.changing.lock().await;
        let is_last = self.table.remove(&served);
        match &detached {
            Ok(()) => {
                if is_last {
                    self.forget(id);
                }
                tracing::info!(id, "device removed");
            }
            // Its record stays, so that it is listed as an orphan and can be removed as one.
            Err(failure) => tracing::error!(id, error = failure.full_text(), "a device could not be removed"),
        }
        detached
    }

    async fn remove_orphan(&self, id: u32) -> Result<DeviceInfo, Failure> {
        let missing = || Failure::new(FailureClass::NotFound, format!("there is no device {id}"));
        let info = self.list().await?.into_iter().find(|info| info.id == id).ok_or_else(missing)?;
        if info.state == DeviceState::Foreign {
            let pid = info.server_pid.unwrap_or_default();
            let text = format!("device {id} is served by another process ({pid}): end that one");
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        let port = Arc::clone(&self.port);
        let timeout = Duration::from_millis(self.config().device.detach_timeout_ms);
        blocking(move || port.remove_orphan(id, timeout)).await?;
        self.forget(id);
        tracing::info!(id, "orphan removed");
        Ok(info)
    }

    fn forget(&self, id: u32) {
        if let Err(error) = self.state.forget(id) {
            tracing::error!(id, error = super::failure::full_text(&error), "a record is left behind");
        }
    }

    /// All devices: this process's, those of others that the kernel lists, and records without a device.
    ///
    /// # Errors
    /// When the driver is there and cannot be asked, or the records cannot be listed.
    pub async fn list(&self) -> Result<Vec<DeviceInfo>, Failure> {
        let mut infos: BTreeMap<u32, DeviceInfo> = BTreeMap::new();
        for record in self.records()? {
            infos.insert(record.id, orphan_record(&record));
        }
        let port = Arc::clone(&self.port);
        for known in blocking(move || port.known()).await? {
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
        if let Some(info) = self.table.info(id) {
            return Ok(info);
        }
        let found = self.list().await?.into_iter().find(|info| info.id == id);
        found.ok_or_else(|| Failure::new(FailureClass::NotFound, format!("there is no device {id}")))
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// Where there is no driver, or it may not be used.
    pub async fn features(&self) -> Result<FeatureList, Failure> {
        let port = Arc::clone(&self.port);
        blocking(move || port.features()).await
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// Never in practice: writing to memory does not fail.
    pub fn metrics(&self) -> Result<String, Failure> {
        metrics::render(&self.service, &self.table.served(), &self.retired).map_err(|source| {
            Failure::with_source(FailureClass::Internal, "cannot write the metrics", source)
        })
    }

    fn records(&self) -> Result<Vec<Record>, Failure> {
        self.state.records().map_err(|source| {
            Failure::with_source(FailureClass::Internal, "cannot read the records of devices", source)
        })
    }
}

/// Opens the image that `request` names and makes a device of it.
///
/// # Errors
/// When the image cannot be opened or the device not made; then nothing is left of it.
pub(super) async fn make_device(
    service: &Service,
    port: &Arc<dyn Port>,
    request: &AddDevice,
) -> Result<Served, Failure> {
    let section = &service.config().device;
    let queues = request.queues.unwrap_or(section.queues);
    let depth = request.depth.unwrap_or(section.depth);
    check_request(&request.image, queues, depth)?;
    let limit = Duration::from_millis(section.attach_timeout_ms);
    let opened = tokio::time::timeout(limit, service.open(&request.image)).await;
    let late = || Failure::new(FailureClass::TimedOut, format!("{}: not open in time", request.image));
    let image = opened.map_err(|_| late())??;
    let device = Arc::new(image.image.for_device());
    let wanted = AttachRequest { id: request.id, queues, depth, deadline: limit, ..AttachRequest::default() };
    let reactors = service.reactors().choose(queues);
    let (attaching, counted) = (Arc::clone(port), Arc::clone(&device));
    let attachment = blocking(move || {
        let attached = attaching.attach(&counted, &wanted, &reactors);
        attached.map_err(|error| failure_of_frontend("cannot make a device", error))
    })
    .await?;
    let (geometry, granted) = (device.geometry(), attachment.info());
    let info = DeviceInfo {
        id: attachment.id(),
        path: attachment.path().to_owned(),
        state: DeviceState::Live,
        image: Some(request.image.clone()),
        size_bytes: geometry.size_bytes,
        logical_block_bytes: geometry.logical_block_bytes,
        read_only: geometry.read_only,
        queues: granted.queues,
        depth: granted.depth,
        features: Vec::new(),
        server_pid: i32::try_from(std::process::id()).ok(),
        layers: Vec::new(),
    };
    let attachment = Mutex::new(Some(attachment));
    Ok(Served { info, request: request.clone(), image, device, attachment })
}

fn check_request(image: &ImageSpec, queues: u16, depth: u16) -> Result<(), Failure> {
    let wrong = |text: String| Err(Failure::new(FailureClass::Usage, text));
    if queues == 0 || queues > MAX_QUEUES {
        return wrong(format!("{queues} queues: there may be 1 to {MAX_QUEUES}"));
    }
    if depth == 0 || depth > MAX_DEPTH {
        return wrong(format!("depth {depth}: it may be 1 to {MAX_DEPTH}"));
    }
    let paths = match image {
        ImageSpec::Reference(_) => &[][..],
        ImageSpec::Config(path) => std::slice::from_ref(path),
        ImageSpec::Layers(paths) => paths,
    };
    match paths.iter().find(|path| !path.is_absolute()) {
        Some(path) => wrong(format!("{}: the daemon needs absolute paths", path.display())),
        None => Ok(()),
    }
}

fn orphan_record(record: &Record) -> DeviceInfo {
    DeviceInfo {
        id: record.id,
        path: std::path::PathBuf::new(),
        state: DeviceState::Orphan,
        image: Some(record.request.image.clone()),
        size_bytes: 0,
        logical_block_bytes: 0,
        read_only: true,
        queues: record.request.queues.unwrap_or_default(),
        depth: record.request.depth.unwrap_or_default(),
        features: Vec::new(),
        server_pid: None,
        layers: Vec::new(),
    }
}

fn of_kernel(known: KnownDevice, image: Option<ImageSpec>) -> DeviceInfo {
    DeviceInfo {
        id: known.id,
        path: known.path,
        // What this process serves is in its table; what is not, and still has its number, was left behind by a removal
        // that has failed.
        state: match known.server_pid {
            Some(pid) if Some(pid) != i32::try_from(std::process::id()).ok() => DeviceState::Foreign,
            _ => DeviceState::Orphan,
        },
        image,
        size_bytes: known.size_bytes,
        logical_block_bytes: known.logical_block_bytes,
        read_only: known.read_only,
        queues: known.queues,
        depth: known.depth,
        features: Vec::new(),
        server_pid: known.server_pid,
        layers: Vec::new(),
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
