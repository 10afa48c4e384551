//! Devices that a process of its own, or a daemon with another state directory, has left, and that this daemon serves on when it is
//! told to.

use std::{path::PathBuf, sync::Arc};

use tokio::{sync::oneshot, task};

use super::{
    Daemon, check_absolute, detached,
    fate::{Fate, check_same, fate},
};
use crate::server::{
    api::types::{DeviceInfo, DeviceState, RecoverDevice},
    failure::{Failure, FailureClass},
    state::{LeftRecord, on_disk},
};

impl Daemon {
    /// Serves device `id`, which waits for its next server, from now on: one of this daemon, at once, or one that another process
    /// has left. It goes on when the caller gives up waiting.
    ///
    /// # Errors
    /// Where somebody serves it, there is no record of it, or it cannot be taken over. What is this daemon's then is tried again.
    pub async fn recover(self: &Arc<Self>, id: u32, wanted: RecoverDevice) -> Result<DeviceInfo, Failure> {
        let from = wanted.state_dir.filter(|dir| dir != self.state.path());
        from.as_deref().map_or(Ok(()), check_absolute)?;
        let daemon = Arc::clone(self);
        detached(async move {
            if daemon.table.live(id).is_ok() {
                return Err(Failure::new(FailureClass::Conflict, format!("device {id} is served already")));
            }
            if from.is_some() || daemon.stored_of(id).await?.is_none() {
                daemon.adopt(id, from).await?;
                if let Err(failure) = daemon.try_to_bring_back(id).await {
                    // It is this daemon's now.
                    task::spawn(Arc::clone(&daemon).bring_back(id, oneshot::channel().0));
                    return Err(failure);
                }
            } else {
                daemon.try_to_bring_back(id).await?;
            }
            let info = daemon.info(id).await?;
            if info.state == DeviceState::Live {
                return Ok(info);
            }
            let why = info.unserved.map_or_else(|| "another process serves it".to_owned(), |it| it.why);
            Err(Failure::new(FailureClass::Conflict, format!("device {id} is left alone: {why}")))
        })
        .await
    }

    /// Makes the record of device `id` that a process has left, in the state directory `from`, this daemon's own.
    async fn adopt(&self, id: u32, from: Option<PathBuf>) -> Result<(), Failure> {
        let is_own = from.is_none();
        let dir = from.unwrap_or_else(|| self.state.path().to_owned());
        let place = dir.display().to_string();
        let none = || {
            let text = format!("{place} has no record of a device {id} that a process has left");
            Failure::new(FailureClass::NotFound, text)
        };
        let left = on_disk(move || LeftRecord::find(&dir, id, is_own)).await?.ok_or_else(none)?;
        let known = self.find(id).await?;
        if let Ok(record) = &left.stored.record {
            check_same(record, known.as_ref())?;
        }
        if fate(&left.stored.record, known.as_ref()) != Fate::TakeOver {
            let text = format!("device {id} does not wait for a server: \"list\" says what becomes of it");
            return Err(Failure::new(FailureClass::Conflict, text));
        }
        let Ok(record) = left.stored.record.as_ref().cloned() else { return Err(none()) };
        let records = self.state.records().clone();
        // In this order: a crash between the two leaves one record that nobody believes any more.
        on_disk(move || records.create(&record).and_then(|()| left.forget())).await
    }

    /// What a process that served device `id` alone has left, which nobody else takes as long as the answer lives.
    pub(super) async fn left_alone(&self, id: u32) -> Result<Option<LeftRecord>, Failure> {
        let dir = self.state.path().to_owned();
        on_disk(move || LeftRecord::find(&dir, id, true)).await
    }
}
