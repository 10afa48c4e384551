//! A device that this process serves, and its way out.

use std::{
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::merge::Merging;
use crate::{
    block::{BlockError, ErrorKind},
    frontend::{Attachment, Detached, FrontendError},
    image::{ReadMetrics, SourceClass},
    limit::Rates,
    reactor::ReactorHandle,
    server::{
        api::types::{AddDevice, DeviceInfo, ImageSpec, OverdueInfo, ReadCount, RequestCount},
        blocking::device_work,
        device::{Device, Shown},
        failure::{Failure, FailureClass},
        port::{Port, failure_of_frontend},
        state::{KeptRecord, Record},
    },
    upper::WriteMetrics,
};

/// A device that is served.
pub(in crate::server) struct Served {
    /// As it was when it was made; [`Served::info`] is as it is now.
    pub(in crate::server) info: DeviceInfo,
    pub(in crate::server) request: AddDevice,
    /// What the next daemon is to make it of: the same bytes, whatever a tag means by then.
    pub(in crate::server) pinned: ImageSpec,
    /// Its record, where another process may come to serve it.
    pub(in crate::server) record: Option<KeptRecord>,
    /// What it shows, with counters of its own.
    pub(in crate::server) device: Arc<Device>,
    /// Where its layers are sealed and made larger, and where what it was left with is made durable.
    pub(in crate::server) sealer: ReactorHandle,
    /// Held by whoever makes a snapshot or another size, and to make the last writes durable: one at a time.
    pub(in crate::server) snapshotting: tokio::sync::Mutex<()>,
    /// How the layers of its snapshots are merged.
    pub(in crate::server) merging: Merging,
    /// What of it is left.
    pub(in crate::server) presence: Mutex<Presence>,
}

/// What is left of a device.
pub(in crate::server) enum Presence {
    /// All of it: this is what the frontend has.
    Attached(Box<dyn Attachment>),
    /// Somebody removes it, or has.
    Leaving,
    /// Writes that are not durable yet. The frontend has let go of the device as it says here.
    Unsaved(Detached),
}

/// A removal that has failed.
#[derive(Debug)]
pub(in crate::server) struct NotRemoved {
    /// Why.
    pub(in crate::server) failure: Failure,
    /// Whether there is something left for another removal: all of the device, or what was written last.
    pub(in crate::server) is_left: bool,
}

impl Served {
    /// What is to be shown of it.
    pub(in crate::server) fn info(&self) -> DeviceInfo {
        let rates = self.device.limit().rates();
        DeviceInfo {
            size_bytes: self.device.geometry().size_bytes,
            iops: NonZeroU64::new(rates.requests_per_second),
            bytes_per_second: NonZeroU64::new(rates.bytes_per_second),
            ..self.info.clone()
        }
    }

    /// Has its record say something else. A device is served all the same where that fails.
    ///
    /// # Errors
    /// What the file system says.
    pub(in crate::server) async fn note(&self, change: impl FnOnce(&mut Record)) -> Result<(), Failure> {
        match &self.record {
            Some(record) => record.change(change).await,
            None => Ok(()),
        }
    }

    /// All that is to be shown of it. Asks for the sizes of files, which may take long.
    pub(in crate::server) fn full_info(&self, port: &dyn Port, shown: DeviceInfo) -> DeviceInfo {
        DeviceInfo {
            layers: self.device.layers(|path| port.stored_bytes(path)),
            warnings: self.device.warnings(),
            overdue: self.device.overdue().list().into_iter().map(OverdueInfo::from).collect(),
            reads: read_counts(self.device.reads()),
            upper: self.device.writes().map(request_counts).unwrap_or_default(),
            upper_room_bytes: self.device.upper_room_bytes(),
            ..shown
        }
    }

    /// Asks the frontend for something that may block, unless the device is being removed.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] where it is, and what the frontend says.
    pub(super) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        asked: impl FnOnce(&dyn Attachment) -> Result<T, FrontendError> + Send + 'static,
    ) -> Result<T, Failure> {
        let served = Arc::clone(self);
        device_work(move || {
            let presence = served.presence();
            let Presence::Attached(attachment) = &*presence else { return Err(served.is_leaving()) };
            asked(attachment.as_ref()).map_err(|error| failure_of_frontend("the frontend refuses", error))
        })
        .await
    }

    /// The turn to change which layers the device has.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] where it is being removed.
    pub(super) async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Failure> {
        let turn = self.snapshotting.lock().await;
        match &*self.presence() {
            Presence::Attached(_) => Ok(turn),
            Presence::Leaving | Presence::Unsaved(_) => Err(self.is_leaving()),
        }
    }

    /// Removes the device; the first call does. Programs that have it open get `patience` to close it, for the sake of its
    /// number. What was written to it is durable then, and a snapshot that had begun has ended. Where the frontend has failed, or
    /// writes could not be saved, the next call tries again.
    ///
    /// # Errors
    /// When it cannot be removed within `limit`, or what was written not be made durable within as much again.
    pub(in crate::server) async fn detach(
        self: &Arc<Self>,
        limit: Duration,
        patience: Duration,
    ) -> Result<Detached, NotRemoved> {
        let removing = Arc::clone(self);
        let detached = device_work(move || Ok(removing.remove(limit, patience))).await??;
        // Also where the frontend has failed: nobody else will flush them.
        let saved = self.save(limit).await;
        let (detached, error) = match (detached, saved) {
            (Ok(detached), Ok(())) => return Ok(detached),
            (Err(failure), Ok(())) => return Err(NotRemoved { failure, is_left: true }),
            (detached, Err(error)) => (detached, error),
        };
        // After a failed sync there is nothing left to be saved.
        let is_unsaved = matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::TimedOut);
        let is_left = is_unsaved || detached.is_err();
        if let (true, Ok(detached)) = (is_unsaved, &detached) {
            *self.presence() = Presence::Unsaved(*detached);
        }
        let id = self.info.id;
        let lost = match is_unsaved {
            true => {
                format!("the last writes to device {id} are not durable yet: remove it again to try again")
            }
            false => format!("the last writes to device {id} may not be durable"),
        };
        let text =
            detached.map_or_else(|failure| format!("{}; {lost}", failure.full_text()), |_| lost.clone());
        let class = match error.kind() {
            ErrorKind::TimedOut => FailureClass::TimedOut,
            _ => FailureClass::Internal,
        };
        Err(NotRemoved { failure: Failure::with_source(class, text, error), is_left })
    }

    /// Makes durable what was written, after a snapshot that is under way: whoever makes the device again finds it done.
    pub(super) async fn save(&self, limit: Duration) -> Result<(), BlockError> {
        if let Shown::Image(_) = self.device.shown() {
            // A fork of it may wait for a registry.
            return Ok(());
        }
        let saving = async {
            let _turn = self.snapshotting.lock().await;
            self.device.make_durable(&self.sealer).await
        };
        let late = || Err(BlockError::new(ErrorKind::TimedOut, "a flush takes too long"));
        tokio::time::timeout(limit, saving).await.unwrap_or_else(|_| late())
    }

    /// Has the frontend let go of the device, which stays attached where it fails: what it says then is inside.
    ///
    /// # Errors
    /// [`FailureClass::Conflict`] where somebody else does.
    fn remove(&self, limit: Duration, patience: Duration) -> Result<Result<Detached, Failure>, Failure> {
        let found = std::mem::replace(&mut *self.presence(), Presence::Leaving);
        let mut attachment = match found {
            Presence::Attached(attachment) => attachment,
            Presence::Unsaved(detached) => return Ok(Ok(detached)),
            Presence::Leaving => return Err(self.is_leaving()),
        };
        // What waits for its turn would hold it up.
        self.device.limit().set(Rates::default());
        let detached = attachment.detach_within(limit, patience);
        if detached.is_ok() {
            self.merging.end();
        }
        match &detached {
            Ok(Detached::Complete) => {}
            Ok(Detached::HeldOpen) => {
                tracing::warn!(
                    id = self.info.id,
                    "the kernel keeps the number until somebody closes the node"
                );
            }
            Err(_) => *self.presence() = Presence::Attached(attachment),
        }
        Ok(detached.map_err(|error| failure_of_frontend("cannot remove the device", error)))
    }

    pub(super) fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_leaving(&self) -> Failure {
        Failure::new(FailureClass::Conflict, format!("device {} is being removed", self.info.id))
    }

    /// Whether another program has deleted the device.
    pub(super) fn has_ended(&self) -> bool {
        // Whoever asks the frontend for something is told by it.
        let Ok(presence) = self.presence.try_lock() else { return false };
        matches!(&*presence, Presence::Attached(attachment) if attachment.has_ended())
    }
}

impl From<Failure> for NotRemoved {
    fn from(failure: Failure) -> Self {
        Self { failure, is_left: false }
    }
}

impl From<NotRemoved> for Failure {
    fn from(error: NotRemoved) -> Self {
        error.failure
    }
}

/// The counters of one device's reads, as `info` shows them.
fn read_counts(reads: &ReadMetrics) -> Vec<ReadCount> {
    let served = SourceClass::ALL.map(|class| {
        let counted = reads.of(class);
        let (requests, bytes) = (counted.requests.get(), counted.bytes.get());
        ReadCount { source: class.name().to_owned(), requests, bytes }
    });
    let failed = ReadCount { source: "failed".to_owned(), requests: reads.errors.get(), bytes: 0 };
    served.into_iter().chain([failed]).collect()
}

/// The counters of one device's writable layer, as `info` shows them.
fn request_counts(writes: &WriteMetrics) -> Vec<RequestCount> {
    let served = writes.kinds().map(|(kind, counted)| {
        let (requests, bytes) = (counted.requests.get(), counted.bytes.get());
        RequestCount { kind: kind.to_owned(), requests, bytes }
    });
    let failed = RequestCount { kind: "failed".to_owned(), requests: writes.errors.get(), bytes: 0 };
    served.into_iter().chain([failed]).collect()
}
