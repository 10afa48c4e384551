//! The record of one device while it comes, lives and goes.

use tokio::sync::Mutex;

use super::{Record, Records, StateError};
use crate::server::{
    blocking::blocking,
    failure::{Failure, FailureClass},
};

/// A record, as it is on the disk.
#[derive(Debug)]
pub(in crate::server) struct KeptRecord {
    records: Records,
    /// Held while it is written.
    record: Mutex<Record>,
}

impl KeptRecord {
    /// Writes the first record of a device.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] where there is one of its number, and what the file system says.
    pub(in crate::server) async fn create(records: &Records, record: Record) -> Result<Self, Failure> {
        let (writing, written) = (records.clone(), record.clone());
        on_disk(move || writing.create(&written)).await?;
        Ok(Self::found(records, record))
    }

    /// One that is on the disk.
    pub(in crate::server) fn found(records: &Records, record: Record) -> Self {
        Self { records: records.clone(), record: Mutex::new(record) }
    }

    /// What it says.
    pub(in crate::server) async fn get(&self) -> Record {
        self.record.lock().await.clone()
    }

    /// Has it say something else, durably.
    ///
    /// # Errors
    /// What the file system says; then it is as it was.
    pub(in crate::server) async fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), Failure> {
        let mut record = self.record.lock().await;
        let mut next = record.clone();
        change(&mut next);
        if next == *record {
            return Ok(());
        }
        let (records, written) = (self.records.clone(), next.clone());
        on_disk(move || records.save(&written)).await?;
        *record = next;
        Ok(())
    }

    /// Removes it, when there is nothing left of the device. One that cannot be removed is only logged: whoever finds it finds
    /// no device.
    pub(in crate::server) async fn forget(&self) {
        let id = self.record.lock().await.id;
        let records = self.records.clone();
        if let Err(failure) = on_disk(move || records.forget(id)).await {
            tracing::error!(id, error = failure.full_text(), "a record is left behind");
        }
    }
}

/// Does `work` with records.
pub(in crate::server) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, Failure> {
    blocking(move || {
        work().map_err(|source| {
            let class = match source {
                StateError::Taken { .. } | StateError::Locked { .. } | StateError::Served { .. } => {
                    FailureClass::Conflict
                }
                StateError::Io { .. } => FailureClass::Internal,
            };
            Failure::with_source(class, "cannot use the records of devices", source)
        })
    })
    .await
}
