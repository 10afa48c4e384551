//! Devices that this process does not serve: what is shown of them, and the removal of those that nobody serves.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    Daemon, device_work,
    fate::of_record,
    list::{of_kernel, recorded},
};
use crate::frontend::Detached;
use crate::server::{
    api::types::{DeviceInfo, DeviceState, ImageSpec},
    blocking::{BUSY_PATIENCE, blocking},
    descriptors::FOR_AN_OPERATION,
    device::{failure_of_upper, open_files},
    failure::{Failure, FailureClass},
    mounts::file_system_work,
    next_config::upper_of,
    state::{LeftRecord, Phase, Record, Stored, on_disk},
    unfinished,
};

/// How long a device may stay unstarted before it counts as left behind: whoever makes one starts it within milliseconds.
const START_PATIENCE: Duration = Duration::from_millis(500);

/// A device that no process serves, as far as can be seen.
struct Orphan {
    info: DeviceInfo,
    record: Option<Record>,
    /// Its record, if it was served by a process of its own.
    left: Option<LeftRecord>,
    is_unstarted: bool,
    /// Whether the kernel may have something of it.
    is_in_kernel: bool,
}

impl Daemon {
    /// Removes what another process has left behind; `None` where it has become a device of this one meanwhile, or is becoming one.
    pub(super) async fn remove_orphan(&self, id: u32) -> Result<Option<DeviceInfo>, Failure> {
        let _room = self.reserve.lend(FOR_AN_OPERATION);
        let seen = self.orphan(id).await?;
        if seen.is_unstarted {
            // Another process may be about to start it.
            tokio::time::sleep(START_PATIENCE).await;
        }
        // What is or becomes a device of this process has a place by itself, so that this one is none as long as it has this place.
        let Some(_cleared) = self.table.clear(id) else { return Ok(None) };
        // Its lock is given back, for to be taken again.
        drop(seen.left);
        let Orphan { info, record, left, is_in_kernel, .. } = self.orphan(id).await?;
        // What this process has of it would hold it.
        drop(self.taken.remove(id));
        let port = Arc::clone(&self.port);
        let timeout = Duration::from_millis(self.config().device.detach_timeout_ms);
        let removed = match is_in_kernel {
            true => device_work(move || port.remove_orphan(id, timeout)).await?,
            false => Detached::Complete,
        };
        if let Some(record) = record {
            self.settle(&record).await;
            self.remove_unfinished(&record).await?;
        }
        if let Some(left) = left {
            on_disk(move || left.forget()).await?;
        }
        let records = self.state.records().clone();
        on_disk(move || records.forget(id)).await?;
        tracing::info!(id, held_open = removed == Detached::HeldOpen, "orphan removed");
        Ok(Some(DeviceInfo { held_open: removed == Detached::HeldOpen, ..info }))
    }

    /// Forgets a device that is to go, of which the kernel has nothing any more.
    pub(super) async fn finish_removal(&self, record: Record) -> Result<(), Failure> {
        self.settle(&record).await;
        self.remove_unfinished(&record).await?;
        let records = self.state.records().clone();
        on_disk(move || records.forget(record.id)).await?;
        tracing::info!(id = record.id, "what was left of a device that was half made or removed is gone");
        Ok(())
    }

    /// Makes durable what was written to the device of `record`, which goes, so that nobody flushes it any more. What cannot be waits in
    /// the journal of its layer, for whoever attaches that again.
    async fn settle(&self, record: &Record) {
        let config = config_of(record.request.image.clone()).filter(|_| record.phase != Phase::Making);
        let Some(config) = config else { return };
        let (place, sealer) = (config.clone(), self.service.reactors().sealer());
        let settling = async {
            let Some(upper) = file_system_work(&place, move || upper_of(&config)).await? else {
                return Ok(());
            };
            let files = open_files(&upper, BUSY_PATIENCE).await?;
            let settled = sealer.call(move |reactor| async move { files.settle(&reactor).await }).await;
            let stopped = |_| Failure::new(FailureClass::Internal, "the reactor has stopped");
            settled.map_err(stopped)?.map_err(failure_of_upper)
        };
        let limit = Duration::from_millis(self.config().device.detach_timeout_ms);
        let late = |_| Err(Failure::new(FailureClass::TimedOut, "the disk takes too long"));
        let settled = tokio::time::timeout(limit, settling).await.unwrap_or_else(late);
        match settled {
            // It went before its device.
            Err(failure) if failure.class() == FailureClass::NotFound => {}
            Err(failure) => {
                let (id, error) = (record.id, failure.full_text());
                tracing::warn!(id, error, "the last writes to a device that is removed are not durable yet");
            }
            Ok(()) => {}
        }
    }

    /// Removes what was being made for a device when its process ended: all of it where the device goes, and of a device that is
    /// there what its configuration does not name.
    pub(super) async fn remove_unfinished(&self, record: &Record) -> Result<(), Failure> {
        if record.unfinished.is_empty() {
            return Ok(());
        }
        let (paths, id, goes) = (record.unfinished.clone(), record.id, record.phase != Phase::Live);
        let own = record.request.image.clone();
        let others = self.stored().await?.into_iter().filter(|stored| stored.id != id);
        // Whoever has made the same folder meanwhile has it by now.
        let others: Vec<PathBuf> =
            others.filter_map(|stored| config_of(stored.record.ok()?.request.image)).collect();
        blocking(move || {
            let upper = match config_of(own).filter(|_| !goes).map(|config| upper_of(&config)).transpose() {
                Ok(upper) => upper.flatten(),
                Err(failure) => {
                    // What it names is not known, so that nothing may go.
                    tracing::warn!(
                        id,
                        error = failure.full_text(),
                        "what was made for a device is left behind"
                    );
                    return Ok(());
                }
            };
            let is_anothers = paths.iter().any(|path| others.contains(path));
            unfinished::remove(&paths, |path| {
                is_anothers || upper.as_ref().is_some_and(|upper| upper.data == path || upper.index == path)
            })
        })
        .await
    }

    /// What the kernel or a record says of `id`, which no process may serve.
    async fn orphan(&self, id: u32) -> Result<Orphan, Failure> {
        let stored = self.stored_of(id).await?;
        let left = match &stored {
            Some(_) => None,
            None => self.left_alone(id).await?,
        };
        let mut known = self.find(id).await?;
        if let Some(Stored { record: Err(error), .. }) = &stored
            && error.is_of_another()
        {
            let text = format!("device {id} is not this daemon's to remove: {error}");
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        let is_unstarted = known.as_ref().is_some_and(|known| known.is_unstarted);
        let own = stored.as_ref().or(left.as_ref().map(|left| &left.stored));
        let record = own.and_then(|own| own.record.as_ref().ok()).cloned();
        // Of another device that has its number nothing is touched.
        let is_in_kernel = match &record {
            Some(record) => of_record(record, known.as_ref()).is_some() || known.is_none(),
            None => true,
        };
        known = known.filter(|_| is_in_kernel);
        let info = match (known, own) {
            (Some(known), own) => of_kernel(known, own),
            (None, Some(own)) => recorded(own),
            (None, None) => {
                return Err(Failure::new(FailureClass::NotFound, format!("there is no device {id}")));
            }
        };
        if info.state == DeviceState::Foreign {
            let pid = info.server_pid.unwrap_or_default();
            let text = format!("device {id} is served by another process ({pid}): end that one");
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        Ok(Orphan { info, record, left, is_unstarted, is_in_kernel })
    }
}

fn config_of(image: ImageSpec) -> Option<PathBuf> {
    match image {
        ImageSpec::Config(config) => Some(config),
        ImageSpec::Reference(_) | ImageSpec::Layers(_) | ImageSpec::Converted { .. } => None,
    }
}
