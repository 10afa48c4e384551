//! Devices that this process does not serve: what is shown of them, and the removal of those that nobody serves.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{Daemon, device_work};
use crate::frontend::Detached;
use crate::server::{
    api::types::{DeviceInfo, DeviceState, ImageSpec},
    descriptors::FOR_AN_OPERATION,
    failure::{Failure, FailureClass},
    port::KnownDevice,
    state::Record,
};

/// How long a device may stay unstarted before it counts as left behind: whoever makes one starts it within milliseconds.
const START_PATIENCE: Duration = Duration::from_millis(500);

/// A device that no process serves, as far as can be seen.
struct Orphan {
    info: DeviceInfo,
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
        self.forget(id).await;
        tracing::info!(id, held_open = removed == Detached::HeldOpen, "orphan removed");
        Ok(DeviceInfo { held_open: removed == Detached::HeldOpen, ..info })
    }

    /// What the kernel or a record says of `id`, which no process may serve.
    async fn orphan(&self, id: u32) -> Result<Orphan, Failure> {
        let record = self.records().await?.into_iter().find(|record| record.id == id);
        let port = Arc::clone(&self.port);
        let known = device_work(move || port.known()).await?.into_iter().find(|known| known.id == id);
        let image = record.as_ref().map(|record| record.request.image.clone());
        let orphan = match (known, record) {
            (Some(known), _) => Orphan { is_unstarted: known.is_unstarted, info: of_kernel(known, image) },
            (None, Some(record)) => Orphan { is_unstarted: false, info: of_record(&record) },
            (None, None) => {
                return Err(Failure::new(FailureClass::NotFound, format!("there is no device {id}")));
            }
        };
        if orphan.info.state == DeviceState::Foreign {
            let pid = orphan.info.server_pid.unwrap_or_default();
            let text = format!("device {id} is served by another process ({pid}): end that one");
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        Ok(orphan)
    }
}

pub(super) fn of_record(record: &Record) -> DeviceInfo {
    DeviceInfo {
        id: record.id,
        path: PathBuf::new(),
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
        reads: Vec::new(),
        upper: Vec::new(),
        warnings: Vec::new(),
        overdue: Vec::new(),
        upper_room_bytes: None,
        held_open: false,
    }
}

pub(super) fn of_kernel(known: KnownDevice, image: Option<ImageSpec>) -> DeviceInfo {
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
        reads: Vec::new(),
        upper: Vec::new(),
        warnings: Vec::new(),
        overdue: Vec::new(),
        upper_room_bytes: None,
        held_open: false,
    }
}
