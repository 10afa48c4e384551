//! Devices that this process does not serve: what is shown of them, and the removal of those that nobody serves.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{Daemon, device_work};
use crate::frontend::Detached;
use crate::server::{
    api::types::{DeviceInfo, DeviceState, ImageSpec},
    blocking::blocking,
    descriptors::FOR_AN_OPERATION,
    failure::{Failure, FailureClass},
    next_config::upper_of,
    port::KnownDevice,
    state::{Phase, Record, Stored, on_disk},
    unfinished,
};

/// How long a device may stay unstarted before it counts as left behind: whoever makes one starts it within milliseconds.
const START_PATIENCE: Duration = Duration::from_millis(500);

/// A device that no process serves, as far as can be seen.
struct Orphan {
    info: DeviceInfo,
    record: Option<Record>,
    is_unstarted: bool,
}

impl Daemon {
    /// Removes what another process has left behind.
    pub(super) async fn remove_orphan(&self, id: u32) -> Result<DeviceInfo, Failure> {
        let _room = self.reserve.lend(FOR_AN_OPERATION);
        let seen = self.orphan(id).await?;
        if seen.is_unstarted {
            // Another process may be about to start it.
            tokio::time::sleep(START_PATIENCE).await;
        }
        // What is or becomes a device of this process has a place by itself, so that this one is none as long as it has this place.
        let _cleared = self.table.clear(id)?;
        let info = self.orphan(id).await?.info;
        let port = Arc::clone(&self.port);
        let timeout = Duration::from_millis(self.config().device.detach_timeout_ms);
        let removed = device_work(move || port.remove_orphan(id, timeout)).await?;
        if let Some(record) = seen.record {
            self.remove_unfinished(&record).await?;
        }
        let records = self.state.records().clone();
        on_disk(move || records.forget(id)).await?;
        tracing::info!(id, held_open = removed == Detached::HeldOpen, "orphan removed");
        Ok(DeviceInfo { held_open: removed == Detached::HeldOpen, ..info })
    }

    /// Forgets a device that is to go, of which the kernel has nothing any more.
    pub(super) async fn finish_removal(&self, record: Record) -> Result<(), Failure> {
        self.remove_unfinished(&record).await?;
        let records = self.state.records().clone();
        on_disk(move || records.forget(record.id)).await?;
        tracing::info!(id = record.id, "what was left of a device that was half made or removed is gone");
        Ok(())
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
            let upper = match config_of(own) {
                Some(config) if !goes => upper_of(&config)?,
                _ => None,
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
        let stored = self.stored().await?.into_iter().find(|stored| stored.id == id);
        let port = Arc::clone(&self.port);
        let known = device_work(move || port.known()).await?.into_iter().find(|known| known.id == id);
        if let Some(Stored { record: Err(error), .. }) = &stored
            && error.is_of_another()
        {
            let text = format!("device {id} is not this daemon's to remove: {error}");
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        let is_unstarted = known.as_ref().is_some_and(|known| known.is_unstarted);
        let info = match (known, &stored) {
            (Some(known), stored) => of_kernel(known, stored.as_ref()),
            (None, Some(stored)) => of_record(stored),
            (None, None) => {
                return Err(Failure::new(FailureClass::NotFound, format!("there is no device {id}")));
            }
        };
        if info.state == DeviceState::Foreign {
            let pid = info.server_pid.unwrap_or_default();
            let text = format!("device {id} is served by another process ({pid}): end that one");
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        let record = stored.and_then(|stored| stored.record.ok());
        Ok(Orphan { info, record, is_unstarted })
    }
}

fn config_of(image: ImageSpec) -> Option<PathBuf> {
    match image {
        ImageSpec::Config(config) => Some(config),
        ImageSpec::Reference(_) | ImageSpec::Layers(_) => None,
    }
}

/// A device that only a record knows.
pub(super) fn of_record(stored: &Stored) -> DeviceInfo {
    let info = DeviceInfo::without_server(stored.id, state_of(Some(stored), false));
    let Ok(record) = &stored.record else { return info };
    DeviceInfo {
        image: Some(record.request.image.clone()),
        queues: record.request.queues.unwrap_or_default(),
        depth: record.request.depth.unwrap_or_default(),
        ..info
    }
}

/// A device of the kernel that this process does not serve, with its record.
pub(super) fn of_kernel(known: KnownDevice, stored: Option<&Stored>) -> DeviceInfo {
    // What this process serves is in its table; what is not, and still has its number, was left behind by a removal
    // that has failed.
    let state = match known.server_pid {
        Some(pid) if Some(pid) != i32::try_from(std::process::id()).ok() => DeviceState::Foreign,
        _ => state_of(stored, known.waits),
    };
    let image = stored.and_then(|stored| Some(stored.record.as_ref().ok()?.request.image.clone()));
    DeviceInfo {
        path: known.path,
        image,
        size_bytes: known.size_bytes,
        logical_block_bytes: known.logical_block_bytes,
        read_only: known.read_only,
        queues: known.queues,
        depth: known.depth,
        server_pid: known.server_pid,
        ..DeviceInfo::without_server(known.id, state)
    }
}

/// The state of a device that nobody serves, which waits for its next server or not.
fn state_of(stored: Option<&Stored>, waits: bool) -> DeviceState {
    match stored.map(|stored| &stored.record) {
        Some(Err(error)) if error.is_of_another() => DeviceState::Waiting,
        Some(Ok(record)) if waits && record.phase != Phase::Leaving => DeviceState::Waiting,
        _ => DeviceState::Orphan,
    }
}
